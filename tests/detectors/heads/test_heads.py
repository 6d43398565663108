"""What every head does: with little or no ground truth, in half floats, as an object, decoding."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from head_cases import CLASSES, IMAGE, ROWS, boxes_for, outputs_for, total
from visdet_jax import build_loss
from visdet_jax.boxes import delta2bbox
from visdet_jax.detectors import HEADS, DenseHead, build_head

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-7)
every_head = pytest.mark.parametrize("name", ROWS)
every_anchor_head = pytest.mark.parametrize("name", [n for n, row in ROWS.items() if row.anchors()])
NOTHING = (np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.int32))
SHAPES = np.tile(np.array(IMAGE), (2, 1))


def test_every_registered_head_has_a_row():
    of_priors = {name for name, cls in HEADS.items() if issubclass(cls, DenseHead)}
    assert ROWS.keys() == of_priors
    assert of_priors | {"DETRHead", "DeformableDETRHead"} == HEADS.keys()  # in test_detr.py


@functools.cache
def compiled(head, shapes="usual"):
    """Jitted once for all tests of a head: (losses, gradient of their sum by the outputs)."""

    def value(outputs, *batch):
        losses = head.loss(outputs, *batch)
        return total(losses), losses

    def losses_and_gradient(outputs, *batch):
        (_, losses), gradient = jax.value_and_grad(value, has_aux=True)(outputs, *batch)
        return losses, gradient

    return jax.jit(losses_and_gradient)


def losses_and_gradient(head, outputs, *batch):
    return compiled(head)(outputs, *batch)


def compiled_apart(head):
    """Where the shapes or types are others: those of `compiled` are counted."""
    return compiled(head, "other")


def assert_sound(name, losses, gradient):
    """All losses are there, and everything is finite."""
    assert set(losses) == set(ROWS[name].names)
    for x in jax.tree.leaves((losses, gradient)):
        assert np.isfinite(x).all()
    assert all(loss.shape == () and loss.dtype == jnp.float32 for loss in losses.values())
    assert losses["loss_cls"] > 0
    assert any(np.any(x) for x in gradient.cls_scores)


def with_boxes(*images):
    """Ground truth of two images padded to four boxes, NaN in the padding."""
    boxes, labels = boxes_for((0, 0), 4)
    for i, image in enumerate(images):
        for j, box in enumerate(image):
            boxes[i, j], labels[i, j] = box, j % CLASSES
    return boxes, labels


MIDDLE = (10, 6, 34, 28)
BATCHES = {
    "no box": ([], []),
    "one box": ([MIDDLE], []),
    "as many boxes as rows": ([MIDDLE, (2, 1, 20, 30), (9, 9, 40, 31), (1, 2, 46, 25)], [MIDDLE]),
    "a box that matches nothing": ([(300, 300, 302, 303)], [MIDDLE]),
    "a box without area": ([(12, 12, 12, 12)], [MIDDLE]),
    "a box twice": ([MIDDLE, MIDDLE], []),
}


@every_head
def test_one_compilation_for_all_ground_truth(name):
    """Finite value and gradient, and a box loss above 0 just where a prior has a box."""
    head = ROWS[name].head()
    outputs = outputs_for(head)
    for what, images in BATCHES.items():
        batch = with_boxes(*images)
        losses, gradient = losses_and_gradient(head, outputs, *batch)
        assert_sound(name, losses, gradient)
        positives = np.asarray(head.targets(outputs, *batch).bbox_weights).sum(1)
        learns = [np.any(x) for x in gradient.bbox_preds]
        assert any(learns) == (positives.sum() > 0) == (losses["loss_bbox"] > 0), what
        assert (positives > 0).tolist()[1] == (MIDDLE in images[1]), what
        if what == "no box":
            assert positives.sum() == 0
            without_rows = compiled_apart(head)(outputs, *NOTHING)
            close(without_rows, (losses, gradient))
    assert compiled(head)._cache_size() == 1


@every_head
def test_a_box_loss_is_of_the_boxes_alone(name):
    """Another label, and more padding, leave the box loss and the box gradient as they are."""
    head = ROWS[name].head()
    outputs = outputs_for(head)
    boxes, labels = with_boxes(*BATCHES["one box"])
    losses, gradient = losses_and_gradient(head, outputs, boxes, labels)
    again, other = losses_and_gradient(head, outputs, boxes, np.where(labels >= 0, 2, -7))
    assert losses["loss_cls"] != again["loss_cls"]
    assert losses["loss_bbox"] == again["loss_bbox"]
    chex.assert_trees_all_equal(gradient.bbox_preds, other.bbox_preds)


@every_head
def test_padding_may_stand_anywhere(name):
    head = ROWS[name].head()
    outputs = outputs_for(head)
    boxes, labels = boxes_for((3, 2), 4)
    expected = losses_and_gradient(head, outputs, boxes, labels)
    order = [3, 0, 1, 2]  # the last, which is padding, first; NaN, then infinity
    for filling in (np.nan, np.inf):
        filled = np.where(labels[..., None] < 0, np.float32(filling), boxes)
        actual = losses_and_gradient(head, outputs, filled[:, order], labels[:, order])
        close(actual, expected)


@every_anchor_head
def test_no_anchor_inside_the_image(name):
    """mmdet raises; here nothing is learnt and nothing is NaN."""
    row = ROWS[name]
    head = build_head(row.config, {**row.train_cfg, "allowed_border": 0})
    outputs = outputs_for(head)
    tiny = np.array([[4, 4], IMAGE])
    batch = (*with_boxes([MIDDLE], [MIDDLE]), tiny, SHAPES)
    targets = head.targets(outputs, *batch)
    np.testing.assert_array_equal(targets.gt_inds[0], -2)
    np.testing.assert_array_equal(targets.label_weights[0], 0)
    assert (targets.gt_inds[1] > 0).any()
    losses, gradient = compiled_apart(head)(outputs, *batch)
    assert_sound(name, losses, gradient)
    assert not any(np.any(x[0]) for x in jax.tree.leaves(gradient))
    both = compiled_apart(head)(outputs, *batch[:2], np.array([[4, 4], [4, 4]]), SHAPES)
    assert not any(map(np.any, jax.tree.leaves(both)))


@every_anchor_head
def test_pad_shapes_drop_cells(name):
    head = ROWS[name].head()
    outputs = outputs_for(head)
    pad_shapes = np.array([[32, 24], [17, 48]])
    targets = head.targets(outputs, *with_boxes([MIDDLE], [MIDDLE]), SHAPES, pad_shapes)
    dropped = np.asarray(targets.gt_inds == -2).reshape(2, -1, head.num_base_priors)[..., 0]
    fine = dropped[:, :24].reshape(2, 4, 6)
    np.testing.assert_array_equal(fine[0], np.tile(np.arange(6) >= 3, (4, 1)))
    np.testing.assert_array_equal(fine[1], np.tile(np.arange(4) >= 3, (6, 1)).T)
    coarse = dropped[:, 24:].reshape(2, 2, 3)
    np.testing.assert_array_equal(coarse[0], np.tile([False, False, True], (2, 1)))
    assert not coarse[1].any()
    assert not np.asarray(targets.label_weights)[np.asarray(targets.gt_inds) == -2].any()


def test_image_shapes_are_the_finest_maps_unless_given():
    row = ROWS["ATSSHead"]
    head = build_head(row.config, {**row.train_cfg, "allowed_border": 0})
    outputs, batch = outputs_for(head), with_boxes([MIDDLE], [MIDDLE])
    given = head.targets(outputs, *batch, SHAPES, SHAPES)
    chex.assert_trees_all_equal(head.targets(outputs, *batch), given)
    assert (given.gt_inds == -2).any()


@every_head
def test_half_floats_are_computed_in_float32(name):
    head = ROWS[name].head()
    batch = boxes_for((3, 1), 4)
    half = outputs_for(head, dtype=jnp.bfloat16)
    losses, gradient = compiled_apart(head)(half, *batch)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    exact = jax.tree.map(lambda x: np.asarray(x, np.float32), half)
    expected, exact_gradient = losses_and_gradient(head, exact, *batch)
    assert_sound(name, losses, gradient)
    chex.assert_trees_all_close(losses, expected, rtol=1e-5)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact_gradient)
    chex.assert_trees_all_close(gradient, rounded, rtol=1e-2, atol=1e-6)
    assert {x.dtype for x in head.decode(half)} == {jnp.dtype(jnp.float32)}


@every_head
def test_targets(name):
    head = ROWS[name].head()
    outputs = outputs_for(head)
    boxes, labels = with_boxes([MIDDLE], [])
    labels[0, 0] = 2
    targets = jax.tree.map(np.asarray, head.targets(outputs, boxes, labels))
    positive = targets.gt_inds == 1
    assert positive[0].any()
    assert not positive[1].any()
    np.testing.assert_array_equal(targets.labels[positive], 2)
    np.testing.assert_array_equal(targets.labels[~positive], CLASSES)
    np.testing.assert_array_equal(targets.label_weights, targets.gt_inds >= 0)
    np.testing.assert_array_equal(targets.bbox_weights, positive)
    assert (targets.centerness is None) == ("loss_centerness" not in ROWS[name].names)
    if targets.centerness is not None:
        assert ((targets.centerness > 0) == positive).all()


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def rows_of(maps, channels):
    return np.concatenate([x.reshape(2, -1, channels) for x in maps], axis=1)


def boxes_by_hand(head, outputs):
    """Boxes in pixels, before the clip, in NumPy."""
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    preds = rows_of(outputs.bbox_preds, head.box_channels)
    if isinstance(head, HEADS["RetinaHead"] | HEADS["ATSSHead"]):
        coder = head.bbox_coder
        deltas = preds * np.array(coder.target_stds) + np.array(coder.target_means)
        size = grid.priors[:, 2:] - grid.priors[:, :2]
        middle = (grid.priors[:, 2:] + grid.priors[:, :2]) / 2 + deltas[..., :2] * size
        half = size * np.exp(deltas[..., 2:]) / 2
        return np.concatenate([middle - half, middle + half], axis=-1)
    points = grid.priors
    if isinstance(head, HEADS["GFLHead"]):
        points = (grid.priors[:, :2] + grid.priors[:, 2:]) / 2
        shares = np.exp(preds.reshape(2, -1, 4, head.reg_max + 1).astype(np.float64))
        shares /= shares.sum(-1, keepdims=True)
        preds = (shares * np.arange(head.reg_max + 1)).sum(-1) * grid.strides[:, None]
    elif head.norm_on_bbox:
        preds = preds * grid.strides[:, None]
    return np.concatenate([points - preds[..., :2], points + preds[..., 2:]], axis=-1)


DECODED = [(name, {}) for name in ROWS] + [("FCOSHead", {"norm_on_bbox": True})]


@pytest.mark.parametrize(("name", "changes"), DECODED)
def test_decode(name, changes):
    head = ROWS[name].head(**changes)
    outputs = outputs_for(head)
    expected = boxes_by_hand(head, outputs)
    boxes, scores = head.decode(outputs)
    np.testing.assert_allclose(boxes, expected, rtol=1e-4, atol=1e-3)
    clipped, same = head.decode(outputs, np.array([[20, 30], [30, 20]]))
    limits = np.array([[30, 20, 30, 20], [20, 30, 20, 30]])[:, None]
    np.testing.assert_allclose(clipped, np.clip(expected, 0, limits), rtol=1e-4, atol=1e-3)
    by_class = sigmoid(rows_of(outputs.cls_scores, CLASSES))
    if outputs.centernesses is not None:
        by_class *= sigmoid(rows_of(outputs.centernesses, 1))
    np.testing.assert_allclose(scores, by_class, rtol=1e-5)
    np.testing.assert_array_equal(same, scores)


def test_the_box_of_a_target_is_the_ground_truth():
    """What a prior learns, predicted, decodes to its box."""
    for name in ("RetinaHead", "FCOSHead"):
        head = ROWS[name].head()
        outputs = outputs_for(head)
        targets = head.targets(outputs, *with_boxes([MIDDLE], [MIDDLE]))
        ends = np.cumsum([24, 6]) * head.num_base_priors
        parts = np.split(np.asarray(targets.bbox_targets), ends[:-1], axis=1)
        learnt = outputs._replace(
            bbox_preds=tuple(
                x.reshape(old.shape) for x, old in zip(parts, outputs.bbox_preds, strict=True)
            )
        )
        found = np.asarray(head.decode(learnt).boxes)[np.asarray(targets.gt_inds) > 0]
        np.testing.assert_allclose(found, np.tile(MIDDLE, (len(found), 1)), atol=1e-3)
        perfect, _ = losses_and_gradient(head, learnt, *with_boxes([MIDDLE], [MIDDLE]))
        np.testing.assert_allclose(perfect["loss_bbox"], 0, atol=1e-5)


def test_the_centernesses_of_fcos_divide_their_own_sum():
    """Of a single positive the box loss is the loss of its box, however far from the centre."""
    head = ROWS["FCOSHead"].head()
    outputs, batch = outputs_for(head), with_boxes([(3, 3, 9, 6)], [])  # just around (4, 4)
    losses, _ = losses_and_gradient(head, outputs, *batch)
    targets = head.targets(outputs, *batch)
    np.testing.assert_array_equal(np.argwhere(np.asarray(targets.gt_inds) > 0), [[0, 0]])
    np.testing.assert_allclose(targets.centerness[0, 0], 0.1**0.5, rtol=1e-6)
    np.testing.assert_allclose(targets.bbox_targets[0, 0], [1, 1, 5, 2])
    (left, top, right, bottom), near = outputs.bbox_preds[0][0, 0, 0], np.minimum
    inter = (near(left, 1) + near(right, 5)) * (near(top, 1) + near(bottom, 2))
    iou = inter / ((left + right) * (top + bottom) + 6 * 3 - inter)
    np.testing.assert_allclose(losses["loss_bbox"], -np.log(iou), rtol=1e-5)


def test_softmax_classes():
    head = ROWS["RetinaHead"].head(loss_cls={"type": "CrossEntropyLoss"})
    assert head.channels["cls_scores"] == CLASSES + 1
    outputs, batch = outputs_for(head), boxes_for((3, 1), 4)
    losses, gradient = compiled_apart(head)(outputs, *batch)
    assert_sound("RetinaHead", losses, gradient)
    logits = rows_of(outputs.cls_scores, CLASSES + 1).astype(np.float64)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(head.decode(outputs).scores, shares[..., :-1], rtol=1e-5)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *batch))
    of_label = np.take_along_axis(shares, targets.labels[..., None], axis=-1)[..., 0]
    count = np.maximum(targets.bbox_weights.sum(1), 1).sum()
    expected = -(np.log(of_label) * targets.label_weights).sum() / count
    np.testing.assert_allclose(losses["loss_cls"], expected, rtol=1e-5)


def test_clip_border_of_the_coder():
    coder = {"type": "DeltaXYWHBBoxCoder", "clip_border": False}
    head = ROWS["RetinaHead"].head(bbox_coder=coder)
    outputs = outputs_for(head)
    chex.assert_trees_all_equal(head.decode(outputs, SHAPES), head.decode(outputs))
    assert head.decode(outputs).boxes.max() > max(IMAGE)
    assert ROWS["RetinaHead"].head().decode(outputs, SHAPES).boxes.max() <= max(IMAGE)


def test_pos_weight():
    row = ROWS["ATSSHead"]
    outputs, batch = outputs_for(row.head()), with_boxes([MIDDLE], [])
    heavy = build_head(row.config, {**row.train_cfg, "pos_weight": 2.5})
    targets = heavy.targets(outputs, *batch)
    expected = np.where(np.asarray(targets.gt_inds) > 0, 2.5, 1)
    np.testing.assert_array_equal(targets.label_weights, expected)
    losses, plain = (compiled_apart(head)(outputs, *batch)[0] for head in (heavy, row.head()))
    assert losses["loss_cls"] > plain["loss_cls"]
    assert losses["loss_bbox"] == plain["loss_bbox"]


@every_head
def test_vmap_over_a_hyperparameter(name):
    row = ROWS[name]
    outputs, batch = outputs_for(row.head()), boxes_for((3, 1), 4)

    def loss(loss_weight, gamma):
        changed = {"type": row.config["loss_cls"]["type"], "loss_weight": loss_weight}
        changed["beta" if "Quality" in changed["type"] else "gamma"] = gamma
        return row.head(loss_cls=changed).loss(outputs, *batch)

    swept = jax.jit(jax.vmap(loss))(jnp.array([1.0, 3.0, 1.0]), jnp.array([2.0, 2.0, 0.5]))
    alone, _ = losses_and_gradient(row.head(), outputs, *batch)
    for key, value in swept.items():
        np.testing.assert_allclose(value[0], alone[key], rtol=1e-5)
    np.testing.assert_allclose(swept["loss_cls"][1], 3 * alone["loss_cls"], rtol=1e-5)
    assert swept["loss_cls"][2] > alone["loss_cls"]
    np.testing.assert_allclose(swept["loss_bbox"], jnp.full(3, alone["loss_bbox"]), rtol=1e-5)


@every_head
def test_a_head_is_frozen_hashable_and_without_leaves(name):
    head, twin = ROWS[name].head(), ROWS[name].head()
    assert head == twin
    assert hash(head) == hash(twin)
    assert head != ROWS[name].head(num_classes=4)
    assert jax.tree.leaves(head) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.num_classes = 4


@every_head
def test_equal_heads_share_one_trace_and_live_in_modules(name):
    outputs, batch = outputs_for(ROWS[name].head()), boxes_for((3, 1), 4)
    traces = []

    @jax.jit
    def traced(head, outputs, *batch):
        traces.append(head)
        return head.loss(outputs, *batch)

    class Linen(linen.Module):
        head: nnx.Module

        def __call__(self, *arguments):
            return self.head.loss(*arguments)

    class Nnx(nnx.Module):
        def __init__(self):
            self.head = ROWS[name].head()

    expected, _ = losses_and_gradient(ROWS[name].head(), outputs, *batch)
    for _ in range(3):
        close(traced(ROWS[name].head(), outputs, *batch), expected)
    assert len(traces) == 1
    close(Linen(ROWS[name].head()).apply({}, outputs, *batch), expected)
    close(Nnx().head.loss(outputs, *batch), expected)
    assert jax.tree.leaves(nnx.state(Nnx())) == []


@every_head
def test_a_head_without_statistics_has_an_update(name):
    head = ROWS[name].head()
    outputs, batch = outputs_for(head), boxes_for((3, 1), 4)
    state = head.init()
    assert state == dict.fromkeys(ROWS[name].names, ())
    losses, after = head.update(state, outputs, *batch)
    assert after == state
    close(losses, losses_and_gradient(head, outputs, *batch)[0])


def test_what_a_subclass_must_define():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Bare(DenseHead):
        pass

    bare = Bare(
        num_classes=2,
        loss_cls=build_loss({"type": "FocalLoss"}),
        loss_bbox=build_loss({"type": "L1Loss"}),
    )
    for call in (
        lambda: bare.grid((), np.float32),
        lambda: bare.assign(None, None, None, None, None),
        lambda: bare.compute(None, None),
        lambda: bare.boxes(None, None, None),
        lambda: bare.strides,
    ):
        with pytest.raises(NotImplementedError, match="Bare must define"):
            call()


# Heads whose losses keep running statistics.

GHM = {
    "loss_cls": {"type": "GHMC", "bins": 5, "momentum": 0.75},
    "loss_bbox": {"type": "GHMR", "bins": 4, "momentum": 0.7, "loss_weight": 10.0},
}


def level_by_level(head, state, outputs, *batch):
    """What mmdet does: one call of each loss at each level, the statistics going on."""
    targets = head.targets(outputs, *batch)
    count = jnp.maximum(targets.bbox_weights.sum(1), 1).sum()
    state, losses, start = dict(state), {"loss_cls": 0.0, "loss_bbox": 0.0}, 0
    for scores, boxes in zip(outputs.cls_scores, outputs.bbox_preds, strict=True):
        end = start + scores.shape[1] * scores.shape[2] * head.num_base_priors
        learns = jax.tree.map(lambda x, at=slice(start, end): x[:, at], targets)
        start = end
        calls = {
            "loss_cls": (scores.reshape(-1, CLASSES), learns.labels, learns.label_weights),
            "loss_bbox": (
                boxes.reshape(-1, 4),
                learns.bbox_targets,
                jnp.repeat(learns.bbox_weights[..., None], 4, axis=-1),
            ),
        }
        for name, (pred, target, weight) in calls.items():
            target = target.reshape(-1, *target.shape[2:])
            weight = weight.reshape(-1, *weight.shape[2:])
            loss = getattr(head, name)
            value, state[name] = loss.update(state[name], pred, target, weight, count)
            losses[name] += value
    return losses, state


def test_update_carries_the_statistics_level_by_level():
    head = ROWS["RetinaHead"].head(**GHM)
    state = expected_state = head.init()
    assert [x.shape for x in jax.tree.leaves(state)] == [(4,), (5,)]
    step = jax.jit(head.update)
    reference = jax.jit(functools.partial(level_by_level, head))
    batches = [with_boxes([MIDDLE, (0, 0, 46, 32)], []), boxes_for((3, 1), 4), boxes_for((0, 2), 4)]
    levels = np.split(head.targets(outputs_for(head), *batches[0]).bbox_weights, [48], axis=1)
    assert all(map(np.any, levels))
    for seed, batch in enumerate(batches):
        outputs = outputs_for(head, seed=seed)
        losses, state = step(state, outputs, *batch)
        expected, expected_state = reference(expected_state, outputs, *batch)
        close(losses, expected)
        close(state, expected_state)
    assert step._cache_size() == 1


def test_update_has_gradients():
    head = ROWS["RetinaHead"].head(**GHM)
    outputs, batch = outputs_for(head), boxes_for((3, 1), 4)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(outputs, state):
        losses, state = head.update(state, outputs, *batch)
        return total(losses), state

    (value, state), gradient = jax.jit(step)(outputs, head.init())
    assert np.isfinite(value)
    assert jax.tree.structure(state) == jax.tree.structure(head.init())
    assert all(np.isfinite(x).all() and np.any(x) for x in gradient.cls_scores)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        (GHM, "loss_cls and loss_bbox"),
        ({"loss_cls": GHM["loss_cls"]}, "loss_cls"),
    ],
)
def test_a_loss_with_statistics_says_what_to_write(changes, names):
    head = ROWS["RetinaHead"].head(**changes)
    message = rf"RetinaHead: {names} keeps running statistics: write `state = head.init\(\)` once"
    with pytest.raises(TypeError, match=message):
        head.loss(outputs_for(head), *boxes_for((1, 1), 1))
    free = {**GHM["loss_cls"], "momentum": 0.0}  # counts each call alone, and keeps nothing
    assert jax.tree.leaves(ROWS["RetinaHead"].head(loss_cls=free).init()) == []


def test_reg_decoded_bbox_decodes_before_the_loss():
    head = ROWS["RetinaHead"].head(reg_decoded_bbox=True, loss_bbox={"type": "L1Loss"})
    outputs, batch = outputs_for(head), boxes_for((3, 1), 4)
    targets = jax.tree.map(np.asarray, head.targets(outputs, *batch))
    positive = np.nonzero(targets.gt_inds > 0)
    chosen = batch[0][positive[0], targets.gt_inds[positive] - 1]
    np.testing.assert_array_equal(targets.bbox_targets[positive], chosen)
    grid = head.grid(((4, 6), (2, 3)), np.float32)
    deltas = rows_of(outputs.bbox_preds, 4)[positive]
    decoded = delta2bbox(grid.priors[positive[1]], deltas)
    count = np.maximum(targets.bbox_weights.sum(1), 1).sum()
    expected = np.abs(decoded - chosen).sum() / count
    losses, _ = compiled_apart(head)(outputs, *batch)
    np.testing.assert_allclose(losses["loss_bbox"], expected, rtol=1e-5)
