"""The two pictures of a run: loss curves, and detections over ground truth."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from .data import ValidationSet

# Okabe and Ito's palette, which the colour-blind tell apart too
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
SKY, VERMILION = "#56B4E9", "#D55E00"
TRUTH = {"fill": False, "edgecolor": SKY, "linestyle": "--", "linewidth": 1.8}
DETECTION = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.6}
MAX_PANELS = 8
MAX_SIDE = 640  # pixels of an image that are shown: of a larger one its middle
SCORE_THRESHOLD = 0.4


def draw_losses(path: Path, history: dict[str, list[float]]) -> None:
    """One panel per loss over the steps: each step's value, and a running mean."""
    figure, panels = plt.subplots(1, len(history), figsize=(12, 3.8), dpi=100, layout="constrained")
    for panel, (name, values), color in zip(
        panels, history.items(), (BLUE, ORANGE, GREEN), strict=True
    ):
        steps = np.arange(1, len(values) + 1)
        width = max(1, len(values) // 20)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        panel.plot(steps, values, color=color, alpha=0.3, linewidth=0.8, label="each step")
        panel.plot(
            steps[width - 1 :], smooth, color=color, linewidth=2, label=f"mean of {width} steps"
        )
        panel.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path)
    plt.close(figure)


def draw_detections(path: Path, found: list[tuple[ValidationSet, list[dict]]]) -> None:
    """Images of each validation set with ground truth (dashed) and detections (solid)."""
    panels = [
        (validation, index, results)
        for validation, results in found
        for index in range(min(len(validation.ground_truth["images"]), MAX_PANELS // len(found)))
    ]
    crops = [_middle(validation.load(index)[0].shape) for validation, index, _ in panels]
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    aspect = [(x2 - x1) / (y2 - y1) for x1, y1, x2, y2 in crops[:columns]]
    width = 13.0
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, rows * (width / sum(aspect) + 0.25) + 0.4),
        dpi=100,
        width_ratios=aspect,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.ravel():
        axis.axis("off")
    for axis, (validation, index, results), crop in zip(axes.ravel(), panels, crops, strict=False):
        _draw_image(axis, validation, index, results, crop)
    handles = [Rectangle((0, 0), 1, 1, **style) for style in (TRUTH, DETECTION)]
    names = ["ground truth", f"detection, score ≥ {SCORE_THRESHOLD}"]
    figure.legend(handles, names, loc="outside upper center", ncols=2, fontsize=12, frameon=False)
    figure.savefig(path, pil_kwargs={"quality": 85})
    plt.close(figure)


def _draw_image(
    axis: Axes,
    validation: ValidationSet,
    index: int,
    results: list[dict],
    crop: tuple[int, int, int, int],
) -> None:
    image, place = validation.load(index)
    image_id = validation.ground_truth["images"][index]["id"]
    names = {c["id"]: c["name"] for c in validation.ground_truth["categories"]}
    truth = [
        a
        for a in validation.ground_truth["annotations"]
        if a["image_id"] == image_id and not a["iscrowd"]
    ]
    shown = [r for r in results if r["image_id"] == image_id and r["score"] >= SCORE_THRESHOLD]
    shown.reverse()  # the best is drawn last, above the others
    top = crop[1] + 0.06 * (crop[3] - crop[1])  # a label above a box that starts here is cut off
    axis.imshow(image)
    for entries, style in ((shown, DETECTION), (truth, TRUTH)):  # dashes above a line show both
        for entry in entries:
            x, y, w, h = entry["bbox"]
            ((x1, y1, x2, y2),) = place.forward(np.array([[x, y, x + w, y + h]])) - 0.5
            axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))
            if len(names) > 1 and entries is shown:
                axis.text(
                    x1,
                    y1,
                    f"{names[entry['category_id']]} {entry['score']:.2f}",
                    verticalalignment="top" if y1 < top else "bottom",
                    fontsize=9,
                    color="white",
                    clip_on=True,
                    bbox={"facecolor": VERMILION, "edgecolor": "none", "pad": 1},
                )
    axis.set(xlim=(crop[0] - 0.5, crop[2] - 0.5), ylim=(crop[3] - 0.5, crop[1] - 0.5))
    single = len(validation.ground_truth["images"]) == 1
    axis.set_title(validation.name if single else f"{validation.name}, image {image_id}")


def _middle(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    height, width = shape[:2]
    x, y = max(0, (width - MAX_SIDE) // 2), max(0, (height - MAX_SIDE) // 2)
    return x, y, min(width, x + MAX_SIDE), min(height, y + MAX_SIDE)
