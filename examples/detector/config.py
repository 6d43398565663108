"""The options of a run: presets by data source, the losses file, and the run's folder."""

import argparse
import json
import runpy
from pathlib import Path
from typing import Any

import yaml

RUNS = Path("runs")
CONFIGS = Path(__file__).parents[1] / "configs"
# The first is the default.
DETECTORS = (
    *("fcos", "retinanet", "atss", "gfl", "detr", "faster_rcnn", "mask_rcnn"),
    *("rtmdet", "rtmdet_ins", "yolov8", "dfine"),
)
WITH_MASKS = ("mask_rcnn", "rtmdet_ins")  # These train on the digits only, which have masks.
COCO_PATHS = ("train_images", "train_json", "val_images", "val_json")
PRESETS = {
    "trees": {"steps": 1600, "batch_size": 4, "image_size": 144, "max_boxes": 60},
    "digits": {"steps": 600, "batch_size": 16, "image_size": 96, "max_boxes": 6},
    "coco": {"steps": 3000, "batch_size": 8, "image_size": 256, "max_boxes": 100},
}
# RTMDet's boxes on the digits need more steps: with those of PRESETS, and up to 13 positives a box,
# its AP was 0.865. With these, and up to 5, it is 0.904, in as much time.
DETECTOR_PRESETS = {
    ("digits", "rtmdet"): {"steps": 1200, "batch_size": 8},
    ("digits", "rtmdet_ins"): {"steps": 1200, "batch_size": 8},
    # After 600 steps D-FINE's AP is 0.824, after 1 200 it is 0.918.
    ("digits", "dfine"): {"steps": 1200},
}
STRIDES = {"trees": [4, 8], "digits": [4, 8], "coco": [8, 16, 32]}
QUICK = {"steps": 20, "batch_size": 4}


class ConfigError(ValueError):
    """A fault in the options or the losses file."""


def read_options(argv: list[str] | None) -> tuple[dict[str, dict[str, Any]], Path]:
    """The options of the run to start or to continue, by detector, and its folder.

    With --all there is one run for each detector, and the folder holds theirs.
    """
    given = parse_arguments(argv)
    all_detectors = given.pop("all", False)
    for name in ("detector", "losses", "resume"):
        if all_detectors and name in given:
            raise ConfigError(f"--all trains each detector as it is: leave out --{name}")
    if "losses" in given:
        given["losses"] = load_losses(given["losses"])
    out = given.pop("out", None)
    if "resume" in given:
        folder = given.pop("resume") or out or newest_run_folder()
        options = saved_options(folder, given)
        return {options["detector"]: options}, folder
    options = resolve_options(given)
    detectors = DETECTORS if all_detectors else (options["detector"],)
    if options["data"] != "digits":
        if not all_detectors and options["detector"] in WITH_MASKS:
            raise ConfigError(f"--detector {options['detector']} needs masks: add --data digits")
        detectors = tuple(name for name in detectors if name not in WITH_MASKS)
    suffix = "all" if all_detectors else options["detector"]
    folder = out or new_run_folder(f"{options['data']}-{suffix}")
    for path in (folder, *(folder / name for name in DETECTORS)):
        if (path / "config.json").exists():
            raise ConfigError(f"--out: {path} holds a run already; --resume continues it")
    runs = {}
    for name in detectors:
        own = resolve_options({**given, "detector": name})
        runs[name] = {**own, "model": read_model(name, own["losses"])}
    return runs, folder


