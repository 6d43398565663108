"""The base classes: a module that is its fields, and losses with and without statistics."""

import inspect
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from visdet_jax import FocalLoss, L1Loss, Loss, StatefulLoss, l1_loss
from visdet_jax.core.docstrings import parse
from visdet_jax.core.hyperparameters import Count, Positive


class RunningMean(NamedTuple):
    mean: jax.Array
    steps: jax.Array


@dataclass(frozen=True, kw_only=True)
class NormalizedL1Loss(StatefulLoss):
    """L1 divided by the running mean of what it was."""

    momentum: float = 0.5

    def init(self):
        return RunningMean(jnp.ones(()), jnp.zeros((), jnp.int32))

    def step(self, state, pred, target, weight, **reduce):
        now = jax.lax.stop_gradient(l1_loss(pred, target, weight))
        state = RunningMean(self.momentum * state.mean + (1 - self.momentum) * now, state.steps + 1)
        return l1_loss(pred, target, weight, **reduce) / state.mean, state


PRED, TARGET = jnp.array([3.0, 1.0]), jnp.zeros(2)


def test_a_bare_call_of_a_stateful_loss_says_what_to_write():
    with pytest.raises(TypeError, match=r"NormalizedL1Loss keeps .* `state = loss.init\(\)` once"):
        NormalizedL1Loss()(PRED, TARGET)


def test_update_by_hand():
    loss = NormalizedL1Loss(loss_weight=2.0)
    value, state = loss.update(loss.init(), PRED, TARGET)
    np.testing.assert_allclose(state.mean, 1.5)
    np.testing.assert_allclose(value, 2 * 2 / 1.5, rtol=1e-6)
    value, state = loss.update(state, PRED, TARGET, avg_factor=4, reduction_override="mean")
    np.testing.assert_allclose(state.mean, 1.75)
    np.testing.assert_allclose(value, 2 * 1 / 1.75, rtol=1e-6)
    assert state.steps == 2


def test_state_goes_through_scan_and_value_and_grad():
    loss = NormalizedL1Loss()

    def step(state, pred):
        (value, state), gradient = jax.value_and_grad(
            lambda p: loss.update(state, p, TARGET), has_aux=True
        )(pred)
        return state, (value, gradient)

    preds = jnp.stack([PRED, 2 * PRED, PRED])
    final, (values, gradients) = jax.jit(lambda: jax.lax.scan(step, loss.init(), preds))()
    state = loss.init()
    for i, pred in enumerate(preds):
        state, (value, gradient) = step(state, pred)
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-6)
    np.testing.assert_allclose(final.mean, state.mean, rtol=1e-6)


def test_state_lives_in_an_nnx_variable():
    class Step(nnx.Module):
        def __init__(self):
            self.loss = NormalizedL1Loss()
            self.state = nnx.Variable(self.loss.init())

        def __call__(self, pred, target):
            value, state = self.loss.update(self.state.get_value(), pred, target)
            self.state.set_value(state)
            return value

    step = Step()
    run = nnx.jit(lambda step: step(PRED, TARGET))
    first, second = run(step), run(step)
    assert first > second  # the mean went from 1 to 1.5 to 1.75
    assert step.state.get_value().steps == 2


def test_a_stateless_loss_updates_nothing():
    loss = L1Loss()
    assert loss.init() == ()
    value, state = loss.update((), PRED, TARGET, jnp.array([1.0, 0.0]), avg_factor=1.0)
    np.testing.assert_allclose(value, 3)
    assert state == ()


def test_the_reduction_is_checked_before_anything_else():
    with pytest.raises(ValueError, match="L1Loss: reduction_override must be one of none, mean"):
        L1Loss()("not", "arrays", reduction_override="")


def test_a_subclass_without_its_method_says_so():
    @dataclass(frozen=True, kw_only=True)
    class Empty(Loss):
        pass

    @dataclass(frozen=True, kw_only=True)
    class EmptyState(StatefulLoss):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define compute"):
        Empty()(PRED, TARGET)
    with pytest.raises(NotImplementedError, match="EmptyState must define init"):
        EmptyState().init()
    with pytest.raises(NotImplementedError, match="EmptyState must define step"):
        EmptyState().step((), PRED, TARGET, None)


