"""mmyolo's IoU loss: 58 golden cases, and how configs name it."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from golden.read_cases import read

ARRAYS, CONFIG = read("onestage", "mmyolo_iou")
OVERLAPS = [case for case in CONFIG["cases"] if case["what"] == "bbox_overlaps"]
LOSSES = [case for case in CONFIG["cases"] if case["what"] != "bbox_overlaps"]
# Without `--all` one mode and format, which has every kind of weight and reduction.
SHORT = "loss_ciou_xyxy"


def params():
    short = [case["key"].startswith(SHORT) for case in LOSSES]
    return [
        pytest.param(case, id=case["key"], marks=() if is_short else pytest.mark.long)
        for case, is_short in zip(LOSSES, short, strict=True)
    ]


# Row 16 has equal boxes, where every mode has a kink: torch halves ties, and so does JAX.


def pair(case, dtype):
    names = (f"{name}_{case['bbox_format']}" for name in ("pred", "target"))
    return tuple(ARRAYS[name].astype(dtype) for name in names)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", OVERLAPS, ids=lambda case: case["key"])
def test_overlaps(case):
    key = case["key"]
    settings = {name: case[name] for name in ("iou_mode", "bbox_format", "eps")}
    with jax.enable_x64(True):
        pred, target = pair(case, np.float64)

        def overlaps(pred):
            return 1 - v.yolo_iou_loss(pred, target, **settings, reduction="none")

        found, pullback = jax.vjp(overlaps, pred)
        np.testing.assert_allclose(found, ARRAYS[key], rtol=1e-9, atol=1e-12)
        (gradient,) = pullback(ARRAYS["cotangent"].astype(np.float64))
        np.testing.assert_allclose(gradient, ARRAYS[f"{key}_vjp"], rtol=1e-9, atol=1e-9)


@pytest.mark.one_in(6)
@pytest.mark.parametrize("case", params())
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_losses(case, dtype):
    key = case["key"]
    weights = {
        "None": None,
        "1d": ARRAYS["weight"],
        "2d": np.repeat(ARRAYS["weight"][:, None], 4, axis=1),
        "zero": np.zeros_like(ARRAYS["weight"]),
    }
    mode, box_format, reduction, weight, avg_factor = key.removeprefix("loss_").split("_")
    loss = v.build_loss(
        {
            "type": "IoULoss",
            "iou_mode": mode,
            "bbox_format": box_format,
            "reduction": reduction,
            "loss_weight": case.get("loss_weight", 1.0),
        }
    )
    avg_factor = None if avg_factor == "None" else float(avg_factor)
    with jax.enable_x64(dtype == np.float64):
        pred, target = pair(case, dtype)
        weight = weights[weight]
        weight = None if weight is None else weight.astype(dtype)

        def value(pred):
            value = loss(pred, target, weight, avg_factor)
            return value.sum(), value

        gradient, found = jax.jit(jax.grad(value, has_aux=True))(pred)
        tolerance = 1e-9 if dtype == np.float64 else 1e-5
        np.testing.assert_allclose(found, ARRAYS[key], rtol=tolerance, atol=tolerance)
        expected = ARRAYS[f"{key}_grad"]
        atol = (1e-9 if dtype == np.float64 else 3e-5) * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=tolerance, atol=atol)


def test_a_key_of_mmyolo_tells_its_class_from_ours():
    assert type(v.build_loss({"type": "IoULoss", "mode": "square"})) is v.IoULoss
    for key, value in (("iou_mode", "giou"), ("bbox_format", "xyxy"), ("return_iou", False)):
        assert v.build_loss({"type": "mmyolo.IoULoss", key: value}) == v.YOLOIoULoss(**{key: value})
    with pytest.raises(ValueError, match="YOLOIoULoss has no key 'mode'"):
        v.build_loss({"type": "IoULoss", "iou_mode": "giou", "mode": "log"})


def test_the_scope_alone_tells_mmyolos_class():
    mmyolos, path = v.YOLOIoULoss(), "mmyolo.models.losses.iou_loss.IoULoss"
    assert v.build_loss({"type": "mmyolo.IoULoss"}) == mmyolos
    assert v.build_loss({"type": "IoULoss", "_scope_": "mmyolo"}) == mmyolos
    assert v.build_loss({"type": path}) == mmyolos
    assert v.build_loss({"type": type("IoULoss", (), {"__module__": path[:-8]})}) == mmyolos
    for kind in ("IoULoss", "mmdet.IoULoss", "visdet.IoULoss", v.IoULoss):
        assert v.build_loss({"type": kind}) == v.IoULoss()
    assert v.build_loss({"type": "mmyolo.CrossEntropyLoss"}) == v.CrossEntropyLoss()
    for kind in ("mmdet.IoULoss", v.IoULoss):
        with pytest.raises(ValueError, match="IoULoss has no key 'iou_mode'"):
            v.build_loss({"type": kind, "iou_mode": "ciou"})
    with pytest.raises(ValueError, match="YOLOIoULoss has no key 'mode'"):
        v.build_loss({"type": "mmyolo.IoULoss", "mode": "log"})


def test_the_form_of_ultralytics_is_not_clamped():
    pred, target = np.array([[[0, 0, 1, 30]], [[900, 0, 990, 1]]], np.float32)
    settings = {"bbox_format": "xyxy", "reduction": "none"}
    assert v.yolo_iou_loss(pred, target, **settings) == 2
    assert v.yolo_iou_loss(pred, target, iou_mode="ultralytics_ciou", **settings) > 2