def parse_arguments(argv: list[str] | None) -> dict[str, Any]:
    """The options that were given on the command line, by name."""
    parser = argparse.ArgumentParser(
        description="Train a small detector whose head and losses are built from a config.",
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
    add("--detector", choices=DETECTORS, help="a file of examples/configs (default: fcos)")
    add(
        "--all",
        action="store_true",
        help="train all detectors, one after the other, and compare them",
    )
    add(
        "--losses",
        metavar="FILE",
        type=Path,
        help="YAML or Python file that replaces losses of the config by name",
    )
    add(
        "--steps",
        type=positive,
        help="default: trees 1600, digits 600 (RTMDet 1200), own data 3000",
    )
    add("--batch-size", type=positive, help="default: trees 4, digits 16 (RTMDet 8), own data 8")
    add(
        "--image-size",
        type=positive,
        help="side in pixels of the crops of trees (144) or of letterboxed own images (256)",
    )
    add("--max-boxes", type=positive, help="rows that the ground truth of an image is padded to")
    add("--seed", type=int, help="seed of the weights and the data (default: 0)")
    add("--quick", action="store_true", help="a few steps, to see that everything runs")
    add(
        "--out", metavar="DIR", type=Path, help="the run's folder (default: runs/<data>-<detector>)"
    )
    add(
        "--resume",
        metavar="DIR",
        type=Path,
        nargs="?",
        const=None,
        help="continue the run in this folder (default: the run under runs/ that started last)",
    )
    return vars(parser.parse_args(argv))


def positive(text: str) -> int:
    """An integer above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not above 0")
    return number


def resolve_options(given: dict[str, Any]) -> dict[str, Any]:
    """All options of a new run except its model, from those given on the command line."""
    paths = [name for name in COCO_PATHS if name in given]
    if paths and len(paths) < len(COCO_PATHS):
        missing = [f"--{name.replace('_', '-')}" for name in COCO_PATHS if name not in given]
        raise ConfigError(f"own data needs all four paths: {', '.join(missing)} missing")
    if paths and "data" in given:
        raise ConfigError("--data names a built-in data set: leave it out with own data")
    data = "coco" if paths else given.get("data", "trees")
    options: dict[str, Any] = {"data": data}
    detector = given.get("detector", DETECTORS[0])
    options |= {"detector": detector, "losses": {}, "seed": 0, **PRESETS[data]}
    options |= DETECTOR_PRESETS.get((data, detector), {})
    options["strides"] = STRIDES[data]
    if given.get("quick"):
        options |= QUICK
    options |= {k: v for k, v in given.items() if k not in ("data", "quick")}
    if data == "digits" and options["image_size"] != PRESETS["digits"]["image_size"]:
        raise ConfigError("--image-size: the scenes of --data digits are 96 x 96")
    if options["image_size"] % max(options["strides"]):
        raise ConfigError(f"--image-size must be a multiple of {max(options['strides'])}")
    return options


def read_model(detector: str, losses: dict[str, Any]) -> dict[str, Any]:
    """The `model` of examples/configs/<detector>.py, in which `losses` replace its own by name."""
    model: dict[str, Any] = runpy.run_path(str(CONFIGS / f"{detector}.py"))["model"]
    places = _losses_of(model)
    unknown = [name for name in losses if name not in places]
    if unknown:
        raise ConfigError(
            f"--losses: {detector} has no {', '.join(unknown)}, but {', '.join(places)}"
        )
    for name, loss in losses.items():
        config, key = places[name]
        config[key] = loss
    return model


def _losses_of(model: dict[str, Any]) -> dict[str, tuple[dict[str, Any], str]]:
    """Which key of which part of a model each loss is, by the name that its values are shown by.

    The two stages have losses of the same keys. Those of the first are shown as loss_rpn_cls and
    loss_rpn_bbox, as in mmdet.
    """
    second = model.get("roi_head", model)
    parts = [
        ("loss_rpn", model.get("rpn_head", {})),
        ("loss", second.get("bbox_head", {})),
        ("loss", second.get("mask_head", {})),
    ]
    return {
        prefix + key.removeprefix("loss"): (part, key)
        for prefix, part in parts
        for key in part
        if key.startswith("loss_")
    }


def load_losses(path: Path) -> dict[str, dict[str, Any]]:
    """The loss configs in a YAML or Python file, by name: loss_cls, loss_bbox, ..."""
    try:
        if path.suffix == ".py":
            content = runpy.run_path(str(path))
            content = {name: v for name, v in content.items() if name.startswith("loss")}
        else:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({error})") from error
    except Exception as error:  # The user's Python file can raise anything.
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"{path}: must define losses by name, such as loss_bbox")
    return content


def new_run_folder(name: str) -> Path:
    """The first of runs/<name>, runs/<name>-2, runs/<name>-3, ... that does not exist."""
    number, folder = 1, RUNS / name
    while folder.exists():
        number += 1
        folder = RUNS / f"{name}-{number}"
    return folder


def newest_run_folder() -> Path:
    """The folder of the run under runs/ that was started last."""
    configs = sorted(RUNS.rglob("config.json"), key=lambda path: path.stat().st_mtime)
    if not configs:
        raise ConfigError(f"--resume: no run in {RUNS}/")
    return configs[-1].parent


def saved_options(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The options that a run was started with.

    An option that is given now and differs raises a ConfigError, since the run would not end with
    the numbers that it would have reached: another number of steps changes the learning rate
    schedule, another seed the order of the data.
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
