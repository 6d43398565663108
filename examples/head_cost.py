"""What a detector's loss costs: value and gradient of the four heads on priors at COCO's size.

    python examples/head_cost.py             # 16 images of 800 x 1344 with up to 100 boxes
    python examples/head_cost.py --batch 2

Each head runs in a process of its own, so that its peak memory is its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from visdet_jax import configs
from visdet_jax.detectors import HeadOutputs, build_head

HEADS = {
    "RetinaNet": configs.RETINANET_HEAD,
    "FCOS": configs.FCOS_HEAD,
    "ATSS": configs.ATSS_HEAD,
    "GFL": configs.GFL_HEAD,
}
IMAGE_SHAPE = (800, 1333)
COLUMNS = ("priors", "compile s", "value+grad s", "targets s", "inputs MiB", "peak MiB")


def make_batch(head, batch: int, scale: float, boxes: int, rng: np.random.Generator) -> tuple:
    """Outputs as an untrained network gives them, and boxes of every size."""
    height, width = (round(side * scale) for side in IMAGE_SHAPE)
    priors = head.num_base_priors

    def maps(size: int, make) -> tuple[jax.Array, ...]:
        shapes = [(batch, -(-height // s), -(-width // s), priors * size) for s in head.strides]
        return tuple(jnp.asarray(make(rng.standard_normal(shape, np.float32))) for shape in shapes)

    makers = {
        "cls_scores": lambda x: x - 4,
        "bbox_preds": np.exp if "regress_ranges" in vars(head) else np.asarray,
        "centernesses": np.asarray,
    }
    outputs = HeadOutputs(
        **{name: maps(size, makers[name]) for name, size in head.channels.items()}
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

    def total(outputs, gt_boxes, gt_labels, shapes):
        losses = head.loss(outputs, gt_boxes, gt_labels, shapes, shapes)
        return sum(losses.values())

    def targets(outputs, gt_boxes, gt_labels, shapes):
        return head.targets(outputs, gt_boxes, gt_labels, shapes, shapes)

    started = time.perf_counter()
    step = jax.jit(jax.value_and_grad(total)).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - started
    assign = jax.jit(targets).lower(*arguments).compile()

    def seconds(function) -> float:
        jax.block_until_ready(function(*arguments))
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    row = {"compile s": compile_seconds, "value+grad s": seconds(step)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # kilobytes on Linux
    inputs = sum(x.nbytes for x in jax.tree.leaves(arguments)) / 2**20
    priors = sum(x.shape[1] * x.shape[2] for x in arguments[0].cls_scores) * head.num_base_priors
    return row | {
        "priors": priors,
        "targets s": seconds(assign),
        "inputs MiB": inputs,
        "peak MiB": peak,
    }


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """The rows by head, aligned."""
    lines = [f"{'head':<10}" + "".join(f"{column:>14}" for column in COLUMNS)]
    for name, row in rows.items():
        cells = [f"{row[c]:.2f}" if c.endswith(" s") else f"{row[c]:.0f}" for c in COLUMNS]
        lines.append(f"{name:<10}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    """Prints the table and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--boxes", type=int, default=100, help="rows of ground truth per image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small images, to see that it runs")
    parser.add_argument("--head", choices=HEADS, help="this one alone, as JSON")
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
