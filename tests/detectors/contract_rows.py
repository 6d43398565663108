"""What the contract of the detectors' parts needs to know of each class in TASK_UTILS.

For a new class add a row to ROWS: its config, and for a class that is called with arrays one of
the rows below (`CostRow`, `AssignerRow`, ...), or a `Row` with inputs and a call of its own.

The inputs of a call are a dict of NumPy arrays. Keys that start with "gt_" have one row for each
ground truth, of which those with a negative label in "gt_labels" are padding. Keys in SHARED have
no such axis. All others have one row for each prediction or prior.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from visdet_jax.detectors import Instances

QUERIES, BOXES = 6, 5
# As many classes as uint8 has numbers: counted in that type they would be 0.
CLASSES = 256
TOKENS = 7
PIXELS = (3, 4)
PRIORS = 40
IMAGE = np.array([100, 120], np.int32)
LOGITS = np.array([-1e4, -100, -17, -1e-3, 0, 17, 1e4], np.float32)
SHARED = ("image_shape", "text_token_mask", "key")

Inputs = dict[str, np.ndarray]
Generator = np.random.Generator


def boxes(rng: Generator, count: int) -> np.ndarray:
    corner, size = rng.uniform(-10, 70, (count, 2)), rng.uniform(5, 50, (count, 2))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


def extreme_boxes(rng: Generator, count: int) -> np.ndarray:
    """Without area, inverted, equal, touching, far apart; the rest of them random."""
    kinds = [
        [0, 0, 0, 0],
        [50, 50, 20, 30],
        [20, 20, 60, 60],
        [20, 20, 60, 60],
        [60, 20, 90, 60],
        [-1e6, -1e6, 1e6, 1e6],
        [1e6, 1e6, 1e6 + 1, 1e6 + 1],
        [5, 5, 5, 90],
    ]
    return np.concatenate([np.array(kinds, np.float32), boxes(rng, count)])[:count]


def padded_labels(rng: Generator, high: int = CLASSES) -> np.ndarray:
    """Class indices, of which the second and the last are padding."""
    labels = rng.integers(0, high, BOXES).astype(np.int32)
    labels[[1, -1]] = -1
    return labels


@dataclass(frozen=True)
class Row:
    """How to build a registered class, and a call of it.

    config: the class's keys beside `type`.
    untraced: fields that are numbers and that no call reads, so that they need not be traceable
      and may have any value.
    static: fields that are numbers and choose shapes, so that they cannot be traced.
    """

    config: dict[str, Any] = field(default_factory=dict)
    untraced: tuple[str, ...] = ()
    static: tuple[str, ...] = ()

    is_called = False  # with arrays
    has_labels = False  # of ground truth, among those arrays
    rows_are_independent = False  # NaN in one row of the inputs stays in that row of the results
    has_gradient = False
    # Whether `vmap` works over images that are spread over the axis of an explicit mesh.
    works_on_explicit_meshes = True

    def inputs(self, rng: Generator) -> Inputs:
        """Arrays of ordinary values."""
        raise NotImplementedError

    def extremes(self, rng: Generator) -> Inputs:
        """Arrays of the same shapes, finite but as bad as it gets."""
        raise NotImplementedError

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        """The results by name."""
        raise NotImplementedError

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        """The documented shapes of the results, of which those named in `integers` are int32."""
        raise NotImplementedError

    integers = ()

    def meaningful(self, inputs: Inputs, results: dict[str, Any]) -> dict[str, Any]:
        """The results without those of padded ground truth, which mean nothing."""
        return results


@dataclass(frozen=True)
class CostRow(Row):
    """A match cost. It gets whatever a cost may ask for, logits in `masks` unless it says so."""

    masks_are_probabilities: bool = False

    is_called = has_labels = rows_are_independent = has_gradient = True

    def inputs(self, rng: Generator) -> Inputs:
        masks = rng.normal(0, 2, (QUERIES, *PIXELS)).astype(np.float32)
        return {
            "scores": rng.normal(0, 2, (QUERIES, CLASSES)).astype(np.float32),
            "bboxes": boxes(rng, QUERIES),
            "masks": 1 / (1 + np.exp(-masks)) if self.masks_are_probabilities else masks,
            "tokens": rng.normal(0, 2, (QUERIES, TOKENS)).astype(np.float32),
            "gt_labels": padded_labels(rng),
            "gt_bboxes": boxes(rng, BOXES),
            "gt_masks": (rng.random((BOXES, *PIXELS)) < 0.5).astype(np.float32),
            "gt_positive_maps": (rng.random((BOXES, TOKENS)) < 0.5).astype(np.float32),
            "text_token_mask": (np.arange(TOKENS) < TOKENS - 2).astype(np.float32),
            "image_shape": IMAGE,
        }

    def extremes(self, rng: Generator) -> Inputs:
        of_pixels = LOGITS >= 0 if self.masks_are_probabilities else LOGITS
        extremes = {
            "scores": rng.choice(LOGITS, (QUERIES, CLASSES)),
            "bboxes": extreme_boxes(rng, QUERIES),
            "masks": rng.choice(of_pixels, (QUERIES, *PIXELS)).astype(np.float32),
            "tokens": rng.choice(LOGITS, (QUERIES, TOKENS)),
            "gt_bboxes": extreme_boxes(rng, BOXES),
            "image_shape": np.array([1, 1], np.int32),
        }
        extremes["masks"][0] = extremes["masks"][0].min()
        ordinary = self.inputs(rng)
        ordinary["gt_masks"][0] = 0
        ordinary["gt_masks"][2] = 1
        ordinary["gt_positive_maps"][0] = 0
        return ordinary | extremes

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        return {"cost": built(*instances(built, inputs))}

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        return {"cost": (len(inputs["bboxes"]), len(inputs["gt_labels"]))}

    def meaningful(self, inputs: Inputs, results: dict[str, Any]) -> dict[str, Any]:
        return {"cost": np.asarray(results["cost"])[:, np.asarray(inputs["gt_labels"]) >= 0]}


def instances(built: Any, inputs: Inputs) -> tuple[Instances, Instances, np.ndarray]:
    """Predictions, ground truth and the image's shape. For one of the costs scores are tokens."""
    tokens = type(built).__name__ == "BinaryFocalLossCost"
    pred = Instances(
        scores=inputs["tokens" if tokens else "scores"],
        bboxes=inputs["bboxes"],
        masks=inputs["masks"],
    )
    gt = Instances(
        labels=inputs["gt_labels"],
        bboxes=inputs["gt_bboxes"],
        masks=inputs["gt_masks"],
        positive_maps=inputs["gt_positive_maps"],
        text_token_mask=inputs["text_token_mask"],
    )
    return pred, gt, inputs["image_shape"]


