"""The type that a loss is computed in."""

from typing import Any

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import check_array
from visdet_jax.core.power import WholeExponent


def compute_dtype(**arrays: Any) -> Any:
    """float64 where one of the arrays is float64, else float32.

    Half floats are computed in float32.

    Raises: TypeError where something is no array, or where `pred` is not floating point.
    """
    for name, x in arrays.items():
        check_array(name, x)
    if "pred" in arrays and not jnp.issubdtype(arrays["pred"].dtype, jnp.floating):
        raise TypeError(f"pred must be floating point, got {arrays['pred'].dtype}")
    return jnp.float64 if any(x.dtype == jnp.float64 for x in arrays.values()) else jnp.float32


def as_dtype(dtype: Any, *numbers: Any) -> Any:
    """Hyperparameters in the type that is computed in: one alone as it is, several as a tuple."""
    arrays = tuple(
        number if isinstance(number, WholeExponent) else jnp.asarray(number).astype(dtype)
        for number in numbers
    )
    return arrays if len(arrays) > 1 else arrays[0]


def as_dtype_or_none(dtype: Any, number: Any) -> jax.Array | None:
    """A hyperparameter in the type that is computed in, where it is not None."""
    return None if number is None else jnp.asarray(number).astype(dtype)
