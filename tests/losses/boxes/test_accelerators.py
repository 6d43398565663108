"""Programs for a GPU and a TPU, where their compilers are installed: what an oddity saves there."""

import jax
import jax.numpy as jnp
import pytest

import visdet_jax as v
from compiled.targets import TARGETS, missing_wheel, sharding_on
from compiled.traffic import read_traffic

N = 200_000
PAIRS = ((N, 4), (N, 4), (N,))
ROTATED = ((N, 5), (N, 5), (N,))


def needs(target):
    command = missing_wheel(TARGETS[target])
    return pytest.mark.skipif(command is not None, reason=f"needs {command}")


def moved(target, loss, shapes):
    """The bytes that value, and value and gradient, move over the least that is possible."""
    try:
        sharding = sharding_on(TARGETS[target])
    except RuntimeError as error:  # Only one process at a time may hold libtpu.
        pytest.skip(str(error))
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding) for shape in shapes]
    given = sum(array.size for array in arrays) * 4

    def of(function, floor):
        program = jax.jit(function).lower(*arrays).compile()
        return read_traffic(program.as_text()).bytes / floor

    return of(loss, given), of(jax.value_and_grad(loss), given + arrays[0].size * 4)


@needs("h200")
@pytest.mark.parametrize(
    ("loss", "n"),
    [
        # With columns 1.8, for Efficient IoU 2.8, for SIoU 3.5; without the select in
        # `_lanes_of_columns` 3.0 to 5.0.
        (v.giou_loss, N),
        (v.ciou_loss, N),
        (v.efficient_iou_loss, N),
        (v.siou_loss, N),
        (v.bounded_iou_loss, N),  # with an array (N, 4) of values 4.2
        (v.ciou_loss, 1001),
        (v.ciou_loss, 16 * 8400),  # with columns 3.7
    ],
)
def test_a_gpu_has_one_loop_for_value_and_gradient(loss, n):
    """See `in_lanes` and `join_lanes`."""
    value, both = moved("h200", loss, ((n, 4), (n, 4), (n,)))
    assert value < 1.3
    assert both < 1.3


@needs("h200")
def test_a_gpu_stores_five_columns_between_value_and_gradient():
    """Of rotated boxes. See `_join_by_stack`, 2.3 without its barrier; 3.8 with `jnp.sin`."""
    value, both = moved("h200", v.GDLoss(loss_type="kld", tau=1.0), ROTATED)
    assert value < 1.3
    assert both < 1.9


@needs("h200")
def test_balanced_l1_is_one_loop_on_a_gpu():
    """See `log1p_excess`."""
    value, both = moved("h200", v.balanced_l1_loss, ((N, 4),) * 3)
    assert value < 1.05
    assert both < 1.05


@needs("v5e")
@pytest.mark.parametrize("loss", [v.giou_loss, v.ciou_loss])
def test_a_tpu_moves_each_array_once(loss):
    """See `split_columns`: 2.3 with slices and a stack."""
    assert moved("v5e", loss, PAIRS)[1] < 1.2