@dataclass(frozen=True)
class MatcherRow(CostRow):
    """An assigner of predictions by costs: the Hungarian one."""

    rows_are_independent = has_gradient = False
    # jax 0.10.2 cannot `vmap` the loops of optax's matching there. `hungarian` of a batch works.
    works_on_explicit_meshes = False
    integers = ("gt_inds", "labels")

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        found = built.assign(*instances(built, inputs))
        return {"gt_inds": found.gt_inds, "labels": found.labels}

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.integers, (len(inputs["bboxes"]),))

    def meaningful(self, inputs: Inputs, results: dict[str, Any]) -> dict[str, Any]:
        return results


@dataclass(frozen=True)
class AssignerRow(Row):
    """An assigner on priors."""

    untraced: tuple[str, ...] = ("ignore_iof_thr", "gpu_assign_thr")

    is_called = has_labels = True
    integers = ("gt_inds", "labels")

    def inputs(self, rng: Generator) -> Inputs:
        return {
            "priors": boxes(rng, PRIORS),
            "valid": rng.random(PRIORS) < 0.9,
            "gt_boxes": boxes(rng, BOXES),
            "gt_labels": padded_labels(rng),
        }

    def extremes(self, rng: Generator) -> Inputs:
        extremes = {
            "priors": extreme_boxes(rng, PRIORS),
            "gt_boxes": extreme_boxes(rng, BOXES),
        }
        return self.inputs(rng) | extremes

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        count = len(inputs["priors"])
        found = built.assign(
            inputs["priors"],
            inputs["gt_boxes"],
            inputs["gt_labels"],
            inputs["valid"],
            level_sizes=(count - count // 3, count // 3),
        )
        return {name: x for name, x in found._asdict().items() if x is not None}

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("gt_inds", "labels", "max_overlaps"), (len(inputs["priors"]),))


@dataclass(frozen=True)
class PredictionRow(AssignerRow):
    """An assigner that looks at predictions, with logits or probabilities as its scores."""

    probabilities: bool = False

    def inputs(self, rng: Generator) -> Inputs:
        scores = rng.normal(0, 2, (PRIORS, CLASSES)).astype(np.float32)
        return {
            "points": rng.uniform(0, 100, (PRIORS, 2)).astype(np.float32),
            "strides": rng.choice([8, 16], PRIORS).astype(np.float32),
            "pred_boxes": boxes(rng, PRIORS),
            "scores": 1 / (1 + np.exp(-scores)) if self.probabilities else scores,
            "valid": rng.random(PRIORS) < 0.9,
            "gt_boxes": boxes(rng, BOXES),
            "gt_labels": padded_labels(rng),
        }

    def extremes(self, rng: Generator) -> Inputs:
        inputs = self.inputs(rng)
        scores = rng.choice([0, 1, 1e-30] if self.probabilities else LOGITS, (PRIORS, CLASSES))
        extremes = {
            "pred_boxes": extreme_boxes(rng, PRIORS),
            "scores": scores.astype(np.float32),
            "gt_boxes": extreme_boxes(rng, BOXES),
        }
        return inputs | extremes

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        names = ("points", "strides", "pred_boxes", "scores", "gt_boxes", "gt_labels", "valid")
        return built.assign_predictions(*(inputs[name] for name in names))._asdict()

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        names = ("gt_inds", "labels", "max_overlaps", "metrics")
        return dict.fromkeys(names, (len(inputs["points"]),))


