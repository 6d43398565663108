"""The laws of every registered head, whatever its outputs are; and the base class.

A new head is asked all of this as soon as it has a row in `tests/head_cases.py`, and what is spread
over devices in `test_sharded_heads.py`.
"""

import dataclasses
import functools
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from cases import as_long, few
from head_cases import (
    CLASSES,
    EVERY_ROW,
    FEW,
    NEED_MORE,
    ROWS,
    SAME_LOSSES,
    batch_for,
    boxes_for,
    compiled,
    floats_changed,
    outputs_for,
    shapes_for,
    with_boxes_in_order,
    without_integers,
)
from visdet_jax import build_loss, checked
from visdet_jax.core.docstrings import parse
from visdet_jax.detectors import HEADS, BaseHead, DenseHead, Head, HeadTargets
from visdet_jax.detectors.heads import head as head_module

close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)
every_head = pytest.mark.parametrize("name", few(EVERY_ROW, FEW))
every_head_with_classes = pytest.mark.parametrize(
    "name", few([name for name, row in EVERY_ROW.items() if row.has_classes()], FEW)
)
MIDDLE = (10, 6, 34, 28)


def test_every_registered_head_has_a_row():
    rows_of_all = EVERY_ROW.keys() | SAME_LOSSES.keys()
    on_priors = {name for name, cls in HEADS.items() if issubclass(cls, DenseHead)}
    on_priors -= set(NEED_MORE)
    # The heads of a second stage are asked their own laws: test_roi_head.py.
    heads = {name for name, cls in HEADS.items() if issubclass(cls, BaseHead)} - set(NEED_MORE)
    for name in heads:
        rows = "ROWS" if name in on_priors else "QUERY_ROWS, CENTER_ROWS, or rows of another kind"
        assert name in rows_of_all, f"add a row for {name!r} to tests/head_cases.py: to {rows}"
    assert rows_of_all == heads
    assert ROWS.keys() == on_priors - SAME_LOSSES.keys()


@pytest.mark.long
@pytest.mark.parametrize("name", SAME_LOSSES)
def test_heads_with_the_losses_of_another(name):
    row = EVERY_ROW[SAME_LOSSES[name]]
    head = row.head(type=name)
    assert type(head) is HEADS[name]
    batch = batch_for(head)
    losses, gradient = compiled(head)(*batch)
    assert_sound(SAME_LOSSES[name], losses, gradient)
    chex.assert_trees_all_equal((losses, gradient), compiled(row.head())(*batch))


def assert_sound(name, losses, gradient):
    """All losses are there, in float32, and everything is finite."""
    assert set(losses) == set(EVERY_ROW[name].names)
    for x in jax.tree.leaves((losses, gradient)):
        assert np.isfinite(x).all()
    assert all(loss.shape == () and loss.dtype == jnp.float32 for loss in losses.values())
    of_all, logits = EVERY_ROW[name].of_all
    assert losses[EVERY_ROW[name].key(of_all)] > 0
    assert any(np.any(x) for x in jax.tree.leaves(getattr(gradient, logits)))


def with_boxes(*images):
    """Ground truth of two images padded to four boxes, NaN in the padding."""
    boxes, labels = boxes_for((0, 0), 4)
    for i, image in enumerate(images):
        for j, box in enumerate(image):
            boxes[i, j], labels[i, j] = box, j % CLASSES
    return boxes, labels, shapes_for(2)


def positives_of(head, *batch):
    """How many priors or queries of each image have a box."""
    weights = np.asarray(head.targets(*batch).bbox_weights)
    return weights.sum(-1).reshape(-1, 2).max(0)


# Ground truth: any number of boxes, padding, labels.

BATCHES = {
    "no box": ([], []),
    "one box": ([MIDDLE], []),
    "as many boxes as rows": ([MIDDLE, (2, 1, 20, 30), (9, 9, 40, 31), (1, 2, 46, 25)], [MIDDLE]),
    "a box far from the image": ([(300, 300, 302, 303)], [MIDDLE]),
    "a box without area": ([(12, 12, 12, 12)], [MIDDLE]),
    "an inverted box": ([(30, 28, 12, 6)], [MIDDLE]),
    "a box twice": ([MIDDLE, MIDDLE], []),
}


