"""Detections on a validation set, and their average precision by pycocotools."""

import contextlib
import io
from collections.abc import Callable

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .data import ValidationSet

METRICS = ("AP", "AP50", "AP75")


def detect(predict: Callable, validation: ValidationSet) -> list[dict]:
    """Detections in COCO's result format, in pixels of the original images.

    predict takes an image uint8 (H, W, 3) and gives boxes (K, 4), scores (K,) and labels (K,).
    """
    results = []
    for index, image_info in enumerate(validation.ground_truth["images"]):
        image, place = validation.load(index)
        found = {name: np.asarray(value) for name, value in predict(image).items()}
        boxes = place.backward(found["boxes"])
        for (x1, y1, x2, y2), score, label in zip(
            boxes.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        ):
            if score > 0:
                results.append(
                    {
                        "image_id": image_info["id"],
                        "category_id": validation.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "score": score,
                    }
                )
    return results


def average_precision(validation: ValidationSet, results: list[dict]) -> dict[str, float]:
    """AP (mean over IoU 0.50 to 0.95), AP50 and AP75, each from 0 to 1."""
    if not results:  # pycocotools refuses an empty list
        return dict.fromkeys(METRICS, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = validation.ground_truth
        truth.createIndex()
        coco_eval = COCOeval(truth, truth.loadRes(results), "bbox")
        coco_eval.params.maxDets = [validation.max_detections]
        coco_eval.evaluate()
        coco_eval.accumulate()
    # (IoU threshold, recall, category, area range, max detections); a category without ground
    # truth is -1. summarize() would insist on 100 detections per image.
    precision = coco_eval.eval["precision"][..., 0, 0]
    thresholds = coco_eval.params.iouThrs
    chosen = {"AP": thresholds > 0, "AP50": thresholds == 0.5, "AP75": np.isclose(thresholds, 0.75)}
    means = {}
    for name, at in chosen.items():
        values = precision[at]
        values = values[values >= 0]
        means[name] = float(values.mean()) if values.size else 0.0
    return means


def format_table(runs: dict[str, dict]) -> str:
    """One line per detector and validation set with average precisions and the run's seconds.

    runs: what `run` of train_detector.py gives, by detector.
    """
    rows = [
        (detector, name, row, sum(metrics["seconds"].values()))
        for detector, metrics in runs.items()
        for name, row in metrics["validation"].items()
    ]
    width = max(len(name) for name in ("validated on", *(name for _, name, _, _ in rows)))
    header = f"detector   {'validated on':<{width}}  images  boxes"
    header += "".join(f"{m:>7}" for m in METRICS) + "  seconds"
    lines = [header, "-" * len(header)]
    for detector, name, row, seconds in rows:
        values = "".join(f"{row[metric]:7.3f}" for metric in METRICS)
        lines.append(
            f"{detector:<9}  {name:<{width}}  {row['images']:>6}  {row['boxes']:>5}{values}"
            f"{seconds:9.0f}"
        )
    return "\n".join(lines)
