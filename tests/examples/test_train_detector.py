"""The training example: its data, evaluation and options, and whole runs of its detectors."""

import contextlib
import copy
import io
import json
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from PIL import Image

import train_detector
from detector import (
    coco,
    config,
    data,
    detr,
    digits,
    evaluation,
    heads,
    network,
    postprocess,
    training,
    trees,
)
from detector.config import DETECTORS, ConfigError, load_losses, read_model
from detector.data import IGNORED, PADDING
from visdet_jax.detectors import DETROutputs, HeadOutputs

pytestmark = pytest.mark.example

LOSSES = {
    "loss_cls": {"type": "FocalLoss", "gamma": 1.5, "alpha": 0.25},
    "loss_bbox": {"type": "IoULoss", "mode": "linear"},
}


def coco_content():
    """Images 0 to 4, 60 x 40 pixels, each with one box of category 7 and one of category 3."""
    annotations = [
        {
            "id": 10 * image + category,
            "image_id": image,
            "category_id": category,
            "bbox": [5 + 4 * image, category, 20, 15 + category],
        }
        for image in range(5)
        for category in (3, 7)
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in range(5)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "wide"}, {"id": 3, "name": "high"}],
    }


def write_coco(folder, content):
    rng = np.random.default_rng(0)
    for image in coco_content()["images"]:
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), np.uint8)
        Image.fromarray(pixels).save(folder / image["file_name"])
    (folder / "train.json").write_text(json.dumps(content))
    (folder / "val.json").write_text(json.dumps(coco_content()))


def coco_options(folder):
    return [
        *("--train-images", str(folder), "--train-json", str(folder / "train.json")),
        *("--val-images", str(folder), "--val-json", str(folder / "val.json")),
    ]


# ---------------------------------------------------------------- whole runs


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(tmp_path_factory):
    """Runs compile the same programs again: they find them in a cache."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def all_runs(tmp_path_factory):
    """All detectors, a few steps each on the same few digits; and what was printed."""
    folder, first_batch = tmp_path_factory.mktemp("runs") / "all", digits.Digits.train_batch
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(digits, "VALIDATION_SCENES", 4)
        patch.setattr(digits.Digits, "train_batch", lambda self, step: first_batch(self, 0))
        patch.setitem(config.STRIDES, "digits", [8])  # one level compiles faster
        patch.setattr(detr, "LAYERS", 2)
        patch.setattr(training, "CHECKPOINTS", 1)
        metrics = train_detector.main(["--all", *DIGITS, *FEW, "--out", str(folder)])
    return folder, metrics, out.getvalue()


DIGITS = ["--data", "digits"]
FEW = ["--quick", "--steps", "8", "--batch-size", "2"]


@pytest.mark.parametrize(
    ("detector", "names"),
    [
        ("fcos", ["loss_bbox", "loss_centerness", "loss_cls"]),
        ("retinanet", ["loss_bbox", "loss_cls"]),
        ("atss", ["loss_bbox", "loss_centerness", "loss_cls"]),
        ("gfl", ["loss_bbox", "loss_cls", "loss_dfl"]),
        ("detr", ["loss_bbox", "loss_cls", "loss_iou"]),
    ],
)
def test_each_detector_trains(all_runs, detector, names):
    folder, all_metrics, _ = all_runs
    metrics = json.loads((folder / detector / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(all_metrics[detector]))  # tuples become lists
    assert metrics["train_step_compilations"] == 1
    assert metrics["options"]["detector"] == detector
    assert json.loads((folder / detector / "config.json").read_text()) == metrics["options"]
    for row in metrics["validation"].values():
        assert 0 <= row["AP"] <= row["AP50"] <= 1
        assert 0 <= row["AP75"] <= row["AP50"]
    losses = metrics["train_losses"]
    assert sorted(losses) == names
    values = np.array(list(losses.values()))
    assert values.shape == (len(names), metrics["options"]["steps"])
    assert np.isfinite(values).all()
    assert values.min() > 0
    assert losses["loss_bbox"][-1] < losses["loss_bbox"][0]
    if detector != "gfl":  # whose class loss learns the IoUs of the boxes: it rises with them
        assert losses["loss_cls"][-1] < losses["loss_cls"][0]


def test_all_writes_one_table_and_pictures(all_runs):
    folder, metrics, out = all_runs
    assert list(metrics) == list(DETECTORS)
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    lines = out.strip().splitlines()
    assert lines[0].split() == [
        "detector",
        "validated",
        "on",
        "images",
        "boxes",
        "AP",
        "AP50",
        "AP75",
        "seconds",
    ]
    assert [line.split()[0] for line in lines[2 : 2 + len(DETECTORS)]] == list(DETECTORS)
    for parts in (".", *DETECTORS):
        for name in ("losses.png", "detections.jpg"):
            with Image.open(folder / parts / name) as picture:
                assert 1000 <= picture.width <= 1400
                assert np.asarray(picture.convert("L")).std() > 10, f"{parts}/{name} is blank"


@pytest.mark.parametrize("argv", [["--all"], ["--all", "--quick"], []])
def test_a_finished_folder_is_not_overwritten(all_runs, argv):
    folder = all_runs[0] if argv else all_runs[0] / "gfl"
    with pytest.raises(SystemExit, match="holds a run already"):
        train_detector.main([*argv, *DIGITS, "--out", str(folder)])


@pytest.fixture(scope="module")
def coco_argv(tmp_path_factory):
    """Five images of coloured rectangles in COCO format, as the four options."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, coco_content())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.STRIDES, "coco", [8])
        yield coco_options(folder)


