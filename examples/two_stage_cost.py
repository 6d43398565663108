"""The cost of Mask R-CNN's losses, step by step, at COCO's size.

    python examples/two_stage_cost.py             # 16 images of 800 x 1333 with up to 100 boxes
    python examples/two_stage_cost.py --batch 2

Each step runs in its own process. "temporary" is the memory that the compiled program needs beside
its arguments and its results.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from head_cost import IMAGE_SHAPE, make_batch
from visdet_jax import configs
from visdet_jax.detectors import Proposals, RoIOutputs, build_detector

COLUMNS = ("compile s", "seconds", "arguments MiB", "temporary MiB")
PROPOSALS, CLASSES, MASK = 1000, 80, 28
Step = tuple[Callable[..., Any], tuple[Any, ...]]


def steps(batch: int, scale: float, boxes: int, only: str | None = None) -> dict[str, Step]:
    """Each step of a training iteration: a function, and its arguments.

    Args:
      batch: Number of images.
      scale: Multiplies the sides of the images.
      boxes: Rows of ground truth for each image.
      only: The one step whose arguments are made; None makes all.
    """
    heads = build_detector(configs.MASK_RCNN)
    rpn, roi = heads["rpn_head"], heads["roi_head"]
    rng = np.random.default_rng(0)
    outputs, gt_boxes, gt_labels, shapes = make_batch(rpn, batch, scale, boxes, rng)
    key = jax.random.key(0)

    def rpn_loss(outputs: Any, *truth: Any) -> Any:
        return sum(rpn.loss(outputs, *truth, key=key).values())

    def roi_loss(outputs: Any, samples: Any, gt_masks: Any) -> Any:
        return sum(roi.loss(outputs, samples, gt_masks).values())

    def sample(proposals: Any, gt_boxes: Any, gt_labels: Any) -> Any:
        return roi.sample(proposals, gt_boxes, gt_labels, key=key)

    found: dict[str, Step] = {
        "RPN's loss": (jax.value_and_grad(rpn_loss), (outputs, gt_boxes, gt_labels, shapes)),
        "proposals": (rpn.proposals, (outputs, shapes)),
    }
    if only in found:
        return found
    near = gt_boxes[:, rng.integers(boxes, size=PROPOSALS)]
    near += rng.normal(0, 8, near.shape).astype(np.float32)
    near = jnp.concatenate([jnp.minimum(near[..., :2], near[..., 2:] - 1), near[..., 2:]], axis=-1)
    proposals = Proposals(near, jnp.ones(near.shape[:2], bool))
    samples = jax.jit(sample)(proposals, gt_boxes, gt_labels)
    slots, masks = samples.boxes.shape[1], roi.mask_slots(samples)
    height, width = (round(side * scale) for side in IMAGE_SHAPE)
    shapes_of_outputs = (
        (batch, slots, CLASSES + 1),
        (batch, slots, 4 * CLASSES),
        (batch, masks, MASK, MASK, CLASSES),
    )
    roi_outputs = RoIOutputs(*(rng.standard_normal(s, np.float32) for s in shapes_of_outputs))
    bitmaps = np.ones((batch, boxes, height, width), bool)
    without_masks = build_detector(configs.FASTER_RCNN)["roi_head"]

    def box_loss(outputs: Any, samples: Any) -> Any:
        return sum(without_masks.loss(outputs, samples).values())

    return found | {
        "samples": (sample, (proposals, gt_boxes, gt_labels)),
        "boxes' loss": (
            jax.value_and_grad(box_loss),
            (roi_outputs._replace(mask_preds=None), samples),
        ),
        "boxes' and masks' loss": (
            jax.value_and_grad(roi_loss),
            (roi_outputs, samples, bitmaps),
        ),
    }


STEPS = ("RPN's loss", "proposals", "samples", "boxes' loss", "boxes' and masks' loss")


def measure(name: str, batch: int, scale: float, boxes: int, repeats: int) -> dict[str, float]:
    """One row of the table."""
    function, arguments = steps(batch, scale, boxes, name)[name]
    jax.clear_caches()  # What was compiled to make the arguments counts too.
    started = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    jax.block_until_ready(program(*arguments))
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        times.append(time.perf_counter() - started)
    return {
        "compile s": compile_seconds,
        "seconds": statistics.median(times),
        "arguments MiB": sum(x.nbytes for x in jax.tree.leaves(arguments)) / 2**20,
        "temporary MiB": program.memory_analysis().temp_size_in_bytes / 2**20,
    }


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """The table of the rows, by step."""
    lines = [f"{'step':<24}" + "".join(f"{column:>16}" for column in COLUMNS)]
    for name, row in rows.items():
        cells = [f"{row[c]:.3f}" if "MiB" not in c else f"{row[c]:.0f}" for c in COLUMNS]
        lines.append(f"{name:<24}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints the table and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="number of images")
    parser.add_argument("--boxes", type=int, default=100, help="rows of ground truth per image")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each function")
    parser.add_argument("--quick", action="store_true", help="small images, to see that it runs")
    parser.add_argument("--step", choices=STEPS, help="measure this alone, and print it as JSON")
    options = parser.parse_args(argv)
    scale = 0.1 if options.quick else 1.0
    if options.step:
        row = measure(options.step, options.batch, scale, options.boxes, options.repeats)
        print(json.dumps(row))
        return {options.step: row}
    given = sys.argv[1:] if argv is None else argv
    rows = {}
    for name in STEPS:
        command = [sys.executable, __file__, *given, "--step", name]
        rows[name] = json.loads(subprocess.run(command, check=True, stdout=-1, text=True).stdout)
    print(f"{options.batch} images, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print(format_table(rows))
    return rows


if __name__ == "__main__":
    main()
