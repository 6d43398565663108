"""The cost of a detector's losses: value and gradient of four heads at COCO's size.

    python examples/head_cost.py             # 16 images of 800 x 1333 with up to 100 boxes
    python examples/head_cost.py --batch 2

Each head runs in its own process, so that peak memory is that of one head.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax import configs
from visdet_jax.detectors import DenseHead, FCOSHead, HeadOutputs, HeadTargets, build_head

HEADS = {
    "RetinaNet": configs.RETINANET_HEAD,
    "FCOS": configs.FCOS_HEAD,
    "ATSS": configs.ATSS_HEAD,
    "GFL": configs.GFL_HEAD,
}
IMAGE_SHAPE = (800, 1333)  # height, width
COLUMNS = ("priors", "compile s", "value+grad s", "targets s", "inputs MiB", "peak MiB")


Batch = tuple[HeadOutputs, jax.Array, jax.Array, jax.Array]


def make_batch(
    head: DenseHead, batch: int, scale: float, boxes: int, rng: np.random.Generator
) -> Batch:
    """Outputs of an untrained network, boxes of all sizes, their labels, and image shapes.

    Args:
      head: The head whose outputs are made.
      batch: Number of images.
      scale: Multiplies the sides of the images.
      boxes: Rows of ground truth for each image, of which a random number is not padding.
      rng: Draws all values.
    """
    height, width = (round(side * scale) for side in IMAGE_SHAPE)
    priors = head.num_base_priors

    def maps(size: int, change: Callable[[np.ndarray], np.ndarray]) -> tuple[jax.Array, ...]:
        shapes = [(batch, -(-height // s), -(-width // s), priors * size) for s in head.strides]
        normal = (rng.standard_normal(shape, np.float32) for shape in shapes)
        return tuple(jnp.asarray(change(values)) for values in normal)

    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "cls_scores": lambda values: values - 4,
        "bbox_preds": np.exp if isinstance(head, FCOSHead) else np.asarray,
        "centernesses": np.asarray,
    }
    outputs = HeadOutputs(
        **{name: maps(size, changes[name]) for name, size in head.channels.items()}
    )
    sizes = np.exp(rng.uniform(np.log(8), np.log(0.6 * height), (batch, boxes, 2)))
    corners = rng.uniform(size=(batch, boxes, 2)) * ([width, height] - np.minimum(sizes, height))
    gt_boxes = np.concatenate([corners, corners + sizes], axis=-1).astype(np.float32)
    gt_labels = rng.integers(80, size=(batch, boxes)).astype(np.int32)
    counts = rng.integers(boxes + 1, size=(batch, 1))
    gt_labels = np.where(np.arange(boxes) < counts, gt_labels, -1)
    shapes = np.full((batch, 2), (height, width), np.int32)
    return outputs, jnp.asarray(gt_boxes), jnp.asarray(gt_labels), jnp.asarray(shapes)


def measure(name: str, batch: int, scale: float, boxes: int, repeats: int) -> dict[str, float]:
    """One row of the table."""
    head = build_head(**HEADS[name])
    arguments = make_batch(head, batch, scale, boxes, np.random.default_rng(0))

    def total_loss(
        outputs: HeadOutputs, gt_boxes: jax.Array, gt_labels: jax.Array, shapes: jax.Array
    ) -> jax.Array:
        losses = head.loss(outputs, gt_boxes, gt_labels, shapes, shapes)
        return sum(losses.values())

    def targets(
        outputs: HeadOutputs, gt_boxes: jax.Array, gt_labels: jax.Array, shapes: jax.Array
    ) -> HeadTargets:
        return head.targets(outputs, gt_boxes, gt_labels, shapes, shapes)

    started = time.perf_counter()
    step = jax.jit(jax.value_and_grad(total_loss)).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    assign = jax.jit(targets).lower(*arguments).compile()

    def seconds(function: Callable[..., Any]) -> float:
        jax.block_until_ready(function(*arguments))
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    row = {"compile s": compile_seconds, "value+grad s": seconds(step)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts kilobytes.
    inputs = sum(array.nbytes for array in jax.tree.leaves(arguments)) / 2**20
    cells = sum(level.shape[1] * level.shape[2] for level in arguments[0].cls_scores)
    return row | {
        "priors": cells * head.num_base_priors,
        "targets s": seconds(assign),
        "inputs MiB": inputs,
        "peak MiB": peak,
    }


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """The table of the rows, by head."""
    lines = [f"{'head':<10}" + "".join(f"{column:>14}" for column in COLUMNS)]
    for name, row in rows.items():
        cells = [f"{row[c]:.2f}" if c.endswith(" s") else f"{row[c]:.0f}" for c in COLUMNS]
        lines.append(f"{name:<10}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16, help="number of images")
    parser.add_argument("--boxes", type=int, default=100, help="rows of ground truth per image")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each function")
    parser.add_argument("--quick", action="store_true", help="small images, to see that it runs")
    parser.add_argument(
        "--head", choices=HEADS, help="measure this head only, and print its row as JSON"
    )
    options = parser.parse_args(argv)
    scale = 0.1 if options.quick else 1.0
    if options.head:
        arguments = (options.batch, scale, options.boxes, options.repeats)
        row = measure(options.head, *arguments)
        print(json.dumps(row))
        return {options.head: row}
    given = sys.argv[1:] if argv is None else argv
    rows = {}
    for name in HEADS:
        command = [sys.executable, __file__, *given, "--head", name]
        rows[name] = json.loads(subprocess.run(command, check=True, stdout=-1, text=True).stdout)
    print(f"{options.batch} images, jax {jax.__version__}, {jax.devices()[0].device_kind}")
    print(format_table(rows))
    return rows


if __name__ == "__main__":
    main()