@pytest.fixture(scope="module")
def straight_run(coco_argv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINTS", 1)
        return folder, train_detector.main([*coco_argv, *SMALL, "--out", str(folder)])


SMALL = ["--steps", "6", "--batch-size", "2", "--image-size", "64", "--max-boxes", "8"]


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="bit for bit on the CPU only")
def test_resumed_run_equals_uninterrupted_run(coco_argv, straight_run, tmp_path, monkeypatch):
    straight_folder, straight = straight_run
    train_batch = coco.Coco.train_batch

    def interrupted(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return train_batch(self, step)

    out = tmp_path / "resumed"
    monkeypatch.setattr(coco.Coco, "train_batch", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train_detector.main([*coco_argv, *SMALL, "--out", str(out)])
    assert stopped.value.code == 130
    assert last_checkpoint(out)["step"] == 3

    seen = []

    def recorded(self, step):
        seen.append(step)
        return train_batch(self, step)

    monkeypatch.setattr(coco.Coco, "train_batch", recorded)
    resumed = train_detector.main(["--resume", str(out)])
    assert seen == [3, 4, 5]
    assert resumed["train_step_compilations"] == 1
    assert resumed["train_losses"] == straight["train_losses"]
    assert resumed["validation"] == straight["validation"]
    jax.tree.map(
        np.testing.assert_array_equal, last_checkpoint(out), last_checkpoint(straight_folder)
    )


def test_resume_refuses_other_options(straight_run):
    folder, _ = straight_run
    with pytest.raises(SystemExit, match="was started with steps = 6, not 7"):
        train_detector.main(["--resume", str(folder), "--steps", "7"])
    with pytest.raises(SystemExit, match="was started with detector = fcos, not gfl"):
        train_detector.main(["--resume", str(folder), "--detector", "gfl"])


def test_resume_without_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no run in runs"):
        train_detector.main(["--resume"])


def test_losses_file_changes_only_the_loss_it_changes(coco_argv, straight_run, tmp_path):
    losses = tmp_path / "losses.yaml"
    losses.write_text("loss_bbox: {type: IoULoss, mode: linear}")
    changed = ["--steps", "1", "--losses", str(losses), "--out", str(tmp_path / "run")]
    run = train_detector.main([*coco_argv, *SMALL, *changed])
    (giou,), (iou,) = (m["train_losses"]["loss_bbox"][:1] for m in (straight_run[1], run))
    assert 0 < iou < giou  # 1 - IoU against 1 - IoU + (hull - union) / hull
    for name in ("loss_cls", "loss_centerness"):
        np.testing.assert_allclose(
            run["train_losses"][name][0], straight_run[1]["train_losses"][name][0], rtol=1e-5
        )


def last_checkpoint(folder):
    with ocp.CheckpointManager(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(checkpoints.latest_step(), args=ocp.args.StandardRestore(None))


# ---------------------------------------------------------------- options and losses files


def test_losses_files_in_yaml_and_python_agree(tmp_path):
    yaml_file, python_file = tmp_path / "losses.yml", tmp_path / "losses.py"
    yaml_file.write_text(
        "loss_cls: {type: FocalLoss, gamma: 1.5, alpha: 0.25}\n"
        "loss_bbox: {type: IoULoss, mode: linear}\n"
    )
    python_file.write_text("\n".join(f"{name} = {config}" for name, config in LOSSES.items()))
    assert load_losses(yaml_file) == load_losses(python_file) == LOSSES
    head = heads.make_head(read_model("fcos", LOSSES), 3, [4, 8])
    assert head.loss_cls.gamma == 1.5
    assert type(head.loss_bbox).__name__ == "IoULoss"
    assert type(head.loss_centerness).__name__ == "CrossEntropyLoss"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("losses.yaml", None, "cannot be read"),
        ("losses.yaml", "loss_cls: {type: [", "not valid YAML"),
        ("losses.yaml", "- loss_cls", "must define losses by name"),
        ("losses.py", "name = 'loss_cls'", "must define losses by name"),
        ("losses.py", "loss_cls = dict(", "SyntaxError"),
        ("losses.py", "loss_cls = undefined", "NameError"),
    ],
)
def test_broken_losses_file(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load_losses(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("detector", "losses", "message"),
    [
        ("fcos", {"loss_cls": {"type": "FocusLoss"}}, "FCOS: .*FocusLoss.*FocalLoss"),
        ("fcos", {"loss_cls": {"gamma": 2.0}}, "FCOS: .*needs a key 'type'"),
        ("gfl", {"loss_dfl": {"type": "DistributionFocalLoss", "bins": 3}}, "GFL: .*no key 'bins'"),
        ("atss", {"loss_cls": "focal"}, "ATSS: .*loss_cls"),
        ("retinanet", {"loss_bbox": {"type": "IoULoss", "mode": "root"}}, "RetinaNet: .*mode"),
        ("gfl", {"loss_cls": {"type": "FocalLoss"}}, "GFL: .*loss_cls"),
        ("fcos", {"loss_cls": {"type": "GHMC", "momentum": 0.5}}, "loss_cls keeps running"),
        (
            "retinanet",
            {"loss_centerness": {"type": "MSELoss"}},
            "retinanet has no loss_centerness, but loss_cls, loss_bbox",
        ),
    ],
)
def test_losses_that_do_not_fit(tmp_path, detector, losses, message):
    file = tmp_path / "losses.yaml"
    file.write_text(json.dumps(losses))  # JSON is YAML
    argv = ["--detector", detector, "--losses", str(file), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=f"(?s)error: .*{message}"):
        train_detector.main([*argv, *DIGITS, *FEW])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train-images", "a", "--val-json", "b"], "--train-json, --val-images missing"),
        (["--data", "digits", "--image-size", "128"], "96 x 96"),
        (["--image-size", "100"], "multiple of 8"),
        (["--all", "--detector", "gfl"], "leave out --detector"),
        (["--all", "--losses", "my.yaml"], "leave out --losses"),
        (["--all", "--resume"], "leave out --resume"),
        (
            ["--data", "trees", *coco_options(Path("folder"))],
            "leave it out",
        ),
    ],
)
def test_options_that_do_not_fit(argv, message):
    with pytest.raises(SystemExit, match=message):
        train_detector.main(argv)


