"""Is a derivative that of the value? At every option of a class, and at numbers not the defaults.

A derivative written by hand is easily right at the defaults alone: of Huber's loss the clipped
difference, where delta is 1. So each field that holds a number gets another one, and each flag,
each choice of a string, and None or not None, is taken in turn. `tests/settings.py` reads off the
class what there is.

Nothing is compiled: JAX runs the operations one by one, and the many calls share what they have.
"""

import contextlib
import dataclasses
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import first_state, updated
from settings import built, defaults, is_allowed, numbers, options, whole_exponents

STEP = 1e-6


def check_class(cls, rows, others=(), thorough=False):
    """Raises an AssertionError for a derivative that is not that of its value.

    Args:
      cls: The class of a loss.
      rows: Ways to call it; each is taken as it is, with other numbers.
      others: Rows of its base classes, which an option is tried with too.
      thorough: Takes each option with all rows that suit it, not with the first alone.
    """
    for i, row in enumerate(rows):
        check(cls, row, row.config, f"row {i}")
    known = [defaults(cls) | row.config for row in rows]
    needed = {name: rows[0].config[name] for name in rows[0].config.keys() - defaults(cls).keys()}
    for name, value in options(cls):
        if not thorough and any(name in config and config[name] == value for config in known):
            continue  # It is one of the rows above.
        attempts = [(row, row.config | {name: value}) for row in rows]
        attempts += [(row, needed | row.config | {name: value}) for row in others]
        attempts += [(row, needed | {name: value}) for row in rows]
        allowed = [(row, config) for row, config in attempts if is_allowed(cls, config)]
        suited = ((row, config) for row, config in allowed if makes_sense(cls, row, config))
        taken = list(suited if thorough else itertools.islice(suited, 1))
        for row, config in taken:
            check(cls, row, config, f"{name}={value!r}")
        if allowed and not taken:
            pytest.fail(
                f"the inputs of no row suit {cls.__name__}({name}={value!r}): "
                f"add a row with this config for {cls.__name__!r} to tests/cases.py"
            )


def check(cls, row, config, what):
    """Derivatives along pred, the weight and all numbers at once, then by whole exponents."""
    others = numbers(cls, config)
    assert_derivative(built(cls, **config), row, others, what)
    whole = whole_exponents(cls, config)
    if whole:
        loss = built(cls, **{**config, **others, **whole})
        assert_derivative(loss, row, {}, what)


def makes_sense(cls, row, config):
    """Whether a row's inputs are what the loss of this config takes."""
    pred, target, keywords = row.arguments()
    loss = built(cls, **config)
    try:
        with jax.disable_jit():
            value, _ = updated(loss, first_state(loss), pred, target, **keywords)
    except (TypeError, ValueError):
        return False
    return all(np.isfinite(part).all() for part in jax.tree.leaves(value))


def assert_derivative(loss, row, numbers, what):
    """Compares JAX's derivative of each value with finite differences, in float64."""
    rng = np.random.default_rng(zlib.crc32(type(loss).__name__.encode()))
    pred, target, keywords = jax.tree.map(as_float64, row.arguments())
    moved = {"pred": pred, "numbers": {name: np.float64(x) for name, x in numbers.items()}}
    if not row.is_bare:
        moved["weight"] = rng.uniform(0.5, 2, len(pred))
    moved = jax.tree.map(jnp.asarray, moved)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), moved)

    def values(moved):
        changed = with_numbers(loss, moved["numbers"])
        options = {} if row.is_bare else {"reduction_override": "none", "weight": moved["weight"]}
        state = first_state(changed)
        value, _ = updated(changed, state, moved["pred"], target, **options, **keywords)
        return jnp.concatenate([jnp.ravel(part) for part in jax.tree.leaves(value)])

    def constant_in(moved):
        """What a hand-written derivative holds constant, where it holds a part."""
        formula = CONSTANT_PARTS.get(type(loss).__name__)
        changed = with_numbers(loss, moved["numbers"])
        held = formula and formula(changed, pred, moved["pred"], target)
        if held is None:
            return None
        weight = moved["weight"].reshape((-1,) + (1,) * (held.ndim - 1))
        return jnp.ravel(changed.loss_weight * weight * held)

    with jax.disable_jit():
        value, derivative = jax.jvp(values, (moved,), (direction,))
        held = constant_in(moved)
        if held is not None:
            np.testing.assert_allclose(held, value, rtol=1e-9, err_msg=what)
            _, expected = jax.jvp(constant_in, (moved,), (direction,))
        else:
            expected = difference_quotient(values, moved, direction)
    settings = " ".join(repr(with_numbers(loss, numbers)).split())
    np.testing.assert_allclose(
        derivative,
        expected,
        rtol=1e-5,
        atol=1e-6 * max(1, np.abs(expected).max(initial=0)),
        err_msg=f"{type(loss).__name__}, {what}: the derivative is not that of the value, at "
        f"{settings}. Where part of it is a constant for the gradient on purpose, and not by "
        "stop_gradient, add its formula to CONSTANT_PARTS in tests/derivatives.py.",
    )


