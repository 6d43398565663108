"""Whole detector configs in mmdet's form: from the file to the losses, a few steps of training.

    python examples/mmdet_configs.py

The files are those of examples/configs, as mmdet's own: Python that defines `model`. All losses
fall but one: GFL's class loss learns the IoUs of the boxes, and rises with them at first.
"""

import runpy
from pathlib import Path

import jax
import optax
from flax import nnx

from detector.digits import Digits
from detector.network import Detector
from visdet_jax.detectors import Head, build_head

CONFIGS = Path(__file__).parent / "configs"
STEPS = 15


def load_head(path: Path) -> Head:
    """The head of a config file; the losses and the assigner are parts of it."""
    model = runpy.run_path(str(path))["model"]
    return build_head(model["bbox_head"], model["train_cfg"])


def train(head: Head, dataset: Digits, steps: int) -> list[dict[str, float]]:
    """The losses by name at each step of a tiny network."""

    def make_model() -> Detector:
        return Detector(head, width=8, channels=16, rngs=nnx.Rngs(0))

    graphdef = nnx.graphdef(nnx.eval_shape(make_model))
    params = jax.jit(lambda: nnx.state(make_model()))()
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(params, opt_state, batch):
        def total(params):
            outputs = nnx.merge(graphdef, params)(batch["images"])
            losses = head.loss(outputs, batch["boxes"], batch["labels"])
            return sum(losses.values()), losses

        gradients, losses = jax.grad(total, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, losses

    opt_state, history = optimizer.init(params), []
    for number in range(steps):
        params, opt_state, losses = step(params, opt_state, dataset.train_batch(number))
        history.append({name: float(value) for name, value in losses.items()})
    return history


def main() -> dict[str, list[dict[str, float]]]:
    """The losses of each detector, step by step."""
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