@pytest.mark.one_in(2)
@every_head
def test_one_compilation_for_all_ground_truth(name):
    """Finite value and gradient, and a box loss above 0 just where there is a box to learn."""
    head = EVERY_ROW[name].head()
    outputs, (loss, of_loss) = outputs_for(head), EVERY_ROW[name].of_boxes
    for what, images in BATCHES.items():
        truth = with_boxes(*images)
        losses, gradient = compiled(head)(outputs, *truth)
        assert_sound(name, losses, gradient)
        positives = positives_of(head, outputs, *truth)
        learns = any(np.any(x) for x in jax.tree.leaves(getattr(gradient, of_loss)))
        of_boxes = losses[EVERY_ROW[name].key(loss)]
        assert learns == (positives.sum() > 0) == (of_boxes > 0), what
        assert (positives > 0).tolist()[1] == (MIDDLE in images[1]), what
        if what == "no box":
            assert positives.sum() == 0
            nothing = np.zeros((2, 0, 4), np.float32), np.zeros((2, 0), np.int32), shapes_for(2)
            close(compiled(head, "no rows")(outputs, *nothing), (losses, gradient))
    assert compiled(head)._cache_size() == 1


@every_head
def test_padding_may_stand_anywhere_and_hold_anything(name):
    head = EVERY_ROW[name].head()
    outputs, boxes, labels, shapes = batch_for(head, (3, 2))
    expected = compiled(head)(outputs, boxes, labels, shapes)
    order = [3, 0, 1, 2]  # The last, which is padding, first.
    for filling, mark in ((np.nan, -1), (np.inf, -7), (0.0, -1)):
        filled = np.where(labels[..., None] < 0, np.float32(filling), boxes)
        marked = np.where(labels < 0, mark, labels)
        moved = with_boxes_in_order(outputs, order)
        close(compiled(head)(moved, filled[:, order], marked[:, order], shapes), expected)


@pytest.mark.one_in(2)
@every_head_with_classes
@pytest.mark.parametrize("dtype", ["int8", as_long("uint8")])
def test_labels_of_every_width(name, dtype):
    """What int32 gives, where the number of background is more than the type can count."""
    head = EVERY_ROW[name].head(num_classes=300)
    outputs, boxes, labels, shapes = batch_for(head, (3, 3), 3)
    labels[:, :2] = min(np.iinfo(dtype).max, 299)  # RTMDet may leave one box without a prior.
    narrow = labels.astype(dtype)
    for call in (head.loss, head.targets):
        found = call(outputs, boxes, narrow, shapes)
        chex.assert_trees_all_equal(found, call(outputs, boxes, labels, shapes))
    assert found.labels.dtype == jnp.int32
    assert (found.labels == labels[0, 0]).any()


@pytest.mark.long
@pytest.mark.parametrize("num_classes", [256, 300])
@pytest.mark.parametrize("name", few(["DeformableDETRHead", "RetinaHead"], ["RetinaHead"]))
def test_the_last_class_of_uint8(name, num_classes):
    head = EVERY_ROW[name].head(num_classes=num_classes)
    outputs, boxes, labels, shapes = batch_for(head, (1,), 1)
    labels[:] = 255
    narrow = labels.astype(np.uint8)
    expected = head.loss(outputs, boxes, labels, shapes)
    chex.assert_trees_all_equal(head.loss(outputs, boxes, narrow, shapes), expected)
    for expectation in head.expects(outputs, boxes, narrow, shapes):  # What `checked` asks.
        assert not expectation.rule.bad(jnp.asarray(expectation.x)).any()


# Outputs: any finite numbers, half floats.


