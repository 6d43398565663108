"""The names that other libraries have and this package has not."""

import pytest

from visdet_jax import LOSSES
from visdet_jax.core.elsewhere import ELSEWHERE, not_here
from visdet_jax.detectors import BRANCHES, HEADS, TASK_UTILS, build_head


@pytest.mark.parametrize("library", ELSEWHERE)
def test_what_is_here_is_not_on_the_list(library):
    listed = set(ELSEWHERE[library].split())
    here = listed & {*LOSSES, *HEADS, *BRANCHES, *TASK_UTILS}
    assert not here, f"take {', '.join(sorted(here))} off the list in visdet_jax/core/elsewhere.py"


@pytest.mark.parametrize("name", ["YOLOV3Head", "SSDHead", "PAAHead"])
def test_a_known_name_gets_a_plain_answer(name):
    for kind in (name, f"mmdet.{name}"):
        with pytest.raises(ValueError, match=f"mmdet's {name} is not here") as caught:
            build_head({"type": kind, "num_classes": 3})
        assert "Did you mean" not in str(caught.value)


def test_the_library_is_named():
    assert not_here("YOLOv6Head") == "mmyolo's YOLOv6Head is not here (yet)."
    assert not_here("RotatedIoULoss") == "mmrotate's RotatedIoULoss is not here (yet)."
    assert not_here("FocalLoss") == ""
