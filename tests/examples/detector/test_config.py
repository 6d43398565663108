"""The options of a run, and losses files."""

import pytest

from detector.config import ConfigError, load_losses, read_model
from detector.heads import make_head

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
    head = make_head(read_model("fcos", LOSSES), 3, [4, 8])
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