def test_a_field_may_be_traced():
    pred, target = jnp.array([[2.0, -1.0]]), jnp.array([0])
    gammas = jnp.array([0.0, 2.0])
    swept = jax.vmap(lambda gamma: FocalLoss(gamma=gamma)(pred, target))(gammas)
    for gamma, value in zip(gammas, swept, strict=True):
        np.testing.assert_allclose(value, FocalLoss(gamma=float(gamma))(pred, target), rtol=1e-6)


def test_field_types_are_checked_when_built_by_hand():
    with pytest.raises(TypeError, match=r"FocalLoss: alpha must be a number or None, got '0\.5'"):
        FocalLoss(alpha="0.5")
    assert FocalLoss(gamma=np.float32(2)).gamma == 2


def scaled_loss(pred, target, weight=None, *, scale: Positive = 1.0, names=(), reduction="mean"):
    """A function.

    Args:
      scale: Factor, above 0.
      names: Some names.
    """
    return scale * l1_loss(pred, target, weight, reduction=reduction)


@dataclass(frozen=True, kw_only=True)
class ScaledLoss(Loss, function=scaled_loss):
    """A class.

    Args:
      names: Its own words.
    """

    kind: ClassVar[str] = "no field"
    scale: float = 1.0
    names: tuple[str, ...] = ()
    count: Count = 3


def test_the_docstring_describes_the_fields_of_base_class_and_function():
    names = list(parse(ScaledLoss.__doc__).arguments)
    assert names == ["reduction", "loss_weight", "scale", "names"]
    assert parse(ScaledLoss.__doc__).arguments["scale"] == "Factor, above 0."
    assert parse(ScaledLoss.__doc__).arguments["names"] == "Its own words."
    assert ScaledLoss.__doc__.startswith("A class.\n\nArgs:\n  reduction: ")


def test_the_signature_of_the_class_and_of_its_instances():
    shown = inspect.signature(ScaledLoss).parameters
    assert {name: parameter.default for name, parameter in shown.items()} == {
        "reduction": "mean",
        "loss_weight": 1.0,
        "scale": 1.0,
        "names": (),
        "count": 3,
    }
    assert {parameter.kind for parameter in shown.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert list(inspect.signature(ScaledLoss()).parameters)[:3] == ["pred", "target", "weight"]


def test_settings_are_the_fields_that_the_function_takes():
    loss = ScaledLoss(scale=2.0, names=["a"])
    assert ScaledLoss.functions == (scaled_loss,)
    assert loss.settings == {"scale": 2.0, "names": ("a",)}


def test_lists_become_tuples_so_that_losses_have_a_hash():
    assert ScaledLoss(names=["a", "b"]).names == ("a", "b")
    assert hash(ScaledLoss(names=["a"])) == hash(ScaledLoss(names=("a",)))
    assert ScaledLoss(names=["a"]) != ScaledLoss(names=["b"])


def test_the_ranges_of_function_and_class_hold_for_the_fields():
    with pytest.raises(ValueError, match=r"^ScaledLoss: scale must be above 0, got 0\.0$"):
        ScaledLoss(scale=0.0)
    with pytest.raises(ValueError, match=r"^ScaledLoss: count must be at least 1, got 0$"):
        ScaledLoss(count=0)
    with pytest.raises(TypeError, match=r"^ScaledLoss: count must be an integer, got 1\.5$"):
        ScaledLoss(count=1.5)


def test_a_base_class_gives_its_functions_on():
    @dataclass(frozen=True, kw_only=True)
    class Narrower(ScaledLoss):
        width: float = 1.0

    assert Narrower.functions == (scaled_loss,)
    assert "scale: Factor, above 0." in Narrower.__doc__
    with pytest.raises(ValueError, match="Narrower: scale must be above 0"):
        Narrower(scale=-1.0)


def test_frozen_without_leaves_and_with_errors_of_its_name():
    loss = ScaledLoss()
    with pytest.raises(FrozenInstanceError):
        loss.scale = 2.0
    assert jax.tree.leaves(loss) == []
    error = loss.value_error("something is wrong")
    assert isinstance(error, ValueError)
    assert str(error) == "ScaledLoss: something is wrong"
