"""The losses of the registry that the benchmark has no contenders for, at training size."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax import build_loss


class Case(NamedTuple):
    """A loss by its config, and its inputs: pred, what else its call takes, and keywords."""

    name: str
    config: dict[str, Any]
    inputs: Callable[[np.random.Generator, float], tuple[Any, ...]]
    keywords: Callable[[np.random.Generator, float], dict[str, Any]] = lambda rng, scale: {}

    def arguments(self, rng: np.random.Generator, scale: float) -> tuple[Any, ...]:
        """Pred, the other arguments, and the keywords."""
        return *self.inputs(rng, scale), self.keywords(rng, scale)

    def function(self, pred: jax.Array, target: Any, *rest: Any) -> jax.Array:
        """The loss, summed where it has several parts; its state is that before a first call."""
        *others, keywords = rest
        loss = build_loss(self.config)
        if not hasattr(loss, "init"):
            return sum(jax.tree.leaves(loss(pred, target, *others, **keywords)))
        value, state = loss.update(loss.init(), pred, target, *others, **keywords)
        kept = sum(jnp.sum(leaf) * 0 for leaf in jax.tree.leaves(state))  # the state is an output
        return sum(jax.tree.leaves(value)) + jax.lax.stop_gradient(kept)


def _count(n: int, scale: float) -> int:
    return max(int(n * scale), 8)


def _normal(*shape: int) -> Callable[[np.random.Generator, float], np.ndarray]:
    def make(rng: np.random.Generator, scale: float) -> np.ndarray:
        rows = _count(shape[0], scale)
        return rng.standard_normal((rows, *shape[1:]), np.float32)

    return make


def _labels(n: int, classes: int) -> Callable[[np.random.Generator, float], np.ndarray]:
    return lambda rng, scale: rng.integers(classes, size=_count(n, scale)).astype(np.int32)


def _boxes(n: int, rotated: bool = False) -> Callable[[np.random.Generator, float], np.ndarray]:
    def make(rng: np.random.Generator, scale: float) -> np.ndarray:
        rows = _count(n, scale)
        corner, side = rng.uniform(0, 800, (rows, 2)), rng.uniform(8, 200, (rows, 2))
        if rotated:
            angle = rng.uniform(-1, 1, (rows, 1))
            return np.concatenate([corner, side, angle], axis=1).astype(np.float32)
        return np.concatenate([corner, corner + side], axis=1).astype(np.float32)

    return make


def _unit(*shape: int) -> Callable[[np.random.Generator, float], np.ndarray]:
    return lambda rng, scale: rng.uniform(size=(_count(shape[0], scale), *shape[1:])).astype(
        np.float32
    )


def _together(*makers: Callable[[np.random.Generator, float], Any]) -> Callable[..., tuple]:
    return lambda rng, scale: tuple(maker(rng, scale) for maker in makers)


def _bins(n: int, bins: int) -> Callable[[np.random.Generator, float], tuple[np.ndarray, ...]]:
    def make(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, ...]:
        rows = _count(n, scale)
        left = rng.integers(bins, size=rows).astype(np.float32)
        right = rng.uniform(size=rows).astype(np.float32)
        return left, right, 1 - right

    return make


def _distillation_keywords(rng: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
    rows = _count(200_000, scale)
    return {
        "confidence": rng.uniform(size=rows).astype(np.float32),
        "matched": rng.uniform(size=rows) < 0.1,
    }


def _rotated_keywords(rng: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
    make = _boxes(100_000, rotated=True)
    return {"pred_decode": make(rng, scale), "targets_decode": make(rng, scale)}


def _corners(rng: np.random.Generator, scale: float) -> tuple[np.ndarray, ...]:
    side = _count(128, scale)
    maps = rng.standard_normal((2, 16, 1, side, side), np.float32)
    return maps[0], maps[1], rng.integers(side, size=(16, 100, 2, 2)).astype(np.int32)


PAIRS = _together(_boxes(200_000), _boxes(200_000))
ROTATED = _together(_boxes(100_000, rotated=True), _boxes(100_000, rotated=True))
CASES = (
    Case("ASL, one label", {"type": "ASLSingleLabel"},
         _together(_normal(100_000, 81), _labels(100_000, 81))),
    Case("IoU-aware BCE", {"type": "IoUAwareBCELoss"},
         _together(_normal(40_000, 80), _together(_labels(40_000, 81), _unit(40_000)))),
    Case("GHM-C", {"type": "GHMC"}, _together(_normal(40_000, 80), _labels(40_000, 81))),
    Case("GHM-R", {"type": "GHMR"}, _together(_normal(200_000, 4), _normal(200_000, 4))),
    Case("seesaw", {"type": "SeesawLoss", "num_classes": 1203},
         _together(_normal(8_000, 1205), _labels(8_000, 1204))),
    Case("EQL v2", {"type": "EQLV2Loss", "num_classes": 1203},
         _together(_normal(8_000, 1204), _labels(8_000, 1204))),
    Case("distillation", {"type": "KnowledgeDistillationKLDivLoss"},
         _together(_normal(100_000, 80), _normal(100_000, 80))),
    Case("several right classes", {"type": "MultiPosCrossEntropyLoss"},
         _together(_normal(10_000, 256), lambda rng, scale: (
             rng.uniform(size=(_count(10_000, scale), 256)) < 0.1).astype(np.float32))),
    Case("MSE", {"type": "MSELoss"}, _together(_normal(200_000, 4), _normal(200_000, 4))),
    Case("margin L2", {"type": "MarginL2Loss"},
         _together(_unit(2_000, 2_000), lambda rng, scale: (
             rng.uniform(size=(_count(2_000, scale), 2_000)) < 0.01).astype(np.float32))),
    Case("bounded IoU", {"type": "BoundedIoULoss"}, PAIRS),
    Case("extended IoU", {"type": "EIoULoss"}, PAIRS),
    Case("SIoU", {"type": "SIoULoss", "neg_gamma": True}, PAIRS),
    Case("shape IoU", {"type": "ShapeIoULoss"}, PAIRS),
    Case("alpha IoU", {"type": "AlphaIoULoss", "mode": "ciou"}, PAIRS),
    Case("wise IoU", {"type": "WIoULoss"}, PAIRS),
    Case("FGL", {"type": "FineGrainedLocalizationLoss"},
         _together(_normal(200_000, 33), _bins(200_000, 32))),
    Case("DDF", {"type": "DecoupledDistillationFocalLoss"},
         _together(_normal(200_000, 33), _normal(200_000, 33)), _distillation_keywords),
    Case("GWD", {"type": "GDLoss", "loss_type": "gwd"}, ROTATED),
    Case("GD v1, Bhattacharyya", {"type": "GDLoss_v1", "loss_type": "bcd"}, ROTATED),
    Case("KFIoU", {"type": "KFLoss"},
         _together(_normal(100_000, 5), _normal(100_000, 5)), _rotated_keywords),
    Case("Tversky", {"type": "TverskyLoss"},
         _together(_normal(16, 21, 128, 128), lambda rng, scale: rng.integers(
             21, size=(_count(16, scale), 128, 128)).astype(np.int32))),
    Case("triplet", {"type": "TripletLoss"}, _together(_normal(2_000, 128), _labels(2_000, 100))),
    Case("associative embedding", {"type": "AssociativeEmbeddingLoss"}, _corners),
)  # fmt: skip