# ---------------------------------------------------------------- own data in COCO format


def change(*path_and_value):
    """A function that sets content[path[0]][path[1]]... to a value."""

    def apply(content):
        *path, last, value = path_and_value
        for key in path:
            content = content[key]
        content[last] = value

    return apply


BOX = ("annotations", 3, "bbox")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change("annotations", 3, "category_id", 4), "annotation 17: unknown category 4"),
        (change("annotations", 3, "image_id", 99), "annotation 17: unknown image 99"),
        (change(*BOX, [9, 9, 0, 5]), "annotation 17: bbox .* has no area"),
        (change(*BOX, [9, 9, 5, -5]), "annotation 17: bbox .* has no area"),
        (change(*BOX, [61, 9, 5, 5]), "annotation 17: bbox .* has no area in the 60 x 40 image"),
        (change(*BOX, [9, 9, 5]), "annotation 17: bbox .* is not four numbers"),
        (change(*BOX, [9, 9, 5, float("nan")]), "annotation 17: bbox .* is not four numbers"),
        (change("annotations", 3, {"id": 17}), "annotations, id 17: no 'image_id'"),
        (change("annotations", None), "no list of annotations"),
        (change("images", []), "list of images is empty"),
        (change("images", 1, "file_name", "gone.png"), "gone.png: no such image file"),
        (change("images", 1, "file_name", "train.json"), "train.json: not a readable image"),
        (change("images", 1, "width", 61), "1.png: 60 x 40 pixels, but .* says"),
        (
            change("categories", 0, "name", "odd"),
            r"category 7 \(wide\) is not in the training file",
        ),
    ],
)
def test_fault_in_own_data_is_named(tmp_path, fault, message):
    content = coco_content()
    fault(content)
    write_coco(tmp_path, content)
    with pytest.raises(SystemExit, match=message) as stopped:
        train_detector.main([*coco_options(tmp_path), "--out", str(tmp_path / "run")])
    assert str(tmp_path) in str(stopped.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("{", "not valid JSON"), ("[]", "JSON list")]
)
def test_json_file_that_is_none(tmp_path, text, message):
    write_coco(tmp_path, coco_content())
    (tmp_path / "val.json").unlink()
    if text is not None:
        (tmp_path / "val.json").write_text(text)
    with pytest.raises(SystemExit, match=f"val.json: .*{message}"):
        train_detector.main(coco_options(tmp_path))


