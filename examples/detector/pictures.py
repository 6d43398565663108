"""Pictures of one run and of several: loss curves, and detections over ground truth."""

import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from .data import Letterbox, ValidationSet, decode_mask

# Okabe and Ito's palette, whose colours the colour-blind can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
SKY, VERMILION, PURPLE = "#56B4E9", "#D55E00", "#CC79A7"
TRUTH: dict[str, Any] = {"fill": False, "edgecolor": SKY, "linestyle": "--", "linewidth": 1.8}
DETECTION: dict[str, Any] = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.6}
MASK: dict[str, Any] = {"facecolor": (*to_rgb(GREEN), 0.4), "edgecolor": GREEN, "linewidth": 1.2}
MAX_COLUMNS = 3  # of losses
MAX_PANELS = 8  # images of one run
MAX_SIDE = 640  # pixels; of a larger image the middle is shown
MAX_ROWS = 4  # where detectors are compared
MAX_COMPARED = 5  # detectors in a row
COMPARED_SIDE = 230  # MAX_SIDE, where detectors are compared
SCORE_THRESHOLD = 0.4  # of a detection that is shown

Detections = tuple[ValidationSet, list[dict[str, Any]]]  # in COCO's result format
Panel = tuple[ValidationSet, int, list[dict[str, Any]], str]  # set, image, detections, title
Crop = tuple[int, int, int, int]  # x1, y1, x2, y2


def draw_losses(path: Path, history: dict[str, list[float]]) -> None:
    """Draw a panel for each loss over the steps: the value of each step, and a running mean."""
    rows = math.ceil(len(history) / MAX_COLUMNS)
    columns = math.ceil(len(history) / rows)
    size = (12, (4.2 if columns < MAX_COLUMNS else 3.8) * rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=size, dpi=100, layout="constrained", squeeze=False
    )
    for panel in panels.flat[len(history) :]:
        panel.axis("off")
    colors = (BLUE, ORANGE, GREEN, VERMILION, PURPLE)
    for panel, (name, values), color in zip(panels.flat, history.items(), colors, strict=False):
        width, ends, mean = _running_mean(values)
        steps = np.arange(1, len(values) + 1)
        panel.plot(steps, values, color=color, alpha=0.3, linewidth=0.8, label="each step")
        panel.plot(ends, mean, color=color, linewidth=2, label=f"mean of {width} steps")
        panel.set(title=name, xlabel="step", ylabel="loss", ylim=(0, None))
        panel.grid(alpha=0.3)
        panel.legend()
    figure.savefig(path)
    plt.close(figure)


def draw_totals(path: Path, histories: dict[str, dict[str, list[float]]]) -> None:
    """Draw the sum of the losses of each detector over the steps, as a running mean."""
    figure, panel = plt.subplots(figsize=(11, 5.2), dpi=100, layout="constrained")
    colors = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, "black", ORANGE, GREEN, PURPLE, SKY)
    styles = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), "-", "--", "-", "-", "-", "--")
    lines = itertools.cycle(zip(colors, styles, strict=True))
    for (name, history), (color, dashes) in zip(histories.items(), lines, strict=False):
        _, ends, mean = _running_mean(np.sum(list(history.values()), axis=0))
        panel.plot(ends, mean, linestyle=dashes, color=color, linewidth=2.5, label=name)
    panel.set(xlabel="step", ylabel="sum of the losses, mean of 5 % of the steps", yscale="log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")
    panel.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=12, handlelength=3, frameon=False)
    figure.savefig(path)
    plt.close(figure)


