"""The type that a loss is computed in."""

import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.dtypes import as_dtype, as_dtype_or_none, compute_dtype
from visdet_jax.core.power import WholeExponent


@pytest.mark.parametrize(
    ("pred", "target", "expected"),
    [
        (np.float32, np.float32, np.float32),
        (jnp.bfloat16, np.int32, np.float32),
        (np.float16, np.float16, np.float32),
        (np.float64, np.float32, np.float64),
        (np.float32, np.float64, np.float64),
    ],
)
def test_compute_dtype(pred, target, expected):
    assert compute_dtype(pred=np.zeros(2, pred), target=np.zeros(2, target)) == expected


def test_what_is_no_array_or_no_float():
    with pytest.raises(TypeError, match=r"^target must be an array, got list$"):
        compute_dtype(pred=np.zeros(2), target=[1])
    with pytest.raises(TypeError, match=r"^pred must be floating point, got int32$"):
        compute_dtype(pred=np.zeros(2, np.int32), target=np.zeros(2))


def test_as_dtype():
    alone = as_dtype(jnp.float32, 2)
    assert (alone, alone.dtype) == (2, jnp.float32)
    first, second, exponent = as_dtype(jnp.float32, 0.5, np.float64(3), WholeExponent(2))
    assert first.dtype == second.dtype == jnp.float32
    assert exponent == WholeExponent(2)


def test_as_dtype_or_none():
    assert as_dtype_or_none(jnp.float32, None) is None
    assert as_dtype_or_none(jnp.float32, 2).dtype == jnp.float32