@dataclass(frozen=True)
class CoderRow(Row):
    """A box coder, whose priors have 4 numbers or 2."""

    size: int = 4

    is_called = rows_are_independent = has_gradient = True

    def inputs(self, rng: Generator) -> Inputs:
        return {
            "priors": boxes(rng, QUERIES)[:, : self.size],
            "boxes": boxes(rng, QUERIES),
            "encoded": rng.normal(0, 1, (QUERIES, 4)).astype(np.float32),
            "image_shape": IMAGE,
        }

    def extremes(self, rng: Generator) -> Inputs:
        extremes = {
            "priors": extreme_boxes(rng, QUERIES)[:, : self.size],
            "boxes": extreme_boxes(rng, QUERIES)[::-1],
            "encoded": rng.choice(LOGITS, (QUERIES, 4)),
        }
        return self.inputs(rng) | extremes

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        return {
            "encode": built.encode(inputs["priors"], inputs["boxes"]),
            "decode": built.decode(inputs["priors"], inputs["encoded"], inputs["image_shape"]),
        }

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(("encode", "decode"), (len(inputs["priors"]), 4))


@dataclass(frozen=True)
class PriorRow(Row):
    """A prior generator, whose priors have 4 numbers or 2: constants, of no arrays."""

    size: int = 4


@dataclass(frozen=True)
class SamplerRow(Row):
    """A sampler of candidates, some of them ignored or dropped. It gets whatever it may ask for."""

    static: tuple[str, ...] = ("pos_fraction", "neg_pos_ub", "floor_thr", "floor_fraction")

    is_called = True
    integers = ("chosen",)

    def inputs(self, rng: Generator) -> Inputs:
        kinds = [-2, -1, 0, 0, 0, 0, 1, 1, 1, 3, 4]
        return {
            "key": rng.integers(0, 2**32, 2, np.uint32),
            "assigned": rng.choice(kinds, PRIORS).astype(np.int32),
            "overlaps": rng.random(PRIORS).astype(np.float32),
            "losses": rng.exponential(size=PRIORS).astype(np.float32),
        }

    def extremes(self, rng: Generator) -> Inputs:
        return self.inputs(rng) | {
            "assigned": np.full(PRIORS, rng.choice([-2, -1, 0, 1]), np.int32),
            "overlaps": rng.choice([0, 1], PRIORS).astype(np.float32),
            "losses": rng.choice([0, 1e38], PRIORS).astype(np.float32),
        }

    def call(self, built: Any, inputs: Inputs) -> dict[str, Any]:
        assigned, overlaps, losses = (inputs[k][None] for k in ("assigned", "overlaps", "losses"))
        chosen = built.choose(assigned, key=inputs["key"], overlaps=overlaps, losses=losses)
        return {"chosen": chosen[0].astype(np.int32)}

    def shapes(self, inputs: Inputs) -> dict[str, tuple[int, ...]]:
        return {"chosen": inputs["assigned"].shape}


COSTS = [
    {"type": "FocalLossCost", "weight": 2.0},
    {"type": "BBoxL1Cost", "weight": 5.0, "box_format": "xywh"},
    {"type": "IoUCost", "weight": 2.0},
]
STDS = {"target_stds": (0.1, 0.1, 0.2, 0.2), "target_means": (0.05, -0.1, 0.02, 0.3)}
LIMITS = {"num": 14, "pos_fraction": 0.25}
OCTAVES = {"octave_base_scale": 4.0, "scales_per_octave": 3}