def test_image_cut_short_is_named(tmp_path):
    write_coco(tmp_path, coco_content())
    broken = tmp_path / "2.png"
    broken.write_bytes(broken.read_bytes()[:3000])  # the size can still be read
    own = coco.CocoFile(tmp_path, tmp_path / "train.json")
    with pytest.raises(data.DataError, match=r"2\.png: not a readable image"):
        own.read(2)


def make_coco(folder, **options):
    files = (folder, folder / "train.json", folder, folder / "val.json")
    return coco.Coco(
        *files, **{"batch_size": 5, "image_size": 60, "max_boxes": 8, "seed": 0, **options}
    )


def test_too_many_boxes_are_counted(tmp_path):
    content = coco_content()
    for annotation in content["annotations"][2:6]:
        annotation["image_id"] = 0  # 6 boxes: 4 too many
    content["annotations"][9]["image_id"] = 3  # 3 boxes: 1 too many
    write_coco(tmp_path, content)
    with pytest.warns(UserWarning, match=r"more than 2 boxes: 2; .* out of training: 5 "):
        own = make_coco(tmp_path, max_boxes=2)
    assert own.train_batch(0)["boxes"].shape == (5, 2, 4)


def test_own_data_batch(tmp_path, monkeypatch):
    content = coco_content()
    content["annotations"][1]["iscrowd"] = 1  # category 7 of image 0
    write_coco(tmp_path, content)
    (tmp_path / "val.json").write_text(json.dumps(content))
    monkeypatch.setattr(coco, "flip", lambda image, boxes: (image, boxes))
    own = make_coco(tmp_path)
    assert [a["iscrowd"] for a in own.validation[0].ground_truth["annotations"]] == [0, 1] + [0] * 8
    assert own.class_names == ["high", "wide"]
    batch = own.train_batch(0)  # 5 of 5 images: each of them once
    first = int(np.argmin(batch["boxes"][:, :, 0].max(axis=1)))  # x is 5 + 4 * image
    order = np.argsort(batch["boxes"][:, 0, 0])
    assert batch["labels"][order][:, :3].tolist() == [
        [0, PADDING, PADDING],
        *[[1, 0, PADDING]] * 4,
    ]  # larger boxes first; the crowd is left out
    np.testing.assert_allclose(batch["boxes"][first, 0], [5, 13, 25, 31])  # 10 rows of bar above
    assert own.validation[0].category_ids == [3, 7]


def test_each_image_once_per_pass(tmp_path, monkeypatch):
    write_coco(tmp_path, coco_content())
    own = make_coco(tmp_path, batch_size=2)
    read = []
    original = coco.CocoFile.read
    monkeypatch.setattr(
        coco.CocoFile, "read", lambda self, index: read.append(index) or original(self, index)
    )
    for step in range(5):
        own.train_batch(step)
    assert sorted(read[:5]) == sorted(read[5:]) == [0, 1, 2, 3, 4]
    assert read[:5] != read[5:]


