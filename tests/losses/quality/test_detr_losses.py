"""Losses of the detectors after DETR: identities, what is detached, what is counted."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import visdet_jax as v
from golden.read_golden import read

RNG = np.random.default_rng(0)
PRED = RNG.normal(0, 2, (6, 3)).astype(np.float32)
LABEL = np.array([0, 3, 2, 1, -1, 2], np.int32)
IOU = RNG.uniform(0.1, 0.9, 6).astype(np.float32)
ONE_HOT = (LABEL[:, None] == np.arange(3)).astype(np.float32)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(x, t):
    return np.logaddexp(0, x) - t * x


def formula(name, x, held, gamma=1.5):
    """(rows, classes), with what has no gradient taken at the logits `held`."""
    q, p = ONE_HOT * IOU[:, None], sigmoid(held)
    if name == "MatchabilityAwareLoss":
        return np.where(ONE_HOT > 0, 1, 0.75 * p**gamma) * bce(x, q**gamma)
    if name == "VarifocalLoss":
        return np.where(ONE_HOT > 0, q, 0.75 * p**gamma) * bce(x, q)
    t = ONE_HOT * np.maximum(p**0.75 * q**0.25, 0.01)
    return np.where(ONE_HOT > 0, 1, sigmoid(x) ** gamma) * bce(x, t)


CONFIGS = {
    "MatchabilityAwareLoss": {"alpha": 0.75},
    "VarifocalLoss": {"detached": True},
    "IoUAwareBCELoss": {"alpha": 0.75},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_values_and_finite_differences_with_what_is_detached_held(name, x64):
    loss = v.build_loss({"type": name, "gamma": 1.5, "reduction": "sum", **CONFIGS[name]})
    x = PRED.astype(np.float64)
    value, (slope, of_iou) = jax.value_and_grad(
        lambda x, iou: loss(x, (LABEL, iou)), argnums=(0, 1)
    )(x, IOU.astype(np.float64))
    np.testing.assert_allclose(value, formula(name, x, x).sum(), rtol=1e-7)
    ahead, behind = (formula(name, x + step, x) for step in (1e-6, -1e-6))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-8)
    assert not of_iou.any()


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("QualityFocalLoss", {"alpha": 0.25}),
        ("MatchabilityAwareLoss", {"gamma": 1.5}),
        ("VarifocalLoss", {"detached": True}),
        ("VarifocalLoss", {"gamma": 0.5}),
    ],
)
def test_label_and_score_are_a_dense_target_and_labels_outside_background(name, config):
    loss = v.build_loss({"type": name, "reduction": "sum", **config})
    dense = ONE_HOT * IOU[:, None]
    pair = jax.value_and_grad(lambda x: loss(x, (LABEL, IOU)))(PRED)
    jax.tree.map(close, pair, jax.value_and_grad(lambda x: loss(x, dense))(PRED))


def test_a_class_is_positive_whatever_its_score():
    none = np.zeros_like(IOU)
    inside = (LABEL >= 0) & (LABEL < 3)
    detached = v.varifocal_loss(PRED, (LABEL, none), detached=True, reduction="none")
    np.testing.assert_array_equal(np.asarray(detached)[ONE_HOT > 0], 0)
    focal = sigmoid(PRED) ** 2 * bce(PRED, 0)
    own = np.where(ONE_HOT > 0, bce(PRED, 0), focal).sum(1)
    close(v.matchability_aware_loss(PRED, (LABEL, none), reduction="none"), own)
    dense = v.matchability_aware_loss(PRED, np.zeros_like(PRED), reduction="none")
    close(dense, focal.sum(1))
    assert (own > np.asarray(dense))[inside].all()


def test_quality_focal_shares():
    target = (LABEL, IOU)
    plain = np.asarray(v.quality_focal_loss(PRED, target, reduction="sum"))
    half = v.quality_focal_loss(PRED, target, alpha=0.5, reduction="sum")
    close(half, plain / 2)
    positives = v.quality_focal_loss(PRED, target, alpha=1.0, reduction="sum")
    negatives = v.quality_focal_loss(PRED, target, alpha=0.0, reduction="sum")
    close(positives + negatives, plain)


def test_the_losses_of_a_label_and_an_iou():
    names = {"QualityFocalLoss", "VarifocalLoss", "MatchabilityAwareLoss", "IoUAwareBCELoss"}
    assert names <= {n for n, cls in v.LOSSES.items() if issubclass(cls, v.QualityLoss)}
    for name in names:
        with pytest.raises(ValueError, match=f"{name}: use_sigmoid must be True"):
            v.build_loss({"type": name, "use_sigmoid": False})


def test_rank_weight():
    quality = np.array([[0.3, 0.6, 0.5, 0.6, 0.9, 0.2], [0.1] * 6], np.float32)
    gt_inds = np.array([[1, 1, 1, 1, 0, 2], [3, 3, 0, 3, 0, 0]], np.int32)
    rank = np.array([[3, 0, 2, 1, 0, 0], [0, 1, 0, 2, 0, 0]])
    close(v.rank_weight(quality, gt_inds, tau=2.0), np.exp(-rank / 2))
    with pytest.raises(TypeError, match="rank_weight: gt_inds must hold integer"):
        v.rank_weight(quality, gt_inds.astype(np.float32))


def test_rank_weights_of_the_goldens():
    path = Path(__file__).parents[2] / "golden" / "later" / "aligndetr.IABCELoss.npz"
    ranked = [case for case, _ in read(path) if "w_prime" in case["inputs"]]
    assert len(ranked) == 2
    for case in ranked:
        tau = float(case["name"].partition("tau")[2])
        row = np.arange(len(case["inputs"]["w_prime"]))
        quality = (1 - row / 10).astype(np.float32)
        weight = v.rank_weight(quality, np.ones_like(row, np.int32), tau=tau)
        np.testing.assert_allclose(weight, case["inputs"]["w_prime"], rtol=1e-6)


def test_iou_aware_bce_ranks_only_rows_that_count():
    loss = v.IoUAwareBCELoss(tau=1.5, reduction="none")
    pred, iou = np.broadcast_to(PRED[:1], (4, 3)), np.full(4, 0.5, np.float32)
    label, gt_inds = np.array([0, 0, 0, 3]), np.array([1, 1, 1, 1])

    def call(weight):
        return np.asarray(loss(pred, (label, iou), np.float32(weight), gt_inds=gt_inds))

    plain = v.iou_aware_bce_loss(pred, (label, iou), reduction="none")
    first, second, third = call([1, 1, 1, 1])[:3]
    assert first == plain[0]
    close(call([0, 1, 1, 1]), [0, first, second, plain[3]])
    close(call([1, 0, 0, 1])[0], first)
    assert third != second
    with pytest.raises(ValueError, match="iou_aware_bce_loss: gt_inds must say which rows"):
        loss(pred, (label, iou))
    with pytest.raises(ValueError, match=r"gt_inds must have shape \(4,\), got \(3,\)"):
        loss(pred, (label, iou), gt_inds=gt_inds[:3])
    with pytest.raises(TypeError, match=r"iou_aware_bce_loss: target must be \(label, iou\)"):
        loss(pred, pred)


class TestDFine:
    """The bins of D-FINE's boxes."""

    @pytest.mark.parametrize(("bins", "scale", "up"), [(32, 4.0, 0.5), (8, 8.0, np.ones(1))])
    def test_shares_interpolate_the_distance(self, bins, scale, up):
        marks = np.asarray(v.dfine.weighting_function(bins, up, scale))
        close(marks, -marks[::-1])
        assert (np.diff(marks) > 0).all()
        gt = np.concatenate([np.linspace(marks[0], marks[-1], 41)[:-1], [-99, 99]])
        gt = gt.astype(np.float32)
        k, right, left = map(np.asarray, v.dfine.translate_gt(gt, bins, scale, up))
        close(right + left, 1)
        k = k.astype(int)
        assert (k < bins).all()
        close(left * marks[k] + right * marks[k + 1], np.clip(gt, marks[0], marks[-1]), atol=1e-5)

    def test_sides_come_back(self):
        points = np.array([[0.5, 0.4, 0.2, 0.3], [0.3, 0.7, 0.4, 0.1]], np.float32)
        boxes = np.array([[0.42, 0.2, 0.61, 0.6], [0.05, 0.66, 0.5, 0.77]], np.float32)
        targets = v.dfine.bbox2distance(points, boxes, 32, 4.0, 0.5)
        bins, right, left = (np.asarray(x)[..., None] for x in targets)
        k = np.arange(33, dtype=np.float32).reshape(1, 1, -1)
        with np.errstate(divide="ignore"):
            logits = np.log((k == bins) * left + (k == bins + 1) * right)
        distance = v.dfine.integral(np.maximum(logits, -1e3), 32, 4.0, 0.5)
        again = v.dfine.distance2bbox(points, distance, 4.0)
        x, y, w, h = again.T
        close(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1), boxes)

    def test_no_gradient_and_errors(self):
        box = np.ones((1, 4), np.float32)
        slope = jax.grad(lambda p: v.dfine.bbox2distance(p, box, 8, 4.0, 0.5)[1].sum())(box / 3)
        assert not slope.any()
        for bins in (33, 2, 32.0):
            with pytest.raises(ValueError, match="reg_max must be an even int of at least 4, got"):
                v.dfine.weighting_function(bins, 0.5, 4.0)
        with pytest.raises(ValueError, match=r"integral: pred must have shape \(..., 33\), got"):
            v.dfine.integral(box, 32, 4.0, 0.5)
        with pytest.raises(ValueError, match="up must be a number or an array of one, got shape"):
            v.dfine.translate_gt(box, 8, 4.0, np.ones(2))
        with pytest.raises(ValueError, match="bbox2distance: boxes must have shape"):
            v.dfine.bbox2distance(box, box[:, :2], 8, 4.0, 0.5)


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


class TestDistillation:
    """Shares of matched and other rows."""

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

        for slope in jax.grad(value, argnums=(0, 1))(self.teacher, self.confidence):
            assert not slope.any()

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
        with pytest.raises(ValueError, match="DecoupledDistillationFocalLoss: T must be > 0"):
            v.DecoupledDistillationFocalLoss(T=0)


def test_bins_of_explicitly_sharded_boxes():
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(jax.sharding.AxisType.Explicit,))
    points = RNG.uniform(0.2, 0.8, (8, 4)).astype(np.float32)
    boxes = points[:, [0, 1, 0, 1]] + np.array([-0.1, -0.1, 0.2, 0.1], np.float32)
    expected = v.dfine.bbox2distance(points, boxes, 32, 4.0, 0.5)
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
        actual = v.dfine.bbox2distance(*jax.device_put((points, boxes), sharding), 32, 4.0, 0.5)
        distance = v.dfine.integral(jnp.zeros((8, 4, 33), device=sharding), 32, 4.0, 0.5)
        v.dfine.distance2bbox(jax.device_put(points, sharding), distance, 4.0)
    jax.tree.map(close, jax.device_get(actual), jax.device_get(expected))