# A class without a row fails test_every_registered_class_has_a_row.
ROWS: dict[str, list[Row]] = {
    "ATSSAssigner": [AssignerRow({"topk": 4})],
    "BatchDynamicSoftLabelAssigner": [PredictionRow({"topk": 4})],
    "BatchTaskAlignedAssigner": [
        PredictionRow({"topk": 4, "use_ciou": True}, probabilities=True),
        PredictionRow({"topk": 4}, probabilities=True),
    ],
    "DynamicSoftLabelAssigner": [PredictionRow({"topk": 4})],
    "SimOTAAssigner": [PredictionRow({"candidate_topk": 4}, probabilities=True)],
    "TaskAlignedAssigner": [PredictionRow({"topk": 4}, probabilities=True)],
    "YOLOTaskAlignedAssigner": [
        PredictionRow({"topk": 4, "topk2": 1, "min_side": 16.0}, probabilities=True),
        PredictionRow({"topk": 4}, probabilities=True),
    ],
    "AnchorGenerator": [
        PriorRow({"strides": (8, 16), "ratios": (0.5, 1.0, 2.0), **OCTAVES}),
        PriorRow({"strides": (8, 16), "ratios": (1.0,), "scales": (4.0,), "base_sizes": (5, 9)}),
    ],
    "BBoxL1Cost": [CostRow(), CostRow({"box_format": "xywh"})],
    "BboxOverlaps2D": [Row()],
    "BinaryFocalLossCost": [CostRow(), CostRow({"gamma": 1.5})],
    "ClassificationCost": [CostRow()],
    "CrossEntropyLossCost": [CostRow()],
    "CombinedSampler": [
        SamplerRow(
            LIMITS
            | {
                "pos_sampler": {"type": "InstanceBalancedPosSampler"},
                "neg_sampler": {"type": "IoUBalancedNegSampler", "floor_thr": -1},
            }
        ),
    ],
    "DeltaXYWHBBoxCoder": [CoderRow(), CoderRow(STDS | {"add_ctr_clamp": True})],
    "DiceCost": [
        CostRow(masks_are_probabilities=True),
        CostRow({"naive_dice": False, "eps": 0.0}, masks_are_probabilities=True),
        CostRow({"pred_act": True}),
    ],
    "DistancePointBBoxCoder": [CoderRow(size=2), CoderRow({"clip_border": False}, size=2)],
    "nms": [Row(untraced=("max_num", "split_thr"))],
    "soft_nms": [Row()],
    "FocalLossCost": [CostRow(), CostRow({"binary_input": True, "gamma": 1.5})],
    "HungarianAssigner": [
        MatcherRow({"match_costs": COSTS}),
        MatcherRow({"match_costs": {"type": "ClassificationCost"}}),
    ],
    "InstanceBalancedPosSampler": [SamplerRow(LIMITS)],
    "IoUBalancedNegSampler": [
        SamplerRow(LIMITS),
        SamplerRow(LIMITS | {"floor_thr": 0.1, "floor_fraction": 0.3, "num_bins": 1}),
    ],
    "IoUCost": [CostRow(), CostRow({"iou_mode": "iou"}), CostRow({"iou_mode": "iof"})],
    "LegacyAnchorGenerator": [
        PriorRow({"strides": (8, 16), "ratios": (0.5, 1.0), **OCTAVES, "center_offset": 0.5}),
    ],
    "LegacyDeltaXYWHBBoxCoder": [CoderRow(), CoderRow(STDS)],
    "MaxIoUAssigner": [
        AssignerRow({"pos_iou_thr": 0.5, "neg_iou_thr": 0.4, "min_pos_iou": 0.1}),
        AssignerRow(
            {"pos_iou_thr": 0.5, "neg_iou_thr": (0.1, 0.3), "gt_max_assign_all": False},
        ),
        AssignerRow({"pos_iou_thr": 0.3, "neg_iou_thr": 0.3, "match_low_quality": False}),
    ],
    "MlvlPointGenerator": [PriorRow({"strides": (8, 16), "offset": 0.25}, size=2)],
    "OHEMSampler": [SamplerRow(LIMITS)],
    "PseudoSampler": [SamplerRow()],
    "RandomSampler": [SamplerRow(LIMITS), SamplerRow(LIMITS | {"neg_pos_ub": 2.5})],
    "TBLRBBoxCoder": [CoderRow(), CoderRow({"normalizer": (1.0, 2.0, 4.0, 0.5)})],
    "YOLOAnchorGenerator": [
        PriorRow({"strides": (8, 16), "base_sizes": (((10, 13), (16, 30)), ((30, 61), (62, 45)))}),
    ],
}


def rows_where(condition: Callable[[Row], bool] = lambda row: True) -> list[Any]:
    """pytest's parameters (name, row) for the rows of a condition; all but the first are `long`."""

    def row_id(name: str, row: Row, number: int) -> str:
        settings = [f"{key}={value}" for key, value in row.config.items()]
        return "-".join([name, *settings[-1:]]) if number else name

    return [
        pytest.param(
            name, row, id=row_id(name, row, number), marks=pytest.mark.long if number else ()
        )
        for name, rows in ROWS.items()
        for number, row in enumerate(rows)
        if condition(row)
    ]