@pytest.mark.parametrize(("width", "height"), [(60, 40), (41, 97), (300, 7), (64, 64)])
def test_letterbox_geometry(width, height):
    rng = np.random.default_rng(width)
    box = np.array([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]]).round()
    x1, y1, x2, y2 = box[0].astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    canvas, place = coco.letterbox(image, 64)
    assert canvas.shape == (64, 64, 3)
    rows, columns = np.nonzero(canvas[..., 0] > 127)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(place.forward(box)[0], painted, atol=1)
    rows, columns = np.nonzero(coco.letterbox(np.full_like(image, 255), 64)[0][..., 0] == 255)
    np.testing.assert_allclose(
        place.forward(np.array([[0, 0, width, height]]))[0],
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        atol=1e-3,
    )

    boxes = np.sort(rng.uniform(0, [width, height], (20, 2, 2)), axis=1).reshape(20, 4)
    np.testing.assert_allclose(place.backward(place.forward(boxes)), boxes, atol=1e-3)
    beyond = place.forward(np.array([[-5.0, -5.0, width + 5.0, height + 5.0]]))
    np.testing.assert_allclose(place.backward(beyond), [[0, 0, width, height]])


# ---------------------------------------------------------------- built-in data


def test_trees_split_has_no_leak(monkeypatch):
    """Left of the border every pixel is 0, right of it 255; a crop is of one colour."""
    original = trees._read_photograph

    def marked(file_name):
        image, boxes, labels = original(file_name)
        image = np.zeros_like(image)
        image[:, 920:] = 255  # 80 % of 1150
        return image, boxes, labels

    monkeypatch.setattr(trees, "_read_photograph", marked)
    dataset = make_trees(batch_size=64)
    assert dataset.image.shape == (1236, 920, 3)
    for step in range(5):
        assert dataset.train_batch(step)["images"].std(axis=(1, 2, 3)).max() == 0
    strip, place = dataset.validation[0].load(0)
    assert strip.min() == 255
    assert (place.width, place.height) == (230, 1236)
    # each crown is an object on one side of the border only
    objects = sum(not a["iscrowd"] for a in dataset.validation[0].ground_truth["annotations"])
    assert objects + (dataset.labels >= 0).sum() == 574
    assert 0 < (dataset.labels == IGNORED).sum() < 24


def test_trees_detections_are_not_capped_below_the_crowns():
    for validation in make_trees().validation:
        assert validation.max_detections > len(validation.ground_truth["annotations"])


def test_trees_batches_follow_from_seed_and_step():
    first, again, other = make_trees(seed=1), make_trees(seed=1), make_trees(seed=2)
    batch = first.train_batch(7)
    jax.tree.map(np.testing.assert_array_equal, batch, again.train_batch(7))
    assert (batch["images"] != first.train_batch(8)["images"]).any()
    assert (batch["images"] != other.train_batch(7)["images"]).any()


def test_augmentation_moves_boxes_with_their_pixels(monkeypatch):
    """Every painted pixel of a crop lies in a box, and every pixel of a box is painted."""
    # a box of which less than half lies in the crop is not learned
    monkeypatch.setattr(data, "VISIBLE", 0.0)
    boxes = np.array(
        [(x, y, x + 12, y + 7) for x in range(0, 1140, 20) for y in range(0, 1225, 15)], np.float32
    )
    image = np.zeros((1236, 1150, 3), np.uint8)
    for x1, y1, x2, y2 in boxes.astype(int):
        image[y1:y2, x1:x2] = 200
    labels = np.zeros(len(boxes), np.int32)
    monkeypatch.setattr(trees, "_read_photograph", lambda name: (image, boxes, labels))
    batch = make_trees(batch_size=32, max_boxes=200).train_batch(0)
    shapes = set()
    for pixels, crop_boxes, crop_labels in zip(*batch.values(), strict=True):
        covered = np.zeros(pixels.shape[:2], bool)
        for x1, y1, x2, y2 in crop_boxes[crop_labels != PADDING].astype(int):
            covered[y1:y2, x1:x2] = True
            shapes.add((x2 - x1, y2 - y1))
        np.testing.assert_array_equal(covered, pixels[..., 0] > pixels.min())
    assert {(12, 7), (7, 12)} <= shapes  # some were transposed, some were not


@pytest.mark.parametrize("move", [data.flip, data.transpose])
def test_flip_and_transpose(move):
    image = np.zeros((30, 50, 3), np.uint8)
    image[4:9, 11:31] = 1
    moved, ((x1, y1, x2, y2),) = move(image, np.array([[11, 4, 31, 9]]))
    assert moved[y1:y2, x1:x2].all()
    assert moved.sum() == image.sum()
    assert (moved.shape != image.shape) or (moved != image).any()


