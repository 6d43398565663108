"""Detections on a validation set, and their average precision by pycocotools."""

import contextlib
import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .data import ValidationSet, encode_masks

METRICS = ("AP", "AP50", "AP75")

Predict = Callable[[np.ndarray], dict[str, Any]]


def detect(predict: Predict, validation: ValidationSet) -> list[dict[str, Any]]:
    """Detections in COCO's result format, in pixels of the original images.

    Args:
      predict: Takes an image uint8 (H, W, 3) and returns boxes (K, 4), scores (K,), labels (K,),
        exists (K,), which slots hold a detection, and of a detector with masks also masks
        (K, H, W). A validation set with masks must not be letterboxed.
      validation: The images.
    """
    results: list[dict[str, Any]] = []
    for index, image_info in enumerate(validation.ground_truth["images"]):
        image, place = validation.load(index)
        found = {name: np.asarray(value) for name, value in predict(image).items()}
        found = {name: rows[found["exists"]] for name, rows in found.items()}
        boxes = place.backward(found["boxes"])
        of_image = [
            {
                "image_id": image_info["id"],
                "category_id": validation.category_ids[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for (x1, y1, x2, y2), score, label in zip(
                boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
            )
        ]
        if "masks" in found:
            for result, code in zip(of_image, encode_masks(found["masks"]), strict=True):
                result["segmentation"] = code
        results += of_image
    return results


def average_precision(
    validation: ValidationSet, results: list[dict[str, Any]], of: Literal["bbox", "segm"] = "bbox"
) -> dict[str, float | None]:
    """AP (mean over IoU 0.50 to 0.95), AP50 and AP75, each from 0 to 1.

    They are None for a validation set without objects, where precision has no meaning.

    Args:
      validation: The ground truth.
      results: The detections, from `detect`.
      of: Whether the IoU is that of boxes or of masks ("segm").
    """
    if all(annotation["iscrowd"] for annotation in validation.ground_truth["annotations"]):
        return dict.fromkeys(METRICS)
    if not results:  # pycocotools raises for an empty list
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = validation.ground_truth
        truth.createIndex()
        # Keep the copies: loadRes adds the corners of the boxes to its rows as "segmentation".
        coco_eval = COCOeval(truth, truth.loadRes([dict(row) for row in results]), of)
        coco_eval.params.maxDets = [validation.max_detections]
        coco_eval.evaluate()
        coco_eval.accumulate()
    # The axes are IoU threshold, recall, category, area range, max detections; a category without
    # ground truth is -1. Do not call summarize(): it wants exactly 100 detections per image.
    precision = coco_eval.eval["precision"][..., 0, 0]
    thresholds = coco_eval.params.iouThrs
    chosen = {"AP": thresholds > 0, "AP50": thresholds == 0.5, "AP75": np.isclose(thresholds, 0.75)}
    means: dict[str, float | None] = {}
    for name, at in chosen.items():
        values = precision[at]
        values = values[values >= 0]
        means[name] = float(values.mean()) if values.size else None
    return means


def format_table(runs: dict[str, dict[str, Any]]) -> str:
    """One line per detector and validation set with average precisions and the run's seconds.

    An average precision that is not available is shown as n/a.

    Args:
      runs: By detector, the metrics that `run` of train_detector.py returns.
    """
    rows = [
        (detector, name, row, sum(metrics["seconds"].values()))
        for detector, metrics in runs.items()
        for name, row in metrics["validation"].items()
    ]
    width = max(len(name) for name in ("validated on", *(name for _, name, _, _ in rows)))
    first = max(len(name) for name in ("detector", *runs))
    header = f"{'detector':<{first}}  {'validated on':<{width}}  images  boxes"
    header += "".join(f"{m:>7}" for m in METRICS) + "  seconds"
    lines = [header, "-" * len(header)]
    for detector, name, row, seconds in rows:
        values = "".join(
            f"{'n/a' if row[metric] is None else format(row[metric], '.3f'):>7}"
            for metric in METRICS
        )
        lines.append(
            f"{detector:<{first}}  {name:<{width}}  {row['images']:>6}  {row['boxes']:>5}{values}"
            f"{seconds:9.0f}"
        )
    return "\n".join(lines)
