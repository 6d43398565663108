"""The time of DETR's matching and of scipy's: 900 queries, up to 100 boxes, 16 images.

    python examples/matching.py
    python examples/matching.py --quick

The costs are Deformable DETR's (focal loss, L1, GIoU). They are made for an untrained network,
whose queries lie anywhere; for a trained one, in which nine queries lie near each box and compete
for it; and for one that begins, whose queries are nearly equal, so that all boxes want the same
ones. scipy's `linear_sum_assignment` gets the same matrices without padding, one by one,
as in mmdet; the time to copy them to the host is not counted. The contenders take turns, and their
medians are compared.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from visdet_jax import configs
from visdet_jax.detectors import DETROutputs, Instances, build_head, hungarian

IMAGE_SHAPE = (800, 1333)  # height, width
CLASSES = 80
NETWORKS = ("untrained", "trained", "beginning")
COLUMNS = ("match ms", "scipy ms", "x", "costs ms", "compile s", "temp MiB", "loss+grad ms")


Batch = tuple[DETROutputs, jax.Array, jax.Array, jax.Array]


def make_batch(images: int, queries: int, boxes: int, network: str, layers: int) -> Batch:
    """Outputs (layers, images, queries, ...), padded boxes and labels, and image shapes.

    Args:
      images: Number of images.
      queries: Number of queries of each image.
      boxes: Rows of ground truth for each image, of which a random number is not padding.
      network: One of NETWORKS. Of a trained one the queries lie near the boxes, and their logits
        near the labels.
      layers: Number of decoder layers.
    """
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.5), (images, boxes, 2)))
    centre = rng.uniform(size / 2, 1 - size / 2)
    labels = rng.integers(CLASSES, size=(images, boxes))
    shape = (layers, images, queries)
    preds = np.concatenate(
        [rng.uniform(0, 1, (*shape, 2)), rng.uniform(0.02, 0.5, (*shape, 2))], -1
    )
    logits = rng.normal(-4, 1, (*shape, CLASSES))
    if network == "beginning":
        preds, logits = rng.normal(0.5, 0.02, preds.shape), rng.normal(-4, 0.1, logits.shape)
    if network == "trained":
        nearest = np.arange(queries) % boxes  # The box near which each query lies.
        truth = np.concatenate([centre, size], -1)[:, nearest]
        preds = truth * rng.normal(1, 0.1, preds.shape)
        is_label = labels[:, nearest, None] == np.arange(CLASSES)
        logits += is_label * rng.uniform(0, 6, (*shape, 1))
    height, width = IMAGE_SHAPE
    scale = np.array([width, height, width, height])
    corners = np.concatenate([centre - size / 2, centre + size / 2], -1) * scale
    counts = rng.integers(boxes + 1, size=(images, 1))
    labels = np.where(np.arange(boxes) < counts, labels, -1).astype(np.int32)
    outputs = DETROutputs(jnp.asarray(logits, jnp.float32), jnp.asarray(preds, jnp.float32))
    shapes = np.tile(np.array(IMAGE_SHAPE, np.int32), (images, 1))
    return outputs, jnp.asarray(corners, jnp.float32), jnp.asarray(labels), jnp.asarray(shapes)


def measure(batch: Batch, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    head = build_head(**configs.DEFORMABLE_DETR_HEAD)
    gt_labels = batch[2]
    mask = gt_labels >= 0

    def matching_costs(
        outputs: DETROutputs, gt_boxes: jax.Array, gt_labels: jax.Array, shapes: jax.Array
    ) -> jax.Array:
        x, y, w, h = jnp.moveaxis(outputs.bbox_preds[-1], -1, 0)
        height, width = shapes[:, :1].astype(x.dtype), shapes[:, 1:].astype(x.dtype)
        sides = (
            (x - w / 2) * width,
            (y - h / 2) * height,
            (x + w / 2) * width,
            (y + h / 2) * height,
        )
        pred = Instances(scores=outputs.cls_scores[-1], bboxes=jnp.stack(sides, -1))
        gt = Instances(labels=gt_labels, bboxes=gt_boxes)
        return jax.vmap(head.assigner.cost)(pred, gt, shapes)

    def total_loss(outputs: DETROutputs, *ground_truth: jax.Array) -> jax.Array:
        return sum(head.loss(outputs, *ground_truth).values())

    make_costs = jax.jit(matching_costs)
    costs = make_costs(*batch)
    jax.clear_caches()  # Otherwise the second row would find the program of the first.
    started = time.perf_counter()
    match = jax.jit(hungarian).lower(costs, mask).compile()
    compile_seconds = time.perf_counter() - started
    value_and_grad = jax.jit(jax.value_and_grad(total_loss))
    host_costs, host_mask = np.asarray(costs, np.float64), np.asarray(mask)
    matrices = [cost[:, real] for cost, real in zip(host_costs, host_mask, strict=True)]

    def scipy_match() -> list[tuple[np.ndarray, np.ndarray]]:
        return [linear_sum_assignment(matrix) for matrix in matrices]

    contenders: dict[str, Callable[[], Any]] = {
        "match ms": lambda: match(costs, mask),
        "scipy ms": scipy_match,
        "costs ms": lambda: make_costs(*batch),
        "loss+grad ms": lambda: value_and_grad(*batch),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        jax.block_until_ready(call())
    for _ in range(repeats):
        for name, call in contenders.items():
            started = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(1e3 * (time.perf_counter() - started))
    row: dict[str, Any] = {name: statistics.median(values) for name, values in times.items()}

    found = np.asarray(match(costs, mask))
    totals = [
        cost[gt_inds > 0, gt_inds[gt_inds > 0] - 1].sum()
        for gt_inds, cost in zip(found, host_costs, strict=True)
    ]
    scipy_totals = [
        matrix[pairs].sum() for matrix, pairs in zip(matrices, scipy_match(), strict=True)
    ]
    return row | {
        "x": row["match ms"] / row["scipy ms"],
        "compile s": compile_seconds,
        "temp MiB": match.memory_analysis().temp_size_in_bytes / 2**20,
        "excess": max(np.subtract(totals, scipy_totals) / np.abs(scipy_totals).clip(1)),
    }


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=900, help="of each image")
    parser.add_argument("--boxes", type=int, default=100, help="rows of ground truth per image")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1, help="decoder layers of loss+grad")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each contender")
    parser.add_argument("--quick", action="store_true", help="small inputs, to see that it runs")
    options = parser.parse_args(argv)
    sizes = (options.images, options.queries, options.boxes)
    if options.quick:
        sizes, options.repeats = (2, 30, 5), 1
    print(
        f"{sizes[1]} queries, {sizes[2]} boxes, {sizes[0]} images, {options.layers} layers, jax "
        f"{jax.__version__}, {jax.devices()[0].device_kind}"
    )
    print(f"{'network':<10}" + "".join(f"{column:>14}" for column in COLUMNS))
    rows = {}
    for name in NETWORKS:
        batch = make_batch(*sizes, name, options.layers)
        rows[name] = row = measure(batch, options.repeats)
        print(f"{name:<10}" + "".join(f"{row[column]:>14.2f}" for column in COLUMNS))
    excess = max(row["excess"] for row in rows.values())
    print(f"the total costs, of float32, exceed scipy's by at most {excess:.0e}")
    return rows


if __name__ == "__main__":
    main()