def test_cut_keeps_halves_and_ignores_rests():
    boxes = np.array([[0, 0, 10, 10], [15, 0, 25, 10], [14, 0, 24, 10], [18, 2, 28, 4]]) + 0.0
    kept, labels = data.cut(boxes, np.array([3, 3, 3, 3]), (0, 0, 20, 5))
    assert labels.tolist() == [3, IGNORED, IGNORED, IGNORED]
    kept, labels = data.cut(boxes, np.array([3, 3, 3, 3]), (20, 0, 40, 20))
    assert labels.tolist() == [3, IGNORED, 3]  # the first lies outside
    np.testing.assert_array_equal(kept, [[0, 0, 5, 10], [0, 0, 4, 10], [0, 2, 8, 4]])


def make_trees(**options):
    return trees.Trees(
        **{"batch_size": 4, "image_size": 96, "max_boxes": 100, "multiple": 8, "seed": 0, **options}
    )


def test_digits_train_and_validation_are_disjoint(monkeypatch):
    """The first 1437 digits are painted grey, the others white."""
    bunch = copy.deepcopy(digits.load_digits())
    bunch.images[:1437] = 8
    bunch.images[1437:] = 16
    monkeypatch.setattr(digits, "load_digits", lambda: bunch)
    dataset = digits.Digits(batch_size=64, image_size=96, max_boxes=8, seed=0)
    assert all(dataset.train_batch(step)["images"].max() == 127 for step in range(5))
    for index in range(digits.VALIDATION_SCENES):
        image, _ = dataset.validation[0].load(index)
        assert set(np.unique(image)) == {0, 255}


