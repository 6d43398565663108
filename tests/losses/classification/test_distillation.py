"""Distillation: where it is 0, what it is made of, and where its gradient goes."""

import jax
import numpy as np
import pytest

import visdet_jax as v
from losses.classification.class_scores import OTHER, PRED, close
from programs import temporary_bytes

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 10.0])
def test_of_equal_logits_it_is_0(temperature):
    loss = v.knowledge_distillation_kl_div_loss
    shifted = OTHER + RNG.normal(size=(16, 1)).astype(np.float32)
    value, gradient = jax.value_and_grad(lambda p: loss(p, OTHER, T=temperature))(OTHER)
    close(value, 0)
    close(gradient, 0)
    close(loss(shifted, OTHER, T=temperature), 0, atol=1e-5)


def test_it_is_cross_entropy_less_entropy():
    teacher = np.asarray(jax.nn.softmax(OTHER / 4))
    expected = v.cross_entropy(PRED / 4, teacher, reduction="none")
    expected -= v.cross_entropy(OTHER / 4, teacher, reduction="none")
    actual = v.knowledge_distillation_kl_div_loss(PRED, OTHER, T=4.0, reduction="none")
    close(actual, expected * 16 / 5, rtol=1e-4)


def test_it_teaches_one_way_unless_told():
    loss = v.knowledge_distillation_kl_div_loss
    assert not jax.grad(loss, argnums=1)(PRED, OTHER).any()
    both = jax.grad(lambda t: loss(PRED, t, detach_target=False))(OTHER)
    assert both.any()


def test_classes_are_along_axis_1():
    pred, target = np.stack([PRED, OTHER], 2), np.stack([OTHER, PRED], 2)
    loss = v.knowledge_distillation_kl_div_loss
    values = loss(pred, target, reduction="none")
    assert values.shape == (16, 2)
    close(values[:, 0], loss(PRED, OTHER, reduction="none"))
    weight = RNG.random((16, 2)).astype(np.float32)
    close(loss(pred, target, weight), (values * weight).mean())


def test_temperatures_below_1_raise():
    with pytest.raises(
        ValueError, match=r"KnowledgeDistillationKLDivLoss: T must be at least 1, got 0.5"
    ):
        v.build_loss({"type": "KnowledgeDistillationKLDivLoss", "T": 0.5})
    with pytest.raises(
        ValueError, match=r"knowledge_distillation_kl_div_loss: T must be at least 1, got 0.5"
    ):
        v.knowledge_distillation_kl_div_loss(PRED, OTHER, T=0.5)


def test_memory():
    """A GPU moves 1.5 times as much where value and derivative have no exponentials in common."""
    pred, loss = np.zeros((50_000, 80), np.float32), v.knowledge_distillation_kl_div_loss
    assert temporary_bytes(loss, pred, pred) < 0.1 * pred.nbytes
    assert temporary_bytes(jax.value_and_grad(loss), pred, pred) < 3.5 * pred.nbytes
