"""The training example: whole runs of its detectors, and its options."""

import contextlib
import io
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

import train_detector
from detector import coco, config, detr, dfine, digits, training
from detector.config import DETECTORS, WITH_MASKS

pytestmark = pytest.mark.example


DIGITS = ["--data", "digits"]
FEW = ["--quick", "--steps", "8", "--batch-size", "2"]
OWN_DATA = [
    *("--train-images", "folder", "--train-json", "train.json"),
    *("--val-images", "folder", "--val-json", "val.json"),
]
SMALL = ["--steps", "6", "--batch-size", "2", "--image-size", "64", "--max-boxes", "8"]


@pytest.fixture(scope="module", autouse=True)
def shared_compilations(tmp_path_factory):
    """A cache of compiled programs, since several runs compile the same ones."""
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
    """A few steps of all detectors on the same few digits: folder, metrics and printed text."""
    folder, first_batch = tmp_path_factory.mktemp("runs") / "all", digits.Digits.train_batch
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setattr(digits, "VALIDATION_SCENES", 4)
        patch.setattr(digits.Digits, "train_batch", lambda self, step: first_batch(self, 0))
        patch.setitem(config.STRIDES, "digits", [8])  # One level compiles faster.
        patch.setattr(detr, "LAYERS", 2)
        patch.setattr(dfine, "LAYERS", 2)
        patch.setattr(training, "CHECKPOINTS", 1)
        metrics = train_detector.main(["--all", *DIGITS, *FEW, "--out", str(folder)])
    return folder, metrics, out.getvalue()


@pytest.mark.long
@pytest.mark.parametrize(
    ("detector", "names"),
    [
        ("fcos", ["loss_bbox", "loss_centerness", "loss_cls"]),
        ("retinanet", ["loss_bbox", "loss_cls"]),
        ("atss", ["loss_bbox", "loss_centerness", "loss_cls"]),
        ("gfl", ["loss_bbox", "loss_cls", "loss_dfl"]),
        ("detr", ["loss_bbox", "loss_cls", "loss_iou"]),
        ("faster_rcnn", ["loss_bbox", "loss_cls", "loss_rpn_bbox", "loss_rpn_cls"]),
        ("mask_rcnn", ["loss_bbox", "loss_cls", "loss_mask", "loss_rpn_bbox", "loss_rpn_cls"]),
        ("rtmdet", ["loss_bbox", "loss_cls"]),
        ("rtmdet_ins", ["loss_bbox", "loss_cls", "loss_mask"]),
        ("yolov8", ["loss_bbox", "loss_cls", "loss_dfl"]),
        ("dfine", ["loss_bbox", "loss_fgl", "loss_giou", "loss_vfl"]),
    ],
)
def test_each_detector_trains(all_runs, detector, names):
    folder, all_metrics, _ = all_runs
    metrics = json.loads((folder / detector / "metrics.json").read_text())
    assert metrics == json.loads(json.dumps(all_metrics[detector]))  # JSON has no tuples.
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
    # At first all positives of a second stage are ground truths, whose boxes are right already:
    # its box loss rises with the proposals.
    falling = "loss_rpn_bbox" if "loss_rpn_bbox" in losses else "loss_bbox"
    # D-FINE's queries are matched to other boxes at each step: at first only its classes improve.
    falling = "loss_vfl" if detector == "dfine" else falling
    # RTMDet's boxes fall behind at first: the assigner drops those it began with.
    before = max(losses[falling]) if detector == "rtmdet" else losses[falling][0]
    assert losses[falling][-1] < before
    # The targets of these class losses are IoUs: they rise with them.
    if "loss_cls" in losses and detector not in ("gfl", "rtmdet", "rtmdet_ins"):
        assert losses["loss_cls"][-1] < losses["loss_cls"][0]


@pytest.mark.long
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
    rows = [name for name in DETECTORS for _ in range(1 + (name in WITH_MASKS))]
    assert [line.split()[0] for line in lines[2 : 2 + len(rows)]] == rows
    for parts in (".", *DETECTORS):
        for name in ("losses.png", "detections.jpg"):
            with Image.open(folder / parts / name) as picture:
                assert 1000 <= picture.width <= 1400
                assert np.asarray(picture.convert("L")).std() > 10, f"{parts}/{name} is blank"


@pytest.mark.long
def test_masks_are_measured_beside_boxes(all_runs):
    _, metrics, out = all_runs
    assert [list(run["validation"]) for run in metrics.values()] == [
        ["digits", "digits, masks"] if name in WITH_MASKS else ["digits"] for name in DETECTORS
    ]
    assert "mask_rcnn    digits, masks" in out


@pytest.mark.long
@pytest.mark.parametrize("argv", [["--all"], ["--all", "--quick"], []])
def test_a_finished_folder_is_not_overwritten(all_runs, argv):
    folder = all_runs[0] if argv else all_runs[0] / "gfl"
    with pytest.raises(SystemExit, match="holds a run already"):
        train_detector.main([*argv, *DIGITS, "--out", str(folder)])


