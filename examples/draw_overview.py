"""Draws the picture of the front page: outputs and padded ground truth in, losses out.

    python examples/draw_overview.py [--out examples/pictures/overview.jpg]

The photograph, the ground truth, what each point learns, the detections and the losses are real.
The outputs of the network are not: they are made of the ground truth, with boxes that are moved, so
that nothing has to be trained.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image

from visdet_jax.detectors import DenseHead, HeadOutputs, build_head

HERE = Path(__file__).parent
TREES = HERE / "data" / "trees"
PHOTOGRAPH, LEFT, TOP, SIDE = "YELL_528000_4978000.jpg", 688, 928, 128  # pixels
SLOTS = 12  # boxes an image may have
STRIDES = (8, 16)
# Okabe and Ito's palette, whose colours the colour-blind can tell apart.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")
DETECTION, TRUTH = "#FF6D00", "#00D5FF"


def ground_truth() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of the photograph, its boxes (G, 4) and labels (G,); the last slots are padding."""
    data = json.loads((TREES / "instances.json").read_text())
    image = next(x for x in data["images"] if x["file_name"] == PHOTOGRAPH)
    found = [x["bbox"] for x in data["annotations"] if x["image_id"] == image["id"]]
    corners = np.array(found, np.float32) - [LEFT, TOP, 0, 0]
    corners[:, 2:] += corners[:, :2]
    whole = ((corners[:, :2] >= 0) & (corners[:, 2:] <= SIDE)).all(axis=1)
    count = whole.sum()
    assert count < SLOTS, f"{count} boxes, which leave no padding"
    boxes = np.full((SLOTS, 4), np.nan, np.float32)
    labels = np.full(SLOTS, -1, np.int32)
    boxes[:count], labels[:count] = corners[whole], 0
    pixels = np.asarray(Image.open(TREES / PHOTOGRAPH).convert("RGB"))
    return pixels[TOP : TOP + SIDE, LEFT : LEFT + SIDE], boxes, labels


def outputs_near(head: DenseHead, boxes: np.ndarray, labels: jax.Array) -> HeadOutputs:
    """Outputs of a network that finds the boxes, but a little beside them."""
    sizes = [SIDE // stride for stride in STRIDES]
    empty = HeadOutputs(
        cls_scores=[jnp.zeros((1, n, n, 1)) for n in sizes],
        bbox_preds=[jnp.ones((1, n, n, 4)) for n in sizes],
        centernesses=[jnp.zeros((1, n, n, 1)) for n in sizes],
    )
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    moved = boxes + np.random.default_rng(3).normal(0, 0.09, boxes.shape) * sides
    targets: Any = head.targets(empty, jnp.asarray(moved[None], jnp.float32), labels[None])
    positive = targets.bbox_weights[..., None] > 0
    centerness = jnp.clip(targets.centerness[..., None], 0.02, 0.98)
    noise = jax.random.normal(jax.random.key(0), positive.shape)
    maps = {
        "cls_scores": jnp.where(positive, 2 * centerness + 0.4 * noise, -4.5 + 0.5 * noise),
        "bbox_preds": targets.bbox_targets,
        "centernesses": jnp.log(centerness / (1 - centerness)),
    }
    ends = np.cumsum([n * n for n in sizes])[:-1]
    levels: dict[str, Any] = {
        name: [
            x.reshape(1, n, n, -1)
            for n, x in zip(sizes, jnp.split(values, ends, axis=1), strict=True)
        ]
        for name, values in maps.items()
    }
    return HeadOutputs(**levels)


def draw(path: Path) -> dict[str, float]:
    """Draws the picture, and gives back the losses that it shows."""
    head = build_head(
        {
            "type": "FCOSHead",
            "num_classes": 1,
            "strides": STRIDES,
            "regress_ranges": ((-1, 16), (16, 1e8)),
            "center_sampling": True,
            "norm_on_bbox": True,
            "loss_bbox": {"type": "GIoULoss"},
            "test_cfg": {"score_thr": 0.3, "nms": {"type": "nms", "iou_threshold": 0.5}},
        }
    )
    photograph, boxes, labels = ground_truth()
    outputs = outputs_near(head, boxes, jnp.asarray(labels))
    losses = {k: float(v) for k, v in head.loss(outputs, boxes[None], labels[None]).items()}
    learnt = np.asarray(head.targets(outputs, boxes[None], labels[None]).gt_inds[0])
    found = head.detect(outputs)

    figure, axes = plt.subplots(
        1, 4, figsize=(14.4, 4.75), dpi=100, width_ratios=(1, 1, 1, 0.72), facecolor="white"
    )
    figure.subplots_adjust(left=0.008, right=0.985, top=0.89, bottom=0.23, wspace=0.12)
    titles = ("outputs of a network", "padded ground truth", "what each point learns", "losses")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=16, pad=9)
    for axis, sign in zip(axes, "+→→", strict=False):
        axis.text(1.062, 0.5, sign, transform=axis.transAxes, fontsize=24, ha="center", va="center")
        axis.imshow(photograph, extent=(0, SIDE, SIDE, 0), interpolation="bicubic")
        axis.set(xlim=(0, SIDE), ylim=(SIDE, 0), xticks=[], yticks=[])
    for box, score, exists in zip(found.boxes[0], found.scores[0], found.exists[0], strict=True):
        if exists:
            draw_box(axes[0], box, DETECTION)
            label(axes[0], box, f"{score:.2f}", DETECTION)
    caption(axes[0], "HeadOutputs: maps of each level,\nas the boxes and scores they stand for")
    for index in np.flatnonzero(labels >= 0):
        draw_box(axes[1], boxes[index], TRUTH)
        label(axes[1], boxes[index], str(index), TRUTH)
    draw_slots(axes[1], labels)
    draw_points(axes[2], head, learnt, boxes)
    caption(axes[2], "a dot for each prior: of a box's colour,\nor white for background")
    draw_bars(axes[3], losses)
    figure.text(
        0.5,
        0.015,
        "losses = head.loss(outputs, gt_boxes, gt_labels)",
        family="monospace",
        fontsize=17,
        ha="center",
        va="bottom",
    )
    figure.savefig(path, pil_kwargs={"quality": 88} if path.suffix == ".jpg" else {})
    plt.close(figure)
    return losses


