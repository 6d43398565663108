"""Distribution focal loss."""

import re

import jax
import jax.numpy as jnp
import numpy as np

import programs
import visdet_jax as v
from losses.boxes.pairs import close
from visdet_jax.core.softmax import log_sum_exp

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 3, (16, 5)).astype(np.float32)
LABEL = RNG.integers(0, 5, 16)


def test_at_the_bins_it_is_cross_entropy():
    close(
        v.distribution_focal_loss(PRED, LABEL.astype(np.float32), reduction="none"),
        v.cross_entropy(PRED, LABEL, reduction="none"),
    )


def test_it_is_linear_between_bins():
    low = v.distribution_focal_loss(PRED, np.full(16, 2.0, np.float32))
    high = v.distribution_focal_loss(PRED, np.full(16, 3.0, np.float32))
    middle = v.distribution_focal_loss(PRED, np.full(16, 2.25, np.float32))
    close(middle, 0.75 * low + 0.25 * high)


def test_places_outside_the_bins():
    """Ignored from -1 on, extrapolated between -1 and 0, NaN above the last bin."""
    target = np.float32([-7, -1, -0.25, 4, 4.01, np.nan])
    pred = PRED[:6]
    each = v.distribution_focal_loss(pred, target, reduction="none")
    assert np.isnan(each).tolist() == [False, False, False, False, True, True]
    log_p = np.asarray(jax.nn.log_softmax(pred))
    close(each[:4], [0, 0, -1.25 * log_p[2, 0] + 0.25 * log_p[2, 1], -log_p[3, 4]])
    gradient = jax.grad(lambda p: v.distribution_focal_loss(p, target[:3], reduction="sum"))(
        pred[:3]
    )
    assert not gradient[:2].any()
    weight = np.float32([1, 1, 1, 1, 0, 0])
    assert np.isfinite(v.distribution_focal_loss(pred, target, weight))


def test_the_gradient_by_the_target_is_the_difference_of_the_two_bins():
    target = np.float32([0.25, 3.5])
    gradient = jax.grad(lambda t: v.distribution_focal_loss(PRED[:2], t, reduction="sum"))(target)
    close(gradient, [PRED[0, 0] - PRED[0, 1], PRED[1, 3] - PRED[1, 4]])


def test_the_gradient_has_no_compares_of_bins():
    """See `_derivative` of `_bins`: with 16 bins compares take 1.3 times as long."""
    pred, target = jnp.ones((4096, 16)), jnp.ones(4096)

    def compares(function):
        text = programs.compiled(function, pred, target).as_text()
        return len(re.findall(r"pred\[4096,16\]\S* compare\(", text))

    # The ones that are left are those of the softmax.
    softmax = jax.value_and_grad(lambda p, t: log_sum_exp(p, -1)[1].sum() + t.sum())
    assert compares(jax.value_and_grad(v.distribution_focal_loss)) <= compares(softmax)


def test_value_and_gradient_keep_one_array_of_rows():
    """The bins of a row are found by their index, so that no array of pred's shape is stored."""
    pred, target = jnp.ones((4096, 32)), jnp.ones(4096)
    both = jax.value_and_grad(v.distribution_focal_loss)
    assert programs.temporary_bytes(both, pred, target) < 0.5 * pred.nbytes
