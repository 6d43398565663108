"""The training example: its parts against plain loops, its data, and whole runs."""

import copy
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import orbax.checkpoint as ocp

import train_detector
from detector import coco, config, data, digits, evaluation, fcos, trees
from detector.config import ConfigError, load_losses
from detector.data import IGNORED, PADDING

pytestmark = pytest.mark.example

LOSSES = {
    "loss_cls": {"type": "FocalLoss", "gamma": 2.0, "alpha": 0.25},
    "loss_bbox": {"type": "IoULoss", "mode": "linear"},
    "loss_centerness": {"type": "CrossEntropyLoss", "use_sigmoid": True},
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


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quick"
    train_detector.main(["--quick", "--out", str(folder)])
    return folder


def test_quick_run_writes_metrics_and_pictures(quick_run):
    metrics = json.loads((quick_run / "metrics.json").read_text())
    assert metrics["train_step_compilations"] == 1
    assert set(metrics["validation"]) == {"strip", "unseen"}
    assert metrics["validation"]["unseen"]["boxes"] == 279
    for row in metrics["validation"].values():
        assert 0 <= row["AP"] <= row["AP50"] <= 1
        assert 0 <= row["AP75"] <= row["AP50"]
    for values in metrics["train_losses"].values():
        assert len(values) == metrics["options"]["steps"]
        assert np.isfinite(values).all()
        assert min(values) > 0
    for name in ("loss_cls", "loss_bbox"):
        values = metrics["train_losses"][name]
        assert np.mean(values[-5:]) < values[0], f"{name} did not fall"
    for name in ("losses.png", "detections.jpg"):
        with Image.open(quick_run / name) as picture:
            assert 1000 <= picture.width <= 1400
            assert np.asarray(picture.convert("L")).std() > 10, f"{name} is blank"


def test_a_finished_folder_is_not_overwritten(quick_run):
    with pytest.raises(SystemExit, match="holds a run already"):
        train_detector.main(["--quick", "--out", str(quick_run)])


@pytest.fixture(scope="module")
def coco_argv(tmp_path_factory):
    """Five images of coloured rectangles in COCO format, as the four options."""
    folder = tmp_path_factory.mktemp("coco")
    write_coco(folder, coco_content())
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.PRESETS["coco"], "strides", [8])  # one level compiles 2 s faster
        yield coco_options(folder)


