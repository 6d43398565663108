"""Train a small detector, whose heads and losses are built from a config in mmdet's form.

    python examples/train_detector.py                      # FCOS on aerial photographs of trees
    python examples/train_detector.py --data digits        # handwritten digits
    python examples/train_detector.py --detector gfl       # another detector of examples/configs
    python examples/train_detector.py --data digits --detector mask_rcnn    # with masks
    python examples/train_detector.py --all                # all detectors, compared
    python examples/train_detector.py --losses my.yaml     # other losses
    python examples/train_detector.py --resume             # continue the last run

A losses file replaces losses of the config by name. In YAML:
    loss_bbox: {type: IoULoss, mode: linear}
or in Python:
    loss_bbox = dict(type="IoULoss", mode="linear")

The folder of a run (runs/<data>-<detector> by default) gets config.json, checkpoints,
metrics.json, losses.png and detections.jpg. With --all each detector has such a folder within
runs/<data>-all.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from detector.coco import Coco
from detector.config import ConfigError, read_options
from detector.data import DataError, Dataset
from detector.digits import Digits
from detector.evaluation import average_precision, detect, format_table
from detector.heads import has_masks, make_heads
from detector.pictures import (
    Detections,
    draw_comparison,
    draw_detections,
    draw_losses,
    draw_totals,
)
from detector.training import Trainer, train_in_folder
from detector.trees import Trees

Metrics = dict[str, Any]


def build_dataset(options: dict[str, Any]) -> Dataset:
    """The data source that the options choose."""
    common = {name: options[name] for name in ("batch_size", "image_size", "max_boxes", "seed")}
    if options["data"] == "trees":
        return Trees(**common, multiple=max(options["strides"]))
    if options["data"] == "digits":
        return Digits(**common)
    paths = ("train_images", "train_json", "val_images", "val_json")
    return Coco(**common, **{name: Path(options[name]) for name in paths})


def run(options: dict[str, Any], out: Path) -> tuple[Metrics, list[Detections]]:
    """Train, or continue, the run in folder `out`; evaluate it; write metrics and pictures.

    Returns: the metrics, and the detections on each validation set.
    """
    started = time.perf_counter()
    dataset = build_dataset(options)
    heads = make_heads(options["model"], len(dataset.class_names), options["strides"])
    trainer = Trainer(heads, options["steps"], options["seed"])
    state = train_in_folder(trainer, dataset, out, options)
    trained = time.perf_counter()

    table: dict[str, dict[str, Any]] = {}
    detections: list[Detections] = []
    for validation in dataset.validation:
        results = detect(trainer.predictor(state, validation.max_detections), validation)
        detections.append((validation, results))
        counts = {
            "images": len(validation.ground_truth["images"]),
            "boxes": sum(not box["iscrowd"] for box in validation.ground_truth["annotations"]),
        }
        table[validation.name] = {**counts, **average_precision(validation, results)}
        if has_masks(heads):
            of_masks = average_precision(validation, results, "segm")
            table[f"{validation.name}, masks"] = {**counts, **of_masks}
    history = trainer.history(state)
    draw_losses(out / "losses.png", history)
    draw_detections(out / "detections.jpg", detections)
    metrics: Metrics = {
        "validation": table,
        "parameters": sum(p.size for p in jax.tree.leaves(state["params"])),
        "train_step_compilations": trainer.step_compilations(),
        "seconds": {
            "training": round(trained - started, 1),
            "evaluation": round(time.perf_counter() - trained, 1),
        },
        "options": options,
        "train_losses": history,
    }
    write_metrics(out, metrics)
    return metrics, detections


def run_all(runs: dict[str, dict[str, Any]], out: Path) -> dict[str, Metrics]:
    """Run each detector in its own folder within `out`, and compare them in `out`."""
    metrics: dict[str, Metrics] = {}
    detections: dict[str, list[Detections]] = {}
    for detector, options in runs.items():
        print(f"\n{detector}", file=sys.stderr)
        metrics[detector], detections[detector] = run(options, out / detector)
    draw_totals(out / "losses.png", {name: m["train_losses"] for name, m in metrics.items()})
    draw_comparison(out / "detections.jpg", detections)
    write_metrics(out, metrics)
    return metrics


def write_metrics(out: Path, metrics: Metrics) -> None:
    """Write metrics.json in the folder `out`."""
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> Metrics:
    """Run the command line and return the content of metrics.json."""
    try:
        runs, out = read_options(argv)
        if len(runs) > 1:
            metrics = run_all(runs, out)
            table = metrics
        else:
            ((detector, options),) = runs.items()
            metrics, _ = run(options, out)
            table = {detector: metrics}
    except (ConfigError, DataError) as error:
        sys.exit(f"train_detector.py: error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; --resume DIR continues from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    print(f"\n{format_table(table)}\n\n{out}: metrics.json, losses.png, detections.jpg")
    return metrics


if __name__ == "__main__":
    main()
