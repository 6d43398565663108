"""Train a small detector, one of five, whose losses are built from a config in mmdet's form.

    python examples/train_detector.py                      # FCOS on aerial photographs of trees
    python examples/train_detector.py --data digits        # handwritten digits
    python examples/train_detector.py --detector gfl       # or another of examples/configs
    python examples/train_detector.py --all                # all five, side by side
    python examples/train_detector.py --losses my.yaml     # other losses
    python examples/train_detector.py --resume             # continue the last run

A losses file replaces losses of the config by name. YAML:
    loss_bbox: {type: IoULoss, mode: linear}
or Python:
    loss_bbox = dict(type="IoULoss", mode="linear")

A run's folder (runs/<data>-<detector> by default) gets config.json, checkpoints, metrics.json,
losses.png and detections.jpg; with --all each detector has such a folder within runs/<data>-all.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax

from detector.coco import Coco
from detector.config import ConfigError, read_options
from detector.data import DataError, Dataset, ValidationSet
from detector.digits import Digits
from detector.evaluation import average_precision, detect, format_table
from detector.heads import make_head
from detector.pictures import draw_comparison, draw_detections, draw_losses, draw_totals
from detector.training import Trainer, train_in_folder
from detector.trees import Trees

Found = list[tuple[ValidationSet, list[dict]]]


def build_dataset(options: dict[str, Any]) -> Dataset:
    """The data source that the options name."""
    common = {name: options[name] for name in ("batch_size", "image_size", "max_boxes", "seed")}
    if options["data"] == "trees":
        return Trees(**common, multiple=max(options["strides"]))
    if options["data"] == "digits":
        return Digits(**common)
    paths = ("train_images", "train_json", "val_images", "val_json")
    return Coco(**common, **{name: Path(options[name]) for name in paths})


def run(options: dict[str, Any], out: Path) -> tuple[dict, Found]:
    """Train, or continue, the run in folder `out`; evaluate it and write metrics and pictures."""
    started = time.perf_counter()
    dataset = build_dataset(options)
    head = make_head(options["model"], len(dataset.class_names), options["strides"])
    trainer = Trainer(head, options["steps"], options["seed"])
    state = train_in_folder(trainer, dataset, out, options)
    trained = time.perf_counter()

    table, found = {}, []
    for validation in dataset.validation:
        results = detect(trainer.predictor(state, validation.max_detections), validation)
        found.append((validation, results))
        table[validation.name] = {
            "images": len(validation.ground_truth["images"]),
            "boxes": sum(not a["iscrowd"] for a in validation.ground_truth["annotations"]),
            **average_precision(validation, results),
        }
    history = trainer.history(state)
    draw_losses(out / "losses.png", history)
    draw_detections(out / "detections.jpg", found)
    metrics = {
        "validation": table,
        "parameters": sum(p.size for p in jax.tree.leaves(state["params"])),
        "train_step_compilations": trainer.step._cache_size(),
        "seconds": {
            "training": round(trained - started, 1),
            "evaluation": round(time.perf_counter() - trained, 1),
        },
        "options": options,
        "train_losses": history,
    }
    write_metrics(out, metrics)
    return metrics, found


def run_all(runs: dict[str, dict[str, Any]], out: Path) -> dict[str, dict]:
    """Run each detector in a folder of its own within `out`; compare them there."""
    metrics, found = {}, {}
    for detector, options in runs.items():
        print(f"\n{detector}", file=sys.stderr)
        metrics[detector], found[detector] = run(options, out / detector)
    draw_totals(out / "losses.png", {name: m["train_losses"] for name, m in metrics.items()})
    draw_comparison(out / "detections.jpg", found)
    write_metrics(out, metrics)
    return metrics


def write_metrics(out: Path, metrics: dict) -> None:
    """What was found out, as metrics.json."""
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> dict:
    """Run the command line and return what metrics.json holds."""
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