def draw_box(axis: Axes, box: Any, color: str) -> None:
    x1, y1, x2, y2 = (float(x) for x in box)
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, lw=2.4))


def label(axis: Axes, box: Any, text: str, color: str) -> None:
    style = {"facecolor": color, "edgecolor": "none", "pad": 1.2}
    x, y = max(float(box[0]), 1), max(float(box[1]), 6)
    axis.text(x, y, text, fontsize=11, va="bottom", bbox=style)


def caption(axis: Axes, text: str) -> None:
    axis.text(0.5, -0.03, text, transform=axis.transAxes, fontsize=12, ha="center", va="top")


def draw_slots(axis: Axes, labels: np.ndarray) -> None:
    """gt_labels as a row of cells below the photograph, grey where they are padding."""
    width = 1 / len(labels)
    for index, value in enumerate(labels):
        padding = value < 0
        cell = Rectangle(
            (index * width, -0.105),
            width,
            0.08,
            transform=axis.transAxes,
            facecolor="0.82" if padding else TRUTH,
            edgecolor="white",
            clip_on=False,
        )
        axis.add_patch(cell)
        axis.text(
            (index + 0.5) * width,
            -0.068,
            str(value),
            transform=axis.transAxes,
            fontsize=12,
            ha="center",
            va="center",
        )
    axis.text(
        0.5,
        -0.12,
        "gt_labels: -1 is padding, whatever its box holds",
        transform=axis.transAxes,
        fontsize=12,
        ha="center",
        va="top",
    )


def draw_points(axis: Axes, head: DenseHead, learnt: np.ndarray, boxes: np.ndarray) -> None:
    """The priors of all levels, larger ones for larger strides."""
    axis.images[0].set_alpha(0.55)
    sizes = tuple((SIDE // stride, SIDE // stride) for stride in STRIDES)
    grid = head.grid(sizes, np.float32)
    (x, y), strides = np.asarray(grid.priors).T, np.asarray(grid.strides)
    free = learnt <= 0
    axis.scatter(x[free], y[free], s=strides[free] * 0.9, c="white", linewidths=0, alpha=0.85)
    for index in np.unique(learnt[~free]):
        color, of_box = COLORS[(index - 1) % len(COLORS)], learnt == index
        size = strides[of_box] * 5
        axis.scatter(x[of_box], y[of_box], s=size, c=color, edgecolors="black", linewidths=0.9)
        draw_box(axis, boxes[index - 1], color)


def draw_bars(axis: Axes, losses: dict[str, float]) -> None:
    for side in ("top", "right", "bottom", "left"):
        axis.spines[side].set_visible(False)
    axis.set(xticks=[], yticks=[], xlim=(0, 1.25 * max(losses.values())), ylim=(2.9, -0.6))
    for index, (name, value) in enumerate(losses.items()):
        axis.barh(index + 0.12, value, height=0.3, color="0.45")
        axis.text(0, index - 0.12, name, fontsize=14, family="monospace", va="bottom")
        axis.text(value, index + 0.12, f" {value:.3f}", fontsize=13, va="center")
    caption(axis, "one compiled call,\nwith gradients")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "pictures" / "overview.jpg")
    for name, value in draw(parser.parse_args().out).items():
        print(f"{name} {value:.4f}")


if __name__ == "__main__":
    main()