def draw_detections(path: Path, detections: list[Detections]) -> None:
    """Draw images of each validation set with ground truth (dashed) and detections (solid)."""
    panels: list[Panel] = [
        (validation, index, results, _title(validation, index))
        for validation, results in detections
        for index in _first_images(validation, MAX_PANELS // len(detections))
    ]
    places = [validation.load(index)[1] for validation, index, *_ in panels]
    wide = all(place.width > 2 * place.height for place in places)
    columns = 1 if wide else min(4, len(panels))
    _draw_grid(path, [panels[i : i + columns] for i in range(0, len(panels), columns)], MAX_SIDE)


def draw_comparison(path: Path, detections: dict[str, list[Detections]]) -> None:
    """Draw a column for each detector and a row for each of a few images, or several rows."""
    sets = [validation for validation, _ in next(iter(detections.values()))]
    lines = math.ceil(len(detections) / MAX_COMPARED)
    columns = math.ceil(len(detections) / lines)
    rows = []
    for number, validation in enumerate(sets):
        for index in _first_images(validation, max(1, MAX_ROWS // (len(sets) * lines))):
            row: list[Panel] = []
            for name, detections_of_sets in detections.items():
                results = detections_of_sets[number][1]
                row.append((validation, index, results, f"{name}\n{_title(validation, index)}"))
            rows += [row[i : i + columns] for i in range(0, len(row), columns)]
    _draw_grid(path, rows, COMPARED_SIDE)


def _first_images(validation: ValidationSet, count: int) -> range:
    """The indices of the first images of a set."""
    return range(min(len(validation.ground_truth["images"]), count))


def _title(validation: ValidationSet, index: int) -> str:
    """The name of a validation set, and of the image if there are several."""
    images = validation.ground_truth["images"]
    return (
        validation.name if len(images) == 1 else f"{validation.name}, image {images[index]['id']}"
    )


def _draw_grid(path: Path, rows: list[list[Panel]], max_side: int) -> None:
    """Draw rows of panels, of each image its middle of at most `max_side` pixels."""
    crops = [
        [_middle(validation.load(index)[1], max_side) for validation, index, *_ in row]
        for row in rows
    ]
    aspects = [[(x2 - x1) / (y2 - y1) for x1, y1, x2, y2 in row] for row in crops]
    width = 13.0
    # The last row may have fewer panels. They are as wide as those above.
    heights = [width * len(row) / len(aspects[0]) / sum(row) for row in aspects]
    figure, axes = plt.subplots(
        len(rows),
        len(rows[0]),
        figsize=(width, sum(heights) + 0.25 * len(rows) + 0.4),
        dpi=100,
        width_ratios=aspects[0],
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.ravel():
        axis.axis("off")
    for row, row_axes, row_crops in zip(rows, axes, crops, strict=True):
        for (validation, index, results, title), axis, crop in zip(
            row, row_axes, row_crops, strict=False
        ):
            _draw_image(axis, validation, index, results, crop)
            axis.set_title(title)
    styles = {"ground truth": TRUTH, f"detection, score ≥ {SCORE_THRESHOLD}": DETECTION}
    results = [result for row in rows for _, _, of_set, _ in row for result in of_set]
    if any("segmentation" in result for result in results):
        styles["its mask"] = MASK
    handles = [Rectangle((0, 0), 1, 1, label=name, **style) for name, style in styles.items()]
    figure.legend(
        handles=handles,
        loc="outside upper center",
        ncols=len(handles),
        fontsize=12,
        frameon=False,
    )
    figure.savefig(path, pil_kwargs={"quality": 85})
    plt.close(figure)


def _running_mean(values: list[float]) -> tuple[int, np.ndarray, np.ndarray]:
    """The number of steps that are averaged, the last step of each mean, and the means."""
    width = max(1, len(values) // 20)
    mean = np.convolve(values, np.ones(width) / width, mode="valid")
    return width, np.arange(width, len(values) + 1), mean


def _draw_image(
    axis: Axes,
    validation: ValidationSet,
    index: int,
    results: list[dict[str, Any]],
    crop: Crop,
) -> None:
    """Draw the part of an image in `crop`, with its ground truth and its detections."""
    image, place = validation.load(index)
    image_id = validation.ground_truth["images"][index]["id"]
    names = {c["id"]: c["name"] for c in validation.ground_truth["categories"]}
    truth = [
        a
        for a in validation.ground_truth["annotations"]
        if a["image_id"] == image_id and not a["iscrowd"]
    ]
    shown = [r for r in results if r["image_id"] == image_id and r["score"] >= SCORE_THRESHOLD]
    shown.reverse()  # The best detection is drawn last, above the others.
    # Above a box that starts higher than this, a label would be cut off.
    top = crop[1] + 0.06 * (crop[3] - crop[1])
    axis.imshow(image)
    for result in shown:
        if "segmentation" in result:
            _draw_mask(axis, decode_mask(result["segmentation"]))
    # Ground truth comes last: its dashes leave the line of a detection below them visible.
    for entries, style in ((shown, DETECTION), (truth, TRUTH)):
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


def _draw_mask(axis: Axes, mask: np.ndarray) -> None:
    """Colour the pixels of a mask (H, W), which stay visible, and draw its outline."""
    axis.imshow(mask[..., None] * np.array(MASK["facecolor"]))
    if mask.any():  # Of nothing, contour would warn.
        # Padded, or there would be no line where the mask touches the image's border.
        padded, (rows, columns) = np.pad(mask, 1), (np.arange(-1, side + 1) for side in mask.shape)
        axis.contour(
            columns, rows, padded, [0.5], colors=MASK["edgecolor"], linewidths=MASK["linewidth"]
        )


def _middle(place: Letterbox, max_side: int) -> Crop:
    """The middle of an image without its padding, at most `max_side` pixels wide and high."""
    ((x1, y1, x2, y2),) = place.forward(np.array([[0, 0, place.width, place.height]])).astype(int)
    x, y = max(x1, (x1 + x2 - max_side) // 2), max(y1, (y1 + y2 - max_side) // 2)
    return int(x), int(y), int(min(x2, x + max_side)), int(min(y2, y + max_side))