@every_head
def test_extreme_outputs(name):
    """Logits, deltas and boxes of ±1e4: finite value and gradient."""
    head = EVERY_ROW[name].head()
    outputs, *truth = batch_for(head)
    for size in (1e4, 1e-30):
        far = floats_changed(lambda x, size=size: np.sign(x) * np.float32(size), outputs)
        if name == "FCOSHead":  # Distances are positive.
            far = far._replace(bbox_preds=jax.tree.map(np.abs, far.bbox_preds))
        if name == "TOODHead":  # Classes are probabilities.
            clipped = jax.tree.map(lambda x: np.clip(x, 0, 1), far.cls_scores)
            far = far._replace(cls_scores=clipped)
        losses, gradient = compiled(head)(far, *truth)
        for x in jax.tree.leaves((losses, gradient, head.decode(far, truth[-1]))):
            assert np.isfinite(x).all(), size


@pytest.mark.one_in(2)
@every_head
def test_half_floats_are_computed_in_float32(name):
    head = EVERY_ROW[name].head()
    _, *truth = batch_for(head)
    half = outputs_for(head, dtype=jnp.bfloat16)
    losses, gradient = compiled(head, "half")(half, *truth)
    assert {x.dtype for x in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    exact = floats_changed(lambda x: np.asarray(x, np.float32), half)
    expected, exact_gradient = compiled(head)(exact, *truth)
    assert_sound(name, losses, gradient)
    close(losses, expected)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), exact_gradient)
    chex.assert_trees_all_close(gradient, rounded, rtol=1e-2, atol=1e-5)
    assert {x.dtype for x in head.decode(half, truth[-1])} == {jnp.dtype(jnp.float32)}


@every_head
def test_float32_stays_float32_where_x64_is_on(name, x64):
    head = EVERY_ROW[name].head()
    for dtype in (np.float32, np.float64):
        losses = jax.eval_shape(head.loss, *batch_for(head, dtype=dtype))
        assert {loss.dtype for loss in losses.values()} == {np.dtype(dtype)}


@every_head
def test_no_gradient_goes_through_the_targets(name):
    head = EVERY_ROW[name].head()
    outputs, boxes, labels, shapes = batch_for(head, (4, 4))
    outputs, integers = without_integers(outputs)

    def learnt(outputs, boxes):
        targets = head.targets(outputs._replace(**integers), boxes, labels, shapes)
        return sum(x.sum() for x in jax.tree.leaves(targets) if x.dtype == jnp.float32)

    gradients = jax.jit(jax.grad(learnt, argnums=(0, 1)))(outputs, boxes)
    assert not any(map(np.any, jax.tree.leaves(gradients)))


@every_head
def test_the_shapes_of_targets_and_detections(name):
    head = EVERY_ROW[name].head()
    batch = batch_for(head)
    targets, found = head.targets(*batch), head.decode(batch[0], batch[-1])
    assert isinstance(targets, HeadTargets)
    shape = targets.gt_inds.shape
    assert shape[-2:] == (2, found.boxes.shape[1])
    for x in (targets.labels, targets.label_weights, targets.bbox_weights):
        assert x.shape == shape
    assert targets.bbox_targets.shape == (*shape, 4)
    assert found.boxes.shape == (*shape[-2:], 4)
    assert found.scores.shape == (*shape[-2:], head.num_classes)
    boxes, scores = map(np.asarray, found)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert ((boxes >= 0) & (boxes <= [48, 32, 48, 32])).all()
    positive = np.asarray(targets.gt_inds) > 0
    np.testing.assert_array_equal(targets.bbox_weights, positive)
    np.testing.assert_array_equal(np.asarray(targets.labels) == head.num_classes, ~positive)
    assert not np.asarray(targets.bbox_targets)[~positive].any()
    has_centerness = any(loss.endswith("loss_centerness") for loss in EVERY_ROW[name].names)
    assert (targets.centerness is not None) == has_centerness


# Image shapes as lists.