def with_numbers(loss, numbers):
    """The loss with other numbers, which may be traced."""
    fields = {field.name: getattr(loss, field.name) for field in dataclasses.fields(loss)}
    return built(type(loss), **fields | numbers)


def difference_quotient(function, at, direction):
    """What is stopped from having a gradient is held constant here too."""
    ahead, behind = (
        jax.tree.map(lambda x, d, step=step: x + step * d, at, direction) for step in (STEP, -STEP)
    )
    with constants() as constant:
        function(at)
        constant.replay()
        ahead = function(ahead)
        constant.replay()
        behind = function(behind)
    return (np.asarray(ahead) - np.asarray(behind)) / (2 * STEP)


class Constants:
    """In the place of `jax.lax.stop_gradient`: the results of the first run, then these again."""

    def __init__(self, original):
        self.original, self.results, self.next = original, [], None

    def __call__(self, x):
        if self.next is None:
            self.results.append(self.original(x))
            return self.results[-1]
        self.next += 1
        return self.results[self.next - 1]

    def replay(self):
        self.next = 0


@contextlib.contextmanager
def constants():
    original = jax.lax.stop_gradient
    jax.lax.stop_gradient = Constants(original)
    try:
        yield jax.lax.stop_gradient
    finally:
        jax.lax.stop_gradient = original


def as_float64(x):
    return x.astype(np.float64) if x.dtype == np.float32 else x


# Losses whose derivative, written by hand, takes a factor of the value for a constant, in plain
# formulas: (loss, pred where that factor is taken, pred, target) -> values before the weight, or
# None where the config has no such factor.


def cross_entropy(pred, target):
    return jax.nn.softplus(pred) - target * pred


def positives_and_qualities(pred, target):
    """Which class is the row's, and the quality there."""
    if not isinstance(target, tuple):
        return target > 0, target
    label, score = target
    positive = label[:, None] == np.arange(pred.shape[1])
    return positive, np.where(positive, score[:, None], 0)


def varifocal(loss, constant, pred, target):
    if not loss.detached:
        return None
    positive, t = positives_and_qualities(pred, target)
    negative = loss.alpha * jnp.abs(jax.nn.sigmoid(constant) - t) ** loss.gamma
    factor = jnp.where(positive, t if loss.iou_weighted else 1, negative)
    return factor * cross_entropy(pred, t)


def matchability_aware(loss, constant, pred, target):
    positive, quality = positives_and_qualities(pred, target)
    t = jnp.where(quality > 0, np.where(quality > 0, quality, 1) ** loss.gamma, 0)
    alpha = 1 if loss.alpha is None else loss.alpha
    factor = jnp.where(positive, 1, alpha * jax.nn.sigmoid(constant) ** loss.gamma)
    return (factor * cross_entropy(pred, t)).sum(1)


def asymmetric(loss, constant, pred, target):
    if not loss.detached:
        return None
    clip = 0 if loss.clip is None else loss.clip
    p, own = jax.nn.sigmoid(pred), target == 1
    miss = jnp.where(own, jax.nn.sigmoid(-constant), jax.nn.sigmoid(constant) - clip)
    focus = jnp.where(miss > 0, miss, 1) ** jnp.where(own, loss.gamma_pos, loss.gamma_neg)
    likelihood = jnp.where(own, p, jnp.minimum(1 - p + clip, 1))
    return jnp.where(miss > 0, focus, 0) * -jnp.log(jnp.maximum(likelihood, loss.eps))


CONSTANT_PARTS = {
    "AsymmetricLoss": asymmetric,
    "MatchabilityAwareLoss": matchability_aware,
    "VarifocalLoss": varifocal,
}
