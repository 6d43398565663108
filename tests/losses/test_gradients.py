"""Gradients of every loss against finite differences in float64."""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CASES
from visdet_jax import LOSSES, StatefulLoss, build_loss
from visdet_jax.core.fields import field_types

# A loss of statistics holds them, and what it makes of them, constant to the gradient: its own
# tests differentiate what is left.
STATELESS = [
    pytest.param(name, row, id=f"{name}-{i}")
    for name, rows in CASES.items()
    for i, row in enumerate(rows)
    if not (row.is_metric or row.detached or issubclass(LOSSES[name], StatefulLoss))
]


@pytest.mark.parametrize(("name", "row"), STATELESS)
def test_finite_differences(name, row, x64):
    """Along random directions of pred, and of every hyperparameter that is a number."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    loss = build_loss({"type": name, **row.config})
    pred, target, *keywords = jax.tree.map(
        lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, row.inputs(rng)
    )
    options = keywords[0] if keywords else {}
    if not row.is_bare:
        options |= {"weight": jnp.asarray(rng.uniform(0.5, 2, len(pred))), "avg_factor": 2.0}
    numbers = {
        key: jnp.float64(getattr(loss, key))
        for key, kind in field_types(type(loss)).items()
        # eps = 0 has no other side; a floor that is not touched has no slope, which is tested too
        if kind is float and getattr(loss, key) > 0
    }

    @jax.jit
    def value(pred, numbers):
        changed = dataclasses.replace(loss, **numbers)
        out = changed(pred, target, **options)
        return sum(out) if isinstance(out, tuple) else out

    gradient, slopes = jax.jit(jax.grad(value, argnums=(0, 1)))(pred, numbers)
    step = 1e-6
    for _ in range(5):
        direction = rng.normal(size=pred.shape)
        ahead = value(pred + step * direction, numbers)
        behind = value(pred - step * direction, numbers)
        expected = (ahead - behind) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(), expected, rtol=1e-5, atol=1e-7)
    for key in numbers:
        width = step * max(numbers[key], 0.1)  # an eps of 1e-6 needs more than its millionth
        ahead = value(pred, {**numbers, key: numbers[key] + width})
        behind = value(pred, {**numbers, key: numbers[key] - width})
        expected = (ahead - behind) / (2 * width)
        np.testing.assert_allclose(slopes[key], expected, rtol=1e-4, atol=1e-5, err_msg=key)