@pytest.mark.long
@every_head
def test_lists_and_tuples_of_numbers(name):
    head = EVERY_ROW[name].head()
    outputs, boxes, labels, _ = batch_for(head)
    arrays = jnp.array([[30, 40], [32, 36]], jnp.int32)
    lists = [(30, 40), (32, 36)]
    given = [lists, tuple(lists), [list(pair) for pair in lists], list(arrays)]
    pads = {"pad_shapes": arrays} if issubclass(HEADS[name], DenseHead) else {}
    calls = {
        "loss": head.loss,
        "update": functools.partial(head.update, head.init()),
        "targets": head.targets,
    }
    for call in calls.values():
        expected = call(outputs, boxes, labels, arrays, **pads)
        for shapes in given:
            other_pads = dict.fromkeys(pads, shapes)
            actual = call(outputs, boxes, labels, shapes, **other_pads)
            chex.assert_trees_all_equal(actual, expected)
    by_name = {"image_shapes": lists, **dict.fromkeys(pads, lists)}
    expected = head.loss(outputs, boxes, labels, arrays, **pads)
    close(checked(head).loss(outputs, boxes, labels, **by_name), expected)
    close(jax.jit(head.loss)(outputs, boxes, labels, **by_name), expected)
    for shapes in given:
        chex.assert_trees_all_equal(head.decode(outputs, shapes), head.decode(outputs, arrays))
    for call in (head.loss, head.targets):
        message = re.escape(f"{name}: image_shapes must have shape (2, 2), got (1, 2)")
        with pytest.raises(ValueError, match=message):
            call(outputs, boxes, labels, [(30, 40)])


# Traced hyperparameters, vmap.


@pytest.mark.one_in(2)
@every_head
def test_vmap_over_a_hyperparameter(name):
    """The head has no hash inside; so that lists have to work there as well."""
    row = EVERY_ROW[name]
    loss, _ = row.of_boxes
    outputs, boxes, labels, shapes = batch_for(row.head())

    def head_of(loss_weight):
        return row.head(**{loss: {**row.config[loss], "loss_weight": loss_weight}})

    def losses_of_weight(loss_weight):
        return head_of(loss_weight).loss(outputs, boxes, labels, shapes.tolist())

    swept = jax.jit(jax.vmap(losses_of_weight))(jnp.array([1.0, 3.0]))
    alone, _ = compiled(head_of(1.0))(outputs, boxes, labels, shapes)
    for key, value in swept.items():
        factor = 3 if row.is_of_boxes(key) else 1
        np.testing.assert_allclose(value[0], alone[key], rtol=1e-5)
        np.testing.assert_allclose(value[1], factor * alone[key], rtol=1e-5)


@pytest.mark.one_in(2)
@every_head
def test_vmap_over_batches_is_the_loop(name):
    head = EVERY_ROW[name].head()
    batches = [batch_for(head, (3, 1)), batch_for(head, (0, 4))]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    mapped = jax.jit(jax.vmap(head.loss))(*stacked)
    for i, batch in enumerate(batches):
        close(jax.tree.map(lambda x, i=i: x[i], mapped), compiled(head)(*batch)[0])


# As an object.


@every_head
def test_a_head_is_frozen_hashable_and_without_leaves(name):
    head, twin = EVERY_ROW[name].head(), EVERY_ROW[name].head()
    assert head == twin
    assert hash(head) == hash(twin)
    loss, _ = EVERY_ROW[name].of_boxes
    heavier = {**EVERY_ROW[name].config[loss], "loss_weight": 7.0}
    assert head != EVERY_ROW[name].head(**{loss: heavier})
    assert jax.tree.leaves(head) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.num_classes = 4


@pytest.mark.one_in(2)
@every_head
def test_equal_heads_share_one_trace_and_live_in_modules(name):
    batch = batch_for(EVERY_ROW[name].head())
    traces = []

    @jax.jit
    def traced(head, *batch):
        traces.append(head)
        return head.loss(*batch)

    class Linen(linen.Module):
        head: nnx.Module

        def __call__(self, *arguments):
            return self.head.loss(*arguments)

    class Nnx(nnx.Module):
        def __init__(self):
            self.head = EVERY_ROW[name].head()

    expected, _ = compiled(EVERY_ROW[name].head())(*batch)
    for _ in range(3):
        close(traced(EVERY_ROW[name].head(), *batch), expected)
    assert len(traces) == 1
    close(Linen(EVERY_ROW[name].head()).apply({}, *batch), expected)
    close(Nnx().head.loss(*batch), expected)
    assert jax.tree.leaves(nnx.state(Nnx())) == []


