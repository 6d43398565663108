"""D-FINE's losses of distributions over bins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import programs
import visdet_jax as v
from losses.boxes.pairs import close

RNG = np.random.default_rng(0)


@pytest.mark.long
def test_fine_grained_localization_of_equal_bins_is_distribution_focal():
    pred = RNG.normal(size=(5, 9)).astype(np.float32)
    target = np.array([0, 0.25, 7.5, 8, -1], np.float32)
    bins = np.where(target < 0, -1, np.trunc(target)).astype(np.float32)

    def of_parts(x):
        return v.fine_grained_localization_loss(x, (bins, target - bins, 1 - (target - bins)))

    parts = jax.value_and_grad(of_parts)(pred)
    jax.tree.map(close, parts, jax.value_and_grad(v.distribution_focal_loss)(pred, target))
    half = np.full(5, 0.5, np.float32)
    values = v.fine_grained_localization_loss(pred, (bins + 1, half, half), reduction="none")
    assert np.isnan(values).tolist() == [False, False, False, True, False]
    with pytest.raises(ValueError, match=r"weight_left must have shape \(5,\), got \(4,\)"):
        v.FineGrainedLocalizationLoss()(pred, (bins, half, half[:4]))
    with pytest.raises(ValueError, match=r"FineGrainedLocalizationLoss: bins\[3\] is 9.0: must be"):
        v.checked(v.FineGrainedLocalizationLoss())(pred, (bins + 1, half, half))


def test_the_bin_after_the_last_counts_as_the_last():
    pred, last = RNG.normal(size=(1, 9)).astype(np.float32), np.full(1, 8, np.float32)
    quarter, rest = np.full(1, 0.25, np.float32), np.full(1, 0.75, np.float32)

    def loss(p, right, left):
        return v.fine_grained_localization_loss(p, (last, right, left))

    split = jax.value_and_grad(loss)(pred, quarter, rest)
    whole = jax.value_and_grad(loss)(pred, np.zeros(1, np.float32), np.ones(1, np.float32))
    jax.tree.map(close, split, whole)


def test_gradients_by_the_weights_of_the_bins():
    pred, bins = RNG.normal(size=(3, 9)).astype(np.float32), np.float32([0, 3, 7])
    half = np.full(3, 0.5, np.float32)

    def loss(right, left):
        return v.fine_grained_localization_loss(pred, (bins, right, left), reduction="sum")

    cross_entropies = -np.asarray(jax.nn.log_softmax(pred))
    rows, k = np.arange(3), bins.astype(int)
    right, left = jax.grad(loss, argnums=(0, 1))(half, half)
    close(right, cross_entropies[rows, k + 1])
    close(left, cross_entropies[rows, k])


class TestDistillation:
    """The weights of matched and other rows."""

    pred, teacher = RNG.normal(size=(2, 8, 5)).astype(np.float32)
    confidence = RNG.uniform(0.1, 1, 8).astype(np.float32)
    matched = np.array([1, 0, 0, 1, 0, 0, 0, 1], bool)

    def call(self, *weight, matched=None, **options):
        matched = self.matched if matched is None else matched
        loss = v.DecoupledDistillationFocalLoss(T=2.0)
        keywords = {"confidence": self.confidence, "matched": matched}
        return loss(self.pred, self.teacher, *weight, **keywords, **options)

    def divergence(self):
        log_p, log_t = (
            x / 2 - np.log(np.exp(x / 2).sum(1, keepdims=True)) for x in (self.pred, self.teacher)
        )
        return 4 * self.confidence * (np.exp(log_t) * (log_t - log_p)).sum(1)

    def test_mean(self):
        values = self.divergence()
        m1, m2 = values[self.matched].mean(), values[~self.matched].mean()
        root1, root2 = np.sqrt(3), np.sqrt(5)
        close(self.call(), (m1 * root1 + m2 * root2) / (root1 + root2))
        for everything in (np.zeros(8, bool), np.ones(8, bool)):
            close(self.call(matched=everything), values.mean())
        weight = np.array([1, 1, 1, 0, 0, 1, 0, 0], np.float32)
        expected = (values[0] + values[[1, 2, 5]].mean() * root1) / (1 + root1)
        close(self.call(weight, avg_factor=4), expected)

    def test_no_gradient_but_of_the_student(self):
        def value(teacher, confidence):
            keywords = {"confidence": confidence, "matched": self.matched}
            return v.decoupled_distillation_focal_loss(self.pred, teacher, **keywords)

        for gradient in jax.grad(value, argnums=(0, 1))(self.teacher, self.confidence):
            assert not gradient.any()

    def test_rows_are_counted_over_an_axis(self):
        arrays = (self.pred, self.teacher, self.confidence, self.matched)
        loss = v.DecoupledDistillationFocalLoss(T=2.0)

        def on_a_device(pred, teacher, confidence, matched):
            options = {"confidence": confidence, "matched": matched, "axis_name": "data"}
            return loss.update((), pred, teacher, **options)[0]

        parts = [x.reshape(4, 2, *x.shape[1:]) for x in arrays]
        values = jax.vmap(on_a_device, axis_name="data")(*parts)
        close(values.mean(), self.call())

    def test_errors(self):
        with pytest.raises(TypeError, match="matched must be bools, got int32"):
            self.call(matched=self.matched.astype(np.int32))
        with pytest.raises(ValueError, match=r"matched must have shape \(8,\), got \(8, 1\)"):
            self.call(matched=self.matched[:, None])
        with pytest.raises(ValueError, match="DecoupledDistillationFocalLoss: T must be above 0"):
            v.DecoupledDistillationFocalLoss(T=0)
        keywords = {"confidence": self.confidence, "matched": self.matched}
        with pytest.raises(ValueError, match="decoupled_distillation_focal_loss: T must be above"):
            v.decoupled_distillation_focal_loss(self.pred, self.teacher, T=-1.0, **keywords)

    def test_value_and_gradient_keep_the_two_distributions_alone(self):
        """See `_log_distributions`: seven arrays are stored if the derivative has `softmax`."""
        pred, rows = jnp.ones((4096, 32)), jnp.ones(4096)

        def loss(pred, teacher, confidence):
            return v.decoupled_distillation_focal_loss(
                pred, teacher, confidence=confidence, matched=confidence > 0.5
            )

        stored = programs.temporary_bytes(jax.value_and_grad(loss), pred, pred, rows)
        assert stored < 4 * pred.nbytes