@pytest.fixture(scope="module")
def straight_run(coco_argv, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
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


def test_resume_without_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no run in runs"):
        train_detector.main(["--resume"])


def test_losses_file_changes_only_the_loss_it_changes(coco_argv, straight_run, tmp_path):
    losses = tmp_path / "losses.yaml"
    losses.write_text(json.dumps(LOSSES))  # JSON is YAML
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
        "loss_cls: {type: FocalLoss, gamma: 2.0, alpha: 0.25}\n"
        "loss_bbox: {type: IoULoss, mode: linear}\n"
        "loss_centerness: {type: CrossEntropyLoss, use_sigmoid: true}\n"
    )
    python_file.write_text("\n".join(f"{name} = {config}" for name, config in LOSSES.items()))
    assert load_losses(yaml_file) == load_losses(python_file) == LOSSES
    built = train_detector.build_losses(load_losses(python_file))
    assert {name: type(loss).__name__ for name, loss in built.items()} == {
        "loss_cls": "FocalLoss",
        "loss_bbox": "IoULoss",
        "loss_centerness": "CrossEntropyLoss",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("losses.yaml", None, "cannot be read"),
        ("losses.yaml", "loss_cls: {type: [", "not valid YAML"),
        ("losses.yaml", "loss_cls: {type: FocalLoss}", "must define loss_cls, loss_bbox"),
        ("losses.yaml", json.dumps({**LOSSES, "loss_mask": {}}), "and no other loss"),
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
    "config", [{"type": "FocusLoss"}, {"gamma": 2.0}, {"type": "FocalLoss", "gama": 2.0}, "focal"]
)
def test_loss_that_cannot_be_built(tmp_path, config):
    losses = tmp_path / "losses.yaml"
    losses.write_text(json.dumps({**LOSSES, "loss_cls": config}))
    with pytest.raises(SystemExit, match="error: loss_cls = "):
        train_detector.main(["--losses", str(losses), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--train-images", "a", "--val-json", "b"], "--train-json, --val-images missing"),
        (["--data", "digits", "--image-size", "128"], "96 x 96"),
        (["--image-size", "100"], "multiple of 8"),
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
    monkeypatch.setattr(coco, "flip", lambda image, boxes: (image, boxes))
    own = make_coco(tmp_path)
    assert own.class_names == ["high", "wide"]
    batch = own.train_batch(0)  # 5 of 5 images: each of them once
    first = int(np.argmin(batch["boxes"][:, :, 0].max(axis=1)))  # x is 5 + 4 * image
    order = np.argsort(batch["boxes"][:, 0, 0])
    assert batch["labels"][order][:, :3].tolist() == [
        [IGNORED, 0, PADDING],
        *[[1, 0, PADDING]] * 4,
    ]  # larger boxes first
    np.testing.assert_allclose(batch["boxes"][first, 1], [5, 13, 25, 31])  # 10 rows of bar above
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


# ---------------------------------------------------------------- FCOS and evaluation


assign_targets = jax.jit(fcos.assign_targets, static_argnames="num_classes")


def random_boxes(rng, count, side):
    corner = rng.uniform(0, side - 4, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(2, 40, (count, 2))], axis=1).astype("f4")


def slow_targets(points, point_strides, boxes, labels, num_classes):
    """The rule of `assign_targets` for one point and one box after the other."""
    rows = []
    for (x, y), stride in zip(points, point_strides, strict=True):
        best, ignored = None, False
        for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
            left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
            if min(left, top, right, bottom) <= 0:
                continue
            if label == IGNORED:
                ignored = True
            if label < 0:
                continue
            if max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) >= 1.5 * stride:
                continue
            low, high = {4: (0, 16), 8: (16, 32), 16: (32, np.inf)}[int(stride)]
            if not low < max(left, top, right, bottom) <= high:
                continue
            area = (x2 - x1) * (y2 - y1)
            if best is None or area < best[0]:
                ratio = min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                best = area, label, (x1, y1, x2, y2), np.sqrt(ratio)
        if best is None:
            rows.append((num_classes, 0.0 if ignored else 1.0, None, 0.0))
        else:
            rows.append((best[1], 1.0, best[2], best[3]))
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_targets_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([random_boxes(rng, 14, 64), np.zeros((2, 4), "f4")])
    boxes[0] = [0, 0, 64, 64]  # for the coarsest level
    labels = np.concatenate([rng.integers(0, 3, 10), [IGNORED] * 4, [PADDING] * 2])
    points, point_strides = fcos.make_points((64, 64), (4, 8, 16))
    targets = jax.device_get(assign_targets(points, point_strides, boxes, labels, num_classes=3))
    expected = slow_targets(np.asarray(points), np.asarray(point_strides), boxes, labels, 3)
    positives = set()
    for i, (label, weight, box, centerness) in enumerate(expected):
        assert targets["labels"][i] == label
        assert targets["label_weights"][i] == weight
        np.testing.assert_allclose(targets["centerness"][i], centerness, rtol=1e-5)
        if box is not None:
            np.testing.assert_array_equal(targets["boxes"][i], box)
            positives.add(float(point_strides[i]))
    assert positives == {4.0, 8.0, 16.0}
    assert 0 < sum(weight == 0 for _, weight, _, _ in expected) < len(points) / 2


def test_points_are_the_centres_of_their_cells():
    points, strides = fcos.make_points((16, 24), (4, 8))
    assert points.shape == (24 + 6, 2)
    assert strides.tolist() == [4.0] * 24 + [8.0] * 6
    assert points[:2].tolist() == [[2, 2], [6, 2]]
    assert points[6].tolist() == [2, 6]
    assert points[24].tolist() == [4, 4]
    assert points[-1].tolist() == [20, 12]


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
    assert np.flatnonzero(fcos.nms(boxes, labels, 0.3)).tolist() == kept


def test_decode_inverts_the_targets():
    """Outputs that say exactly what the targets ask for give the ground truth back."""
    boxes = np.array([[4, 4, 20, 18], [30, 6, 60, 40], [8, 30, 24, 60]], "f4")
    labels = np.array([1, 0, 1])
    points, strides = fcos.make_points((64, 64), (4, 8))
    targets = assign_targets(points, strides, boxes, labels, num_classes=2)
    corners = np.concatenate(
        [points - targets["boxes"][:, :2], targets["boxes"][:, 2:] - points], 1
    )
    outputs = {
        "logits": 20.0 * (np.asarray(targets["labels"])[:, None] == np.arange(2)) - 10,
        "distances": corners,
        "centerness": 10 * np.asarray(targets["centerness"]) - 5,
    }
    found = jax.device_get(
        jax.jit(fcos.decode, static_argnums=(2, 3))(outputs, points, (64, 64), 50)
    )
    assert found["boxes"].shape == (50, 4)
    sure = found["scores"] > 0.5
    order = np.argsort(found["boxes"][sure][:, 0])
    np.testing.assert_allclose(found["boxes"][sure][order], boxes[[0, 2, 1]], atol=1e-4)
    assert found["labels"][sure][order].tolist() == [1, 1, 0]


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