@every_head
def test_a_head_without_statistics_has_an_update(name):
    head = EVERY_ROW[name].head()
    batch = batch_for(head)
    state = head.init()
    own = [key.replace("rpn_", "") for key in EVERY_ROW[name].names if "." not in key]
    own = EVERY_ROW[name].fields or own
    assert state == dict.fromkeys(own, ())
    losses, after = head.update(state, *batch)
    assert after == state
    close(losses, compiled(head)(*batch)[0])
    with pytest.raises(ValueError, match=f"{name}: state must come from init"):
        head.update({}, *batch)


@every_head
def test_signatures_and_docstrings(name):
    """`loss` has the arguments of `update` but the state, and describes each of them."""
    head = EVERY_ROW[name].head()
    of_update = inspect.signature(head.update).parameters
    assert list(of_update)[:4] == ["state", "outputs", "gt_boxes", "gt_labels"]
    assert of_update["axis_name"].default is None
    signature = inspect.signature(head.loss)
    assert list(signature.parameters.values()) == list(of_update.values())[1:]
    assert signature.return_annotation == dict[str, jax.Array]
    assert parse(head.loss.__doc__).arguments.keys() == signature.parameters.keys()
    assert parse(head.update.__doc__).arguments.keys() == of_update.keys()
    assert head.loss.__qualname__.endswith(".loss")
    assert inspect.signature(head.targets).parameters.keys() < signature.parameters.keys()
    fields = {field.name for field in dataclasses.fields(head)}
    assert parse(type(head).__doc__).arguments.keys() == fields
    assert inspect.signature(type(head)).parameters.keys() == fields


# Errors, which name the head.


@every_head
def test_calls_that_do_not_fit(name):
    head = EVERY_ROW[name].head()
    batch = batch_for(head)
    for call, message in (
        (lambda: head.loss(batch[0], batch[1]), "missing a required argument: 'gt_labels'"),
        (lambda: head.loss(*batch, padding=1), "got an unexpected keyword argument 'padding'"),
        (lambda: head.loss(*batch, *batch), "too many positional arguments"),
        (lambda: head.decode(), "missing a required argument: 'outputs'"),
        (lambda: head.loss(tuple(batch[0]), *batch[1:]), r"outputs must be \w+, got tuple"),
        (lambda: jax.jit(head.loss)(tuple(batch[0]), *batch[1:]), r"outputs must be \w+, got tu"),
        (lambda: head.decode(tuple(batch[0]), batch[-1]), r"outputs must be \w+, got tuple"),
    ):
        with pytest.raises(TypeError, match=f"{name}: {message}"):
            call()


@pytest.mark.parametrize(
    ("name", "field"),
    [("FCOSHead", "loss_bbox"), ("VFNetHead", "loss_bbox_refine"), ("DETRHead", "loss_iou")],
)
def test_a_loss_of_boxes_in_another_format(name, field):
    match = f'{name}: {field} gets boxes that need bbox_format="xyxy", got YOLOIoULoss'
    with pytest.raises(ValueError, match=match):
        EVERY_ROW[name].head(**{field: {"type": "YOLOIoULoss", "bbox_format": "xywh"}})


BOXES, LABELS = boxes_for((1, 1), 3)
SHAPES = shapes_for(2)