def test_digits_keep_their_labels(monkeypatch):
    """Every digit is painted in a grey of its class."""
    bunch = copy.deepcopy(digits.load_digits())
    bunch.images[:] = 5 + bunch.target[:, None, None]
    monkeypatch.setattr(digits, "load_digits", lambda: bunch)
    dataset = digits.Digits(batch_size=8, image_size=96, max_boxes=8, seed=0)
    batch = dataset.train_batch(0)
    samples = list(zip(batch["images"], batch["boxes"], batch["labels"], strict=True))
    truth = dataset.validation[0].ground_truth["annotations"]
    for annotation in truth[:50]:
        x, y, w, h = annotation["bbox"]
        image, _ = dataset.validation[0].load(annotation["image_id"])
        samples.append((image, [[x, y, x + w, y + h]], [annotation["category_id"]]))
    for image, boxes, labels in samples:
        for (x1, y1, x2, y2), label in zip(np.asarray(boxes, int), labels, strict=True):
            if label != PADDING:
                assert set(image[y1:y2, x1:x2].ravel()) == {(5 + label) * 255 // 16}


def test_digits_scenes():
    dataset = digits.Digits(batch_size=32, image_size=96, max_boxes=8, seed=5)
    batch = dataset.train_batch(2)
    jax.tree.map(np.testing.assert_array_equal, batch, dataset.train_batch(2))
    assert (batch["images"] != dataset.train_batch(3)["images"]).any()
    counts = (batch["labels"] >= 0).sum(axis=1)
    assert set(counts) == {2, 3, 4, 5, 6}
    assert set(batch["labels"].ravel()) == {PADDING, *range(10)}
    for image, boxes, count in zip(batch["images"], batch["boxes"], counts, strict=True):
        ink = image[..., 0] > digits.INK
        covered = np.zeros_like(ink)
        for x1, y1, x2, y2 in boxes[:count].astype(int):
            covered[y1:y2, x1:x2] = True
            for edge in (ink[y1, x1:x2], ink[y2 - 1, x1:x2], ink[y1:y2, x1], ink[y1:y2, x2 - 1]):
                assert edge.any()
        assert not (ink & ~covered).any()


# ---------------------------------------------------------------- heads and evaluation


def test_the_levels_and_classes_are_those_of_the_data():
    head = heads.make_head(read_model("fcos", {}), 3, [8, 16, 32])
    assert head.num_classes == 3
    assert head.strides == (8, 16, 32)
    assert head.regress_ranges == ((-1, 32), (32, 64), (64, 1e8))
    head = heads.make_head(read_model("gfl", {}), 3, [8, 16, 32])
    assert head.strides == (8, 16, 32)
    # for those of the built-in data the configs are as they stand
    for detector in DETECTORS:
        model = read_model(detector, {})
        config = {**model["bbox_head"], "train_cfg": model.get("train_cfg")}
        assert heads.make_head(model, 10, [4, 8]) == heads.build_head(config)


def test_fcos_distances_are_positive_in_pixels_or_strides():
    found = []
    for norm_on_bbox in (False, True):
        model = read_model("fcos", {})
        model["bbox_head"]["norm_on_bbox"] = norm_on_bbox
        head = heads.make_head(model, 3, [4, 8])
        towers = nnx.eval_shape(lambda head=head: network.Towers(8, head, rngs=nnx.Rngs(0)))
        outputs = HeadOutputs(*[[np.ones((1, 2, 2, 4), "f4")] * 2] * 3)
        found.append(towers.units)
        assert head.decode(
            outputs._replace(
                cls_scores=[np.ones((1, 2, 2, 3), "f4")] * 2,
                centernesses=[np.ones((1, 2, 2, 1), "f4")] * 2,
            )
        ).boxes[0, 0].tolist() == ([-2, -2, 6, 6] if norm_on_bbox else [1, 1, 3, 3])
    assert found == [(4, 8), (1, 1)]


def test_detr_outputs_follow_the_image():
    """A set after each layer and every cell's proposal; a larger image has more queries."""
    head = heads.make_head(read_model("detr", {}), 3, [4, 8])
    for shape, cells, queries in (((96, 96), 144, 24), ((64, 200), 200, 34)):
        outputs = nnx.eval_shape(
            lambda shape=shape: network.Detector(head, rngs=nnx.Rngs(0))(
                np.zeros((2, *shape, 3), np.uint8)
            )
        )
        assert [x.shape for x in outputs] == [
            (3, 2, queries, 3),
            (3, 2, queries, 4),
            (2, cells, 3),
            (2, cells, 4),
        ]


def test_detr_starts_from_the_best_proposals_and_corrects_them_layer_by_layer():
    head = heads.make_head(read_model("detr", {}), 3, [8])
    transformer = nnx.jit(lambda: detr.Transformer(16, head, rngs=nnx.Rngs(0)))()
    features = np.random.default_rng(0).normal(size=(2, 4, 6, 16)).astype("f4")
    apply = nnx.jit(lambda transformer: transformer([features]))
    outputs = jax.device_get(apply(transformer))
    squares = outputs.enc_bbox_preds * np.array([6, 4, 6, 4])  # at first nothing is moved
    np.testing.assert_allclose(squares[1, 8], [2.5, 1.5, detr.SIDE, detr.SIDE], rtol=1e-6)
    best = np.argsort(-outputs.enc_cls_scores[..., 0], axis=1)[:, :4]
    chosen = np.take_along_axis(outputs.enc_bbox_preds, best[..., None], axis=1)
    for boxes in outputs.bbox_preds:
        np.testing.assert_allclose(boxes, chosen, rtol=1e-6)

    for estimate in transformer.estimates:  # a tenth of its width to the right, half as high
        estimate.boxes.bias[...] = np.array([0.1, 0, 0, np.log(0.5)], "f4")
    x, _, width, height = np.moveaxis(chosen, -1, 0)
    for layer, boxes in enumerate(jax.device_get(apply(transformer)).bbox_preds, start=1):
        np.testing.assert_allclose(boxes[..., 0], x + 0.1 * layer * width, rtol=1e-5)
        np.testing.assert_allclose(boxes[..., 3], height / 2**layer, rtol=1e-5)


def test_detr_sees_an_object_alike_wherever_it_lies():
    """Attention of boxes and places that are moved alike; a query looks about its box first."""
    attention = detr.Attention(16, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, memory = (rng.normal(size=(1, n, 16)).astype("f4") for n in (3, 20))
    places = rng.uniform(0, 8, (1, 20, 2)).astype("f4")
    boxes = np.concatenate([places[:, :3], [[[2, 3]] * 3]], axis=-1).astype("f4")
    found = attention(x, boxes, memory, places)
    moved = boxes + np.array([16, 32, 0, 0], "f4")
    shift = np.array([16, 32], "f4")
    np.testing.assert_allclose(attention(x, moved, memory, places + shift), found, atol=1e-3)
    far = memory.copy()
    far[:, 10:] += 1
    away = places.copy()
    away[:, 10:] += 50
    np.testing.assert_allclose(
        attention(x, boxes, far, away), attention(x, boxes, memory, away), atol=1e-6
    )
    assert abs(attention(x, boxes, far, places) - found).max() > 1e-3


def random_boxes(rng, count, side):
    corner = rng.uniform(0, side - 4, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, 40, (count, 2))], axis=1).astype("f4")


