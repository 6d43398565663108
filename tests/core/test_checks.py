"""Checks of arrays: of their shapes and types, when a loss is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.core.checks import as_labels, check_array, check_same_shape


def test_check_array():
    check_array("pred", np.zeros(2))
    check_array("pred", jnp.zeros(2))
    check_array("pred", jax.ShapeDtypeStruct((2,), jnp.float32))
    for value, name in (([1.0], "list"), (None, "NoneType"), ("text", "str"), (1.0, "float")):
        with pytest.raises(TypeError, match=rf"^pred must be an array, got {name}$"):
            check_array("pred", value)


def test_check_same_shape():
    check_same_shape(np.zeros((2, 3)), np.ones((2, 3)))
    message = r"^pred and target must have the same shape, got \(2, 3\) and \(3,\)$"
    with pytest.raises(ValueError, match=message):
        check_same_shape(np.zeros((2, 3)), np.ones(3))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
def test_labels_become_int32(dtype):
    labels = as_labels("target", np.array([0, 100], dtype), (2,))
    assert isinstance(labels, jax.Array)
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [0, 100]


def test_negative_labels_stay_negative():
    assert as_labels("target", np.array([-1, -128], np.int8)).tolist() == [-1, -128]


def test_int64_stays(x64):
    assert as_labels("target", np.array([2**40])).dtype == jnp.int64


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_an_unsigned_label_too_large_for_int32_is_no_class(dtype, x64):
    top = np.iinfo(np.int32).max
    labels = as_labels("target", np.array([3, 2**31, np.iinfo(dtype).max], dtype))
    assert labels.dtype == jnp.int32
    assert labels.tolist() == [3, top, top]


@pytest.mark.parametrize("dtype", [np.float32, bool, np.complex64])
def test_what_is_no_integer_raises(dtype):
    name = np.dtype(dtype)
    with pytest.raises(TypeError, match=rf"^target must hold integer class indices, got {name}$"):
        as_labels("target", np.zeros(2, dtype))


def test_another_shape_raises():
    with pytest.raises(ValueError, match=r"^target must have shape \(3,\), got \(2,\)$"):
        as_labels("target", np.zeros(2, np.int32), (3,))
    assert as_labels("target", np.zeros((2, 5), np.int32)).shape == (2, 5)
    with pytest.raises(TypeError, match=r"^target must be an array, got list$"):
        as_labels("target", [1, 2], (2,))