@every_head
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((BOXES[:1], LABELS[:1], SHAPES), ValueError, "gt_boxes must have shape (2, G, 4), got (1"),
        ((BOXES[0], LABELS, SHAPES), ValueError, "gt_boxes must have shape (2, G, 4), got (3, 4)"),
        ((BOXES[..., :3], LABELS, SHAPES), ValueError, "gt_boxes must have shape (2, G, 4)"),
        ((BOXES.tolist(), LABELS, SHAPES), TypeError, "gt_boxes must be an array, got list"),
        ((BOXES, LABELS[:, :2], SHAPES), ValueError, "gt_labels must have shape (2, 3), got (2, 2"),
        ((BOXES, LABELS * 1.0, SHAPES), TypeError, "gt_labels must hold integer class indices, go"),
        ((BOXES, LABELS, SHAPES[0]), ValueError, "image_shapes must have shape (2, 2), got (2,)"),
    ],
)
def test_ground_truth_that_does_not_fit(name, arguments, error, message):
    head = EVERY_ROW[name].head()
    outputs = outputs_for(head)
    for call in (head.loss, head.targets):
        with pytest.raises(error, match=re.escape(f"{name}: {message}")):
            call(outputs, *arguments)


@every_head
@pytest.mark.parametrize(
    ("num_classes", "error", "message"),
    [
        (0, ValueError, "num_classes must be at least 1, got 0"),
        (-3, ValueError, "num_classes must be at least 1, got -3"),
        (2.5, TypeError, "num_classes must be an integer, got 2.5"),
    ],
)
def test_numbers_of_classes_that_mean_nothing(name, num_classes, error, message):
    with pytest.raises(error, match=re.escape(f"{name}: {message}")):
        EVERY_ROW[name].head(num_classes=num_classes)


# The base class.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare(Head):
    """A head of a kind of its own."""


LOSSES = {
    "loss_cls": build_loss({"type": "FocalLoss"}),
    "loss_bbox": build_loss({"type": "MSELoss"}),
}


def test_what_a_subclass_must_define():
    bare = Bare(num_classes=2, **LOSSES)
    for verb in ("update", "targets", "decode"):
        with pytest.raises(NotImplementedError, match=f"Bare must define {verb}"):
            getattr(bare, verb)()


def test_what_a_subclass_with_other_losses_must_define():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Other(BaseHead):
        def examples(self, rows):
            return {} if self.num_classes > 1 else super().examples(rows)

    with pytest.raises(NotImplementedError, match="Other must define channels"):
        _ = Other(num_classes=2).channels
    with pytest.raises(NotImplementedError, match="Other must define examples"):
        Other(num_classes=1)


def test_a_head_of_a_kind_of_its_own():
    """`loss` of `update`, `checked`, and the head's name in errors come by themselves."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OneBox(Head):
        @head_module.compiled
        def update(self, state, outputs, gt_boxes, gt_labels, image_shapes, *, axis_name=None):
            """(losses, state).

            Args:
              outputs: One box (B, 4) an image.
            """
            self.check_state(state)
            boxes, labels = self.ground_truth(gt_boxes, gt_labels, len(outputs), jnp.float32)
            shapes = head_module.as_shapes("image_shapes", image_shapes, labels, jnp.float32)
            value = self.loss_bbox(outputs, boxes[:, 0], (labels >= 0).any(1), avg_factor=1.0)
            return {"loss_bbox": value / shapes.max()}, state

        loss = head_module.without_state(update)

    head = OneBox(num_classes=2, **LOSSES)
    outputs, (boxes, labels) = np.ones((2, 4), np.float32), with_boxes([MIDDLE], [])[:2]
    expected = ((boxes[0, 0] - 1) ** 2).sum() / 48
    for shapes in (shapes_for(2), shapes_for(2).tolist()):
        for call in (head.loss, checked(head).loss):
            value = call(outputs, boxes, labels, shapes)["loss_bbox"]
            np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert list(inspect.signature(head.loss).parameters) == [
        *("outputs", "gt_boxes", "gt_labels", "image_shapes", "axis_name")
    ]
    assert "outputs: One box (B, 4) an image." in head.loss.__doc__
    with pytest.raises(ValueError, match="OneBox: image_shapes must have shape"):
        head.loss(outputs, boxes, labels, [(1, 2)])
    with pytest.raises(ValueError, match="OneBox: image_shapes must be given"):
        head.expects(outputs, boxes, labels, None)
