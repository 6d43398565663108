"""Varifocal, distillation, multi-positive cross entropy and V3Det's focal loss."""

import jax
import numpy as np
import pytest

import visdet_jax as v

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 3, (16, 5)).astype(np.float32)
OTHER = RNG.normal(0, 3, (16, 5)).astype(np.float32)
LABEL = RNG.integers(0, 5, 16)
ONE_HOT = np.eye(5, dtype=np.float32)[LABEL]
IOU = RNG.uniform(0.1, 1, (16, 1)).astype(np.float32)


def close(actual, expected, rtol=1e-5, atol=1e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def test_varifocal_of_negatives_is_focal():
    none = np.zeros_like(PRED)
    close(
        v.varifocal_loss(PRED, none, alpha=0.75, reduction="none"),
        v.sigmoid_focal_loss(PRED, none, alpha=0.25, reduction="none"),
    )


def test_varifocal_of_positives_is_weighed_cross_entropy():
    target = ONE_HOT * IOU
    bce = np.asarray(v.binary_cross_entropy(PRED, target, reduction="none"))
    positive = ONE_HOT == 1
    weighed = np.asarray(v.varifocal_loss(PRED, target, reduction="none"))
    close(weighed[positive], (bce * target)[positive])
    plain = np.asarray(v.varifocal_loss(PRED, target, iou_weighted=False, reduction="none"))
    close(plain[positive], bce[positive])
    close(plain[~positive], weighed[~positive])
    unweighed = v.varifocal_loss(PRED, target, alpha=1.0, gamma=0.0, iou_weighted=False)
    close(unweighed, bce.mean())


def test_varifocal_keys():
    for config in ({"alpha": -0.1}, {"use_sigmoid": False}):
        with pytest.raises(ValueError, match=f"VarifocalLoss: {next(iter(config))}"):
            v.build_loss(dict(type="VarifocalLoss", **config))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_distillation_of_equal_logits_is_0(temperature):
    loss = v.knowledge_distillation_kl_div_loss
    shifted = OTHER + RNG.normal(size=(16, 1)).astype(np.float32)
    value, gradient = jax.value_and_grad(lambda p: loss(p, OTHER, T=temperature))(OTHER)
    close(value, 0)
    close(gradient, 0)
    close(loss(shifted, OTHER, T=temperature), 0, atol=1e-5)


def test_distillation_is_cross_entropy_less_entropy():
    teacher = np.asarray(jax.nn.softmax(OTHER / 4))
    expected = v.cross_entropy(PRED / 4, teacher, reduction="none")
    expected -= v.cross_entropy(OTHER / 4, teacher, reduction="none")
    actual = v.knowledge_distillation_kl_div_loss(PRED, OTHER, T=4.0, reduction="none")
    close(actual, expected * 16 / 5, rtol=1e-4)


def test_distillation_teaches_one_way_unless_told():
    loss = v.knowledge_distillation_kl_div_loss
    assert not jax.grad(loss, argnums=1)(PRED, OTHER).any()
    both = jax.grad(lambda t: loss(PRED, t, detach_target=False))(OTHER)
    assert both.any()


def test_distillation_along_axis_1():
    pred, target = np.stack([PRED, OTHER], 2), np.stack([OTHER, PRED], 2)
    loss = v.knowledge_distillation_kl_div_loss
    values = loss(pred, target, reduction="none")
    assert values.shape == (16, 2)
    close(values[:, 0], loss(PRED, OTHER, reduction="none"))
    weight = RNG.random((16, 2)).astype(np.float32)
    close(loss(pred, target, weight), (values * weight).mean())
    with pytest.raises(ValueError, match="KnowledgeDistillationKLDivLoss: T must be ≥ 1"):
        v.build_loss({"type": "KnowledgeDistillationKLDivLoss", "T": 0.5})


def test_multi_pos_of_one_right_class_is_cross_entropy():
    close(
        v.multi_pos_cross_entropy(PRED, ONE_HOT, reduction="none"),
        v.cross_entropy(PRED, LABEL, reduction="none"),
    )


def test_multi_pos_is_the_log_of_all_pairs():
    right = RNG.random((16, 5)) < 0.5
    right[0], right[1] = False, True
    expected = []
    for x, mask in zip(PRED.astype(np.float64), right, strict=True):
        expected.append(np.log1p(np.exp(x[~mask][:, None] - x[mask][None]).sum()))
    close(v.multi_pos_cross_entropy(PRED, right.astype(np.int32), reduction="none"), expected)
    gradient = jax.grad(lambda p: v.multi_pos_cross_entropy(p, right.astype(np.int32)))(PRED)
    assert np.isfinite(gradient).all()
    assert not gradient[:2].any()


def test_multi_pos_needs_memory_for_its_logits_only():
    shape = jax.ShapeDtypeStruct((16, 2000), np.float32)
    run = jax.jit(jax.grad(lambda p, t: v.multi_pos_cross_entropy(p, t))).lower(shape, shape)
    assert run.compile().memory_analysis().temp_size_in_bytes < 20 * 16 * 2000 * 4
