"""Detector configs in mmdet's form: from the file to the losses, and a few steps of training.

    python examples/mmdet_configs.py

The files are those of examples/configs. Like mmdet's, they are Python files that define `model`.
All losses fall except GFL's class loss: its targets are the IoUs of the boxes, with which it rises
at first.
"""

import runpy
from pathlib import Path

import jax
import optax
from flax import nnx

from detector.digits import Digits
from detector.network import Detector
from visdet_jax.detectors import DenseHead, build_head

CONFIGS = Path(__file__).parent / "configs"
STEPS = 15


def load_head(path: Path) -> DenseHead:
    """The head of a config file, with its losses and its assigner."""
    model = runpy.run_path(str(path))["model"]
    return build_head(model["bbox_head"], model["train_cfg"])


def train(head: DenseHead, dataset: Digits, steps: int) -> list[dict[str, float]]:
    """Train a tiny network; returns the losses by name at each step."""

    def make_model() -> Detector:
        return Detector(head, width=8, channels=16, rngs=nnx.Rngs(0))

    graphdef = nnx.graphdef(nnx.eval_shape(make_model))
    params = jax.jit(lambda: nnx.state(make_model()))()
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(
        params: nnx.State, opt_state: optax.OptState, batch: dict[str, jax.Array]
    ) -> tuple[nnx.State, optax.OptState, dict[str, jax.Array]]:
        def total_loss(params: nnx.State) -> tuple[jax.Array, dict[str, jax.Array]]:
            outputs = nnx.merge(graphdef, params)(batch["images"])
            losses = head.loss(outputs, batch["boxes"], batch["labels"])
            return sum(losses.values()), losses

        gradients, losses = jax.grad(total_loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, losses

    opt_state, history = optimizer.init(params), []
    for number in range(steps):
        params, opt_state, losses = step(params, opt_state, dataset.train_batch(number))
        history.append({name: float(value) for name, value in losses.items()})
    return history


def main() -> dict[str, list[dict[str, float]]]:
    """Train three detectors and print their losses; returns the losses at each step."""
    dataset = Digits(batch_size=4, image_size=96, max_boxes=6, seed=0)
    histories = {}
    for detector in ("retinanet", "atss", "gfl"):
        head = load_head(CONFIGS / f"{detector}.py")
        print(f"\n{detector}: {type(head).__name__}, {head.num_base_priors} priors a cell")
        print(f"channels of a prior: {head.channels}")
        history = histories[detector] = train(head, dataset, STEPS)
        for name, first in history[0].items():
            print(f"  {name:<15} {first:.3f} -> {history[-1][name]:.3f}")
    return histories


if __name__ == "__main__":
    main()
