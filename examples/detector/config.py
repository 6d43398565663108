"""Options: presets by data source, the losses file, and the folder of a run."""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

import yaml

RUNS = Path("runs")
LOSS_NAMES = ("loss_cls", "loss_bbox", "loss_centerness")
COCO_PATHS = ("train_images", "train_json", "val_images", "val_json")
PRESETS = {
    "trees": {"steps": 800, "batch_size": 4, "image_size": 224, "strides": [4, 8]},
    "digits": {"steps": 600, "batch_size": 16, "image_size": 96, "strides": [4, 8]},
    "coco": {"steps": 3000, "batch_size": 8, "image_size": 256, "strides": [8, 16, 32]},
}
QUICK = {"steps": 20, "batch_size": 4}


class ConfigError(ValueError):
    """A fault in the options or the losses file."""


def read_options(argv: list[str] | None, losses: dict[str, dict]) -> tuple[dict[str, Any], Path]:
    """The options of the run to start or to continue, and its folder.

    `losses` are the configs that a losses file replaces.
    """
    given = parse_arguments(argv)
    if "losses" in given:
        given["losses"] = load_losses(given["losses"])
    out = given.pop("out", None)
    if "resume" in given:
        folder = given.pop("resume") or out or newest_run_folder()
        return saved_options(folder, given), folder
    options = {"losses": losses, **resolve_options(given)}
    folder = out or new_run_folder(options["data"])
    if (folder / "config.json").exists():
        raise ConfigError(f"--out: {folder} holds a run already; --resume continues it")
    return options, folder


def parse_arguments(argv: list[str] | None) -> dict[str, Any]:
    """The options that were given, by name."""
    parser = argparse.ArgumentParser(
        description="Train a small FCOS detector whose losses are built from config dicts.",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--data", choices=["trees", "digits"], help="built-in data (default: trees)")
    add(
        "--train-images", metavar="DIR", help="own data in COCO format: all four, instead of --data"
    )
    add("--train-json", metavar="FILE")
    add("--val-images", metavar="DIR")
    add("--val-json", metavar="FILE")
    add("--losses", metavar="FILE", type=Path, help="YAML or Python: loss_cls, loss_bbox, ...")
    add("--steps", type=positive, help="default: trees 800, digits 600, own data 3000")
    add("--batch-size", type=positive, help="default: trees 4, digits 16, own data 8")
    add(
        "--image-size",
        type=positive,
        help="side of the crops of trees (224) or of letterboxed own images (256)",
    )
    add("--max-boxes", type=positive, help="rows that ground truth is padded to (default: 100)")
    add("--seed", type=int, help="of weights and data (default: 0)")
    add("--quick", action="store_true", help="a few steps, to see that everything runs")
    add("--out", metavar="DIR", type=Path, help="the run's folder (default: runs/<data>)")
    add("--resume", metavar="DIR", type=Path, nargs="?", const=None, help="default: the last run")
    return vars(parser.parse_args(argv))


def positive(text: str) -> int:
    """An integer above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def resolve_options(given: dict[str, Any]) -> dict[str, Any]:
    """All options of a new run, but for its losses, from those given on the command line."""
    paths = [name for name in COCO_PATHS if name in given]
    if paths and len(paths) < len(COCO_PATHS):
        missing = [f"--{name.replace('_', '-')}" for name in COCO_PATHS if name not in given]
        raise ConfigError(f"own data needs all four paths: {', '.join(missing)} missing")
    if paths and "data" in given:
        raise ConfigError("--data names a built-in data set: leave it out with own data")
    data = "coco" if paths else given.get("data", "trees")
    options = {"data": data, "seed": 0, "max_boxes": 100, **PRESETS[data]}
    if given.get("quick"):
        options |= QUICK
    options |= {k: v for k, v in given.items() if k not in ("data", "quick")}
    if data == "digits" and options["image_size"] != PRESETS["digits"]["image_size"]:
        raise ConfigError("--image-size: the scenes of --data digits are 96 x 96")
    if options["image_size"] % max(options["strides"]):
        raise ConfigError(f"--image-size must be a multiple of {max(options['strides'])}")
    return options


def load_losses(path: Path) -> dict[str, dict]:
    """The loss configs in a YAML or Python file, by name: loss_cls, loss_bbox, loss_centerness."""
    try:
        if path.suffix == ".py":
            content = {k: v for k, v in runpy.run_path(str(path)).items() if k.startswith("loss")}
        else:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    except Exception as error:  # whatever the user's Python file raises
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or set(content) != set(LOSS_NAMES):
        raise ConfigError(f"{path}: must define {', '.join(LOSS_NAMES)}, and no other loss")
    return content


def new_run_folder(data: str) -> Path:
    """The first of runs/<data>, runs/<data>-2, runs/<data>-3, ... that is not taken."""
    number, folder = 1, RUNS / data
    while folder.exists():
        number += 1
        folder = RUNS / f"{data}-{number}"
    return folder


def newest_run_folder() -> Path:
    """The run under runs/ that was started last."""
    configs = sorted(RUNS.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ConfigError(f"--resume: no run in {RUNS}/")
    return configs[-1].parent


def saved_options(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The options a run was started with; one given now that differs is refused.

    Other steps would be another learning rate schedule, another seed another order of the data:
    the run would not continue to the numbers it was heading for.
    """
    path = folder / "config.json"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"--resume: {folder} holds no run (no config.json)") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    for name, value in given.items():
        if name != "quick" and options.get(name) != value:
            raise ConfigError(
                f"--resume: {folder} was started with {name} = {options.get(name)}, not {value}"
            )
    return options