@pytest.mark.long
def test_a_quick_run_with_two_stages(tmp_path, monkeypatch):
    """Whole: sampled by key, compiled once, evaluated, drawn."""
    monkeypatch.setattr(digits, "VALIDATION_SCENES", 2)
    monkeypatch.setitem(config.STRIDES, "digits", [8])
    monkeypatch.setattr(training, "CHECKPOINTS", 1)
    argv = ["--detector", "faster_rcnn", *DIGITS, "--quick", "--steps", "2", "--batch-size", "2"]
    metrics = train_detector.main([*argv, "--out", str(tmp_path / "run")])
    assert metrics["train_step_compilations"] == 1
    assert list(metrics["validation"]) == ["digits"]
    assert np.isfinite(list(metrics["train_losses"].values())).all()


@pytest.fixture(scope="module")
def coco_options(make_own_data, tmp_path_factory):
    """The options that name own data of five images; one level compiles faster than three."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.STRIDES, "coco", [8])
        yield make_own_data(tmp_path_factory.mktemp("coco")).options


@pytest.fixture(scope="module")
def straight_run(coco_options, tmp_path_factory):
    """A run that is not interrupted: its folder and its metrics."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINTS", 1)
        return folder, train_detector.main([*coco_options, *SMALL, "--out", str(folder)])


@pytest.mark.long
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="equal bits on the CPU only")
def test_resumed_run_equals_uninterrupted_run(coco_options, straight_run, tmp_path, monkeypatch):
    straight_folder, straight = straight_run
    train_batch = coco.Coco.train_batch

    def interrupted(self, step):
        if step == 3:
            raise KeyboardInterrupt
        return train_batch(self, step)

    out = tmp_path / "resumed"
    monkeypatch.setattr(coco.Coco, "train_batch", interrupted)
    with pytest.raises(SystemExit) as stopped:
        train_detector.main([*coco_options, *SMALL, "--out", str(out)])
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


@pytest.mark.long
def test_resume_raises_for_other_options(straight_run):
    folder, _ = straight_run
    with pytest.raises(SystemExit, match="was started with steps = 6, not 7"):
        train_detector.main(["--resume", str(folder), "--steps", "7"])
    with pytest.raises(SystemExit, match="was started with detector = fcos, not gfl"):
        train_detector.main(["--resume", str(folder), "--detector", "gfl"])


def test_resume_without_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="no run in runs"):
        train_detector.main(["--resume"])


@pytest.mark.long
def test_losses_file_changes_only_the_loss_it_changes(coco_options, straight_run, tmp_path):
    losses = tmp_path / "losses.yaml"
    losses.write_text("loss_bbox: {type: IoULoss, mode: linear}")
    changed = ["--steps", "1", "--losses", str(losses), "--out", str(tmp_path / "run")]
    run = train_detector.main([*coco_options, *SMALL, *changed])
    (giou,), (iou,) = (m["train_losses"]["loss_bbox"][:1] for m in (straight_run[1], run))
    assert 0 < iou < giou  # 1 - IoU and 1 - IoU + (enclosing - union) / enclosing
    for name in ("loss_cls", "loss_centerness"):
        np.testing.assert_allclose(
            run["train_losses"][name][0], straight_run[1]["train_losses"][name][0], rtol=1e-5
        )


def last_checkpoint(folder):
    """The state in a run's last checkpoint."""
    with ocp.CheckpointManager(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(checkpoints.latest_step(), args=ocp.args.StandardRestore(None))


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
    file.write_text(json.dumps(losses))  # JSON is YAML, too.
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
        (["--detector", "mask_rcnn"], "needs masks: add --data digits"),
        (["--detector", "rtmdet_ins"], "needs masks: add --data digits"),
        ([*OWN_DATA, "--detector", "mask_rcnn"], "needs masks: add --data digits"),
        (["--data", "trees", *OWN_DATA], "leave it out"),
    ],
)
def test_options_that_do_not_fit(argv, message):
    with pytest.raises(SystemExit, match=message):
        train_detector.main(argv)


@pytest.mark.long
def test_a_validation_set_without_objects_has_no_average_precision(
    own_data, tmp_path, monkeypatch, capsys
):
    """A whole run: it is neither 0.000 in the table nor a number in metrics.json."""
    own_data.write(val={**own_data.content(), "annotations": []})
    monkeypatch.setitem(config.STRIDES, "coco", [8])
    metrics = train_detector.main([*own_data.options, *SMALL, "--out", str(tmp_path / "run")])
    nothing = {"images": 5, "boxes": 0, "AP": None, "AP50": None, "AP75": None}
    assert metrics["validation"] == {"validation": nothing}
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["validation"] == {
        "validation": nothing
    }
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fcos")]
    assert row.split()[:-1] == ["fcos", "validation", "5", "0", "n/a", "n/a", "n/a"]
