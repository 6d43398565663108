"""The options of a run, and losses files."""

import pytest

from detector.config import ConfigError, load_losses, read_model, read_options
from detector.heads import make_heads

pytestmark = pytest.mark.example


LOSSES = {
    "loss_cls": {"type": "FocalLoss", "gamma": 1.5, "alpha": 0.25},
    "loss_bbox": {"type": "IoULoss", "mode": "linear"},
}


def test_losses_files_in_yaml_and_python_agree(tmp_path):
    yaml_file, python_file = tmp_path / "losses.yml", tmp_path / "losses.py"
    yaml_file.write_text(
        "loss_cls: {type: FocalLoss, gamma: 1.5, alpha: 0.25}\n"
        "loss_bbox: {type: IoULoss, mode: linear}\n"
    )
    python_file.write_text("\n".join(f"{name} = {config}" for name, config in LOSSES.items()))
    assert load_losses(yaml_file) == load_losses(python_file) == LOSSES
    head = make_heads(read_model("fcos", LOSSES), 3, [4, 8])["bbox_head"]
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


def test_losses_of_two_stages_go_by_the_names_that_are_shown():
    """loss_rpn_bbox is the first stage's, loss_bbox the second's."""
    names = ("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask")
    losses = {
        name: {
            "type": "SmoothL1Loss" if "bbox" in name else "CrossEntropyLoss",
            "loss_weight": float(number),
            **({"use_mask": True} if name == "loss_mask" else {}),
        }
        for number, name in enumerate(names)
    }
    heads = make_heads(read_model("mask_rcnn", losses), 3, [4, 8])
    rpn, roi = heads["rpn_head"], heads["roi_head"]
    boxes, masks = roi.bbox_head, roi.mask_head
    built = (rpn.loss_cls, rpn.loss_bbox, boxes.loss_cls, boxes.loss_bbox, masks.loss_mask)
    assert [loss.loss_weight for loss in built] == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="has no loss_mask, but loss_rpn_cls, loss_rpn_bbox, lo"):
        read_model("faster_rcnn", {"loss_mask": losses["loss_mask"]})


def test_steps_are_those_of_the_data_and_the_detector(tmp_path):
    """RTMDet has its own on the digits; what is given counts more, and --all keeps them apart."""

    def steps(*argv):
        runs, _ = read_options([*argv, "--out", str(tmp_path / "run")])
        return {name: (run["steps"], run["batch_size"]) for name, run in runs.items()}

    every = steps("--all", "--data", "digits")
    assert (every["fcos"], every["rtmdet"], every["yolov8"]) == ((600, 16), (1200, 8), (600, 16))
    assert steps("--all")["rtmdet"] == (1600, 4)
    one = ("--data", "digits", "--detector", "rtmdet_ins")
    assert steps(*one) == {"rtmdet_ins": (1200, 8)}
    assert steps(*one, "--steps", "5") == {"rtmdet_ins": (5, 8)}
    assert steps(*one, "--quick") == {"rtmdet_ins": (20, 4)}
