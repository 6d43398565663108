"""What DETR's matching costs beside scipy's: 900 queries, up to 100 boxes, 16 images.

    python examples/matching.py
    python examples/matching.py --quick

The costs are Deformable DETR's (focal loss, L1, GIoU), for an untrained network, whose queries lie
anywhere, and a trained one, of which nine queries lie near each box and compete for it. scipy's
`linear_sum_assignment` gets the same matrices, without padding, one by one, as in mmdet; the time
to bring them to the host is not counted. The contenders take turns, and medians are compared.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from visdet_jax import configs
from visdet_jax.detectors import DETROutputs, Instances, build_head, hungarian

IMAGE_SHAPE = (800, 1333)
CLASSES = 80
COLUMNS = ("match ms", "scipy ms", "x", "costs ms", "compile s", "temp MiB", "loss+grad ms")


def make_batch(images: int, queries: int, boxes: int, trained: bool, layers: int) -> tuple:
    """Outputs (layers, images, queries, ...), and ground truth padded to `boxes`."""
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(0.02), np.log(0.5), (images, boxes, 2)))
    centre = rng.uniform(size / 2, 1 - size / 2)
    labels = rng.integers(CLASSES, size=(images, boxes))
    shape = (layers, images, queries)
    preds = np.concatenate(
        [rng.uniform(0, 1, (*shape, 2)), rng.uniform(0.02, 0.5, (*shape, 2))], -1
    )
    logits = rng.normal(-4, 1, (*shape, CLASSES))
    if trained:
        own = np.arange(queries) % boxes  # of each query
        truth = np.concatenate([centre, size], -1)[:, own]
        preds = truth * rng.normal(1, 0.1, preds.shape)
        of_class = labels[:, own, None] == np.arange(CLASSES)
        logits += of_class * rng.uniform(0, 6, (*shape, 1))
    height, width = IMAGE_SHAPE
    scale = np.array([width, height, width, height])
    corners = np.concatenate([centre - size / 2, centre + size / 2], -1) * scale
    counts = rng.integers(boxes + 1, size=(images, 1))
    labels = np.where(np.arange(boxes) < counts, labels, -1).astype(np.int32)
    outputs = DETROutputs(jnp.asarray(logits, jnp.float32), jnp.asarray(preds, jnp.float32))
    shapes = np.tile(np.array(IMAGE_SHAPE, np.int32), (images, 1))
    return outputs, jnp.asarray(corners, jnp.float32), jnp.asarray(labels), jnp.asarray(shapes)


def measure(batch: tuple, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    head = build_head(**configs.DEFORMABLE_DETR_HEAD)
    gt_labels = batch[2]
    mask = gt_labels >= 0

    def costs_of(outputs, gt_boxes, gt_labels, shapes):
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

    def loss(outputs, *ground_truth):
        return sum(head.loss(outputs, *ground_truth).values())

    make_costs = jax.jit(costs_of)
    costs = make_costs(*batch)
    jax.clear_caches()  # of another row's compilation
    started = time.perf_counter()
    match = jax.jit(hungarian).lower(costs, mask).compile()
    compile_seconds = time.perf_counter() - started
    value_and_grad = jax.jit(jax.value_and_grad(loss))
    on_host, real = np.asarray(costs, np.float64), np.asarray(mask)
    matrices = [cost[:, kept] for cost, kept in zip(on_host, real, strict=True)]

    def by_scipy():
        return [linear_sum_assignment(matrix) for matrix in matrices]

    contenders = {
        "match ms": lambda: match(costs, mask),
        "scipy ms": by_scipy,
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
    row = {name: statistics.median(values) for name, values in times.items()}

    found = np.asarray(match(costs, mask))
    ours = [cost[g > 0, g[g > 0] - 1].sum() for g, cost in zip(found, on_host, strict=True)]
    best = [m[pairs].sum() for m, pairs in zip(matrices, by_scipy(), strict=True)]
    return row | {
        "x": row["match ms"] / row["scipy ms"],
        "compile s": compile_seconds,
        "temp MiB": match.memory_analysis().temp_size_in_bytes / 2**20,
        "excess": max(np.subtract(ours, best) / np.abs(best).clip(1)),
    }


def main(argv: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Prints the table and returns its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=900)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--layers", type=int, default=1, help="of loss+grad")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="a few, to see that it runs")
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
    for name in ("untrained", "trained"):
        batch = make_batch(*sizes, name == "trained", options.layers)
        rows[name] = row = measure(batch, options.repeats)
        print(f"{name:<10}" + "".join(f"{row[column]:>14.2f}" for column in COLUMNS))
    excess = max(row["excess"] for row in rows.values())
    print(f"the totals are above scipy's by {excess:.0e} at most, of float32 costs")
    return rows


if __name__ == "__main__":
    main()