def test_nms_against_a_loop():
    rng = np.random.default_rng(0)
    boxes, labels = random_boxes(rng, 80, 60), rng.integers(0, 3, 80)
    kept = []
    for i in range(80):
        for j in kept:
            (a1, b1, a2, b2), (c1, d1, c2, d2) = boxes[i], boxes[j]
            overlap = max(0, min(a2, c2) - max(a1, c1)) * max(0, min(b2, d2) - max(b1, d1))
            union = (a2 - a1) * (b2 - b1) + (c2 - c1) * (d2 - d1) - overlap
            if labels[i] == labels[j] and overlap / union > 0.3:
                break
        else:
            kept.append(i)
    assert 20 < len(kept) < 70
    assert np.flatnonzero(postprocess.nms(boxes, labels, 0.3)).tolist() == kept


def test_select_keeps_the_best_of_each_object():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [30, 0, 40, 10], [60, 60, 70, 70]], "f4")
    scores = np.array([[0.5, 0.1], [0.75, 0.25], [0.0625, 0.875], [0.375, 0.0]], "f4")
    found = jax.device_get(jax.jit(postprocess.select, static_argnums=2)(boxes, scores, 4))
    # the box of second place goes with its duplicate; of the other class it stays
    assert found["scores"].tolist() == [0.875, 0.75, 0.375, 0.25]
    assert found["labels"].tolist() == [1, 0, 0, 1]
    np.testing.assert_array_equal(found["boxes"], boxes[[2, 1, 3, 1]])


def test_a_set_of_queries_keeps_its_duplicates(monkeypatch):
    """DETR's detections are the best of all queries and classes, of one place too."""
    logits = np.array([[2.0, -1.0], [3.0, -2.0], [0.5, 1.0]], "f4")
    boxes = np.array([[0.5, 0.5, 0.25, 0.5], [0.5, 0.5, 0.25, 0.5], [0.25, 0.25, 0.5, 0.5]], "f4")
    outputs = DETROutputs(logits[None, None], boxes[None, None])

    class Network(nnx.Module):
        def __init__(self, head, rngs):
            pass

        def __call__(self, images):
            return outputs

    monkeypatch.setattr(training, "Detector", Network)
    trainer = training.Trainer(heads.make_head(read_model("detr", {}), 2, [8]), 1, 0)
    found = trainer.predictor({"averaged": nnx.State({})}, 4)(np.zeros((40, 80, 3), np.uint8))
    np.testing.assert_allclose(found["scores"], 1 / (1 + np.exp([-3, -2, -1, -0.5])), rtol=1e-6)
    assert found["labels"].tolist() == [0, 0, 1, 0]
    np.testing.assert_allclose(
        found["boxes"], [[30, 10, 50, 30], [30, 10, 50, 30], [0, 0, 40, 20], [0, 0, 40, 20]]
    )


def test_average_precision_of_known_detections():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 40, 10], [0, 30, 10, 40], [50, 50, 60, 60]], "f4")
    labels = np.array([0, 0, 0, IGNORED])
    validation = data.ValidationSet(
        "known", data.coco_dict([boxes], [labels], ["thing"]), load=None, category_ids=[0]
    )
    truth = validation.ground_truth["annotations"]
    results = [
        {"image_id": 0, "category_id": 0, "bbox": a["bbox"], "score": 0.9} for a in truth[:3]
    ]
    score = evaluation.average_precision
    assert score(validation, results) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    in_crowd = {**results[0], "bbox": [51, 51, 5, 5], "score": 0.95}
    assert score(validation, [in_crowd, *results])["AP"] == 1.0
    beside = {**results[0], "bbox": [51, 20, 5, 5], "score": 0.95}
    assert score(validation, [beside, *results])["AP"] == pytest.approx(0.75)  # 3 of 4 are right
    loose = [{**r, "bbox": [*r["bbox"][:3], 5.2]} for r in results]  # an IoU of 0.52
    assert score(validation, loose) == pytest.approx({"AP": 0.1, "AP50": 1.0, "AP75": 0.0})
    assert score(validation, []) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
