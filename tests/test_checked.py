"""`checked`: every message, outside and inside jit, and that nothing is added without it."""

import copy
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from cases import CASES, WITH_METRICS, few
from head_cases import CLASSES as HEAD_CLASSES
from head_cases import EVERY_ROW, batch_for, boxes_for, outputs_for
from head_cases import ROWS as HEADS
from visdet_jax import LOSSES, Checked, FocalLoss, GIoULoss, Loss, build_loss, checked, giou_loss

NAN = np.float32(np.nan)
BOXES = np.array([[0, 0, 4, 4], [1, 1, 3, 5], [2, 2, 2, 2], [0, 1, 2, 3], [5, 5, 9, 9]], np.float32)
LOGITS = np.linspace(-2, 2, 12, dtype=np.float32).reshape(4, 3)
LABELS = np.array([0, 3, 2, 1], np.int32)
SCORES = np.linspace(0, 1, 12, dtype=np.float32).reshape(4, 3)


def put(array, index, value):
    """A copy of `array` with one item replaced."""
    array = np.array(array)
    array[index] = value
    return array


def functionalized(call, *arguments, **options):
    """The call inside jit, which raises what the checks found."""
    error, value = checkify.checkify(jax.jit(call))(*arguments, **options)
    error.throw()
    return value


def run(loss, pred, target, *arguments, **options):
    if not hasattr(getattr(loss, "wrapped", loss), "update"):
        return loss(pred, target, *arguments, **options)
    return loss.update(loss.init(), pred, target, *arguments, **options)[0]


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("name", "row"), few(WITH_METRICS))
def test_valid_input_passes_and_nan_is_found_in_every_class(name, row):
    loss = build_loss({"type": name, **row.config})
    pred, target, *keywords = row.inputs(np.random.default_rng(0))
    keywords = keywords[0] if keywords else {}
    value = run(checked(loss), pred, target, **keywords)
    chex.assert_trees_all_equal(value, run(loss, pred, target, **keywords))
    spoilt = put(pred, (1,) + (-1,) * (pred.ndim - 1), NAN)
    must = r"must be (finite|in \[0, 1\])"
    with pytest.raises(checkify.JaxRuntimeError, match=rf"^{name}: pred\[1.* is .*nan.*: {must}"):
        run(checked(loss), spoilt, target, **keywords)
    if isinstance(loss, Loss):
        weight = put(np.ones(len(pred), np.float32), 1, 0)
        hidden = run(checked(loss), spoilt, target, weight, **keywords)
        assert np.isfinite(jax.tree.leaves(hidden)).all()
        weight[3] = -1
        with pytest.raises(ValueError, match=rf"^{name}: weight\[3\] is -1.0: must be finite and"):
            run(checked(loss), pred, target, weight, **keywords)


BAD = {
    "label": ("FocalLoss", {}, (LOGITS, put(LABELS, 2, 4)), r"target\[2\] is 4: must be a class "
              r"from 0 to 3 \(3 is background\), or -1 to be ignored"),
    "negative": ("FocalLoss", {}, (LOGITS, put(LABELS, 1, -2)), r"target\[1\] is -2: must be a"),
    "dense": ("FocalLoss", {}, (LOGITS, put(SCORES, (3, 1), 1.5)), r"target\[3, 1\] is 1.5: must"),
    "activated": ("FocalLoss", {"activated": True}, (LOGITS, LABELS), r"pred\[0, 0\] is -2.0: "),
    "softmax": ("CrossEntropyLoss", {}, (LOGITS, LABELS), r"target\[1\] is 3: must be a class "
                "from 0 to 2, or -1 or -100 to be ignored"),
    "ignore_index": ("CrossEntropyLoss", {"ignore_index": 255, "avg_non_ignore": True},
                     (LOGITS, put(LABELS, 1, 254)), r"target\[1\] is 254.* or 255 to be ignored"),
    "soft": ("CrossEntropyLoss", {}, (LOGITS, -SCORES), r"target\[0, 1\] is -0.09.*in \[0, 1\]"),
    "sigmoid": ("CrossEntropyLoss", {"use_sigmoid": True}, (LOGITS, LABELS + 1),
                r"target\[1\] is 4: must be a class from 0 to 3 \(3 is background\)"),
    "sigmoid soft": ("CrossEntropyLoss", {"use_sigmoid": True}, (LOGITS, SCORES * 2 - 1),
                     r"target\[0, 1\] is -0.8.*: must be in \[0, 1\], or -1 or -100 to be"),
    "pixels": ("CrossEntropyLoss", {}, (LOGITS.reshape(2, 3, 2), np.array([[0, 1], [2, 7]])),
               r"target\[1, 1\] is 7: must be a class from 0 to 2"),
    "mask": ("CrossEntropyLoss", {"use_mask": True},
             (LOGITS.reshape(2, 3, 2, 1), SCORES[:2, :2, None] * 9, np.array([0, 1])),
             r"target\[0, 1, 0\] is 0.8.* in \[0, 1\]|target\[1, 0, 0\]"),
    "mask's class": ("CrossEntropyLoss", {"use_mask": True},
                     (LOGITS.reshape(2, 3, 2, 1), SCORES[:2, :2, None], np.array([0, 3])),
                     r"label\[1\] is 3: must be a class from 0 to 2"),
    "quality label": ("QualityFocalLoss", {}, (LOGITS, (LABELS + 1, SCORES[:, 0])),
                      r"label\[1\] is 4: must be a class from 0 to 3 \(3 is background\)"),
    "quality score": ("QualityFocalLoss", {}, (LOGITS, (LABELS, SCORES[:, 0] * 3)),
                      r"score\[2\] is 1.6.*: must be in \[0, 1\]"),
    "varifocal": ("VarifocalLoss", {}, (LOGITS, SCORES * 2), r"target\[2, 0\] is 1.09.*in \[0, 1"),
    "bins": ("DistributionFocalLoss", {}, (LOGITS, np.array([0, 2, 2.5, 1], np.float32)),
             r"target\[2\] is 2.5: must be from 0 to 2, the last bin, or -1"),
    "between bins": ("DistributionFocalLoss", {}, (LOGITS, np.array([0, -0.5, 2, 1], np.float32)),
                     r"target\[1\] is -0.5: must be from 0 to 2"),
    "heatmap": ("GaussianFocalLoss", {}, (SCORES, SCORES * 2), r"target\[2, 0\] is 1.09.*in"),
    "heatmap logits": ("GaussianFocalLoss", {}, (LOGITS, SCORES), r"pred\[0, 0\] is -2.0"),
    "dice": ("DiceLoss", {}, (LOGITS, SCORES * 255), r"target\[0, 1\] is 23.* in \[0, 1\]"),
    "right classes": ("MultiPosCrossEntropyLoss", {}, (LOGITS, put(SCORES > 0.5, 0, 0) - np.eye(
        4, 3, dtype=np.int32)), r"target\[0, 0\] is -1.*: must be 0 or 1"),
    "margin": ("MarginL2Loss", {}, (LOGITS, 3 * SCORES), r"target\[1, 1\] is 1.09.*in \[0, 1\]"),
    "seesaw": ("SeesawLoss", {"num_classes": 1}, (LOGITS, LABELS), r"target\[1\] is 3: must be a"),
    "eqlv2": ("EQLV2Loss", {"num_classes": 2}, (LOGITS, LABELS), r"target\[1\] is 3: must be a"),
    "ghmc": ("GHMC", {}, (LOGITS, LABELS + 1), r"target\[1\] is 4: must be a class from 0 to 3"),
    "accuracy": ("Accuracy", {}, (LOGITS, LABELS), r"target\[1\] is 3: must be a class"),
    "corner": ("AssociativeEmbeddingLoss", {}, (LOGITS.reshape(1, 1, 4, 3),) * 2 + (
        np.array([[[[0, 0], [3, 3]]]]),), r"match\[0, 0, 1, 1\] is 3: .* of the 4 × 3 map"),
    "inverted": ("GIoULoss", {}, (BOXES, put(BOXES, 3, [5, 1, 2, 3])),
                 r"target\[3\] is \[5. 1. 2. 3.\]: must be finite, with x1 ≤ x2 and y1 ≤ y2"),
    "inverted pred": ("IoULoss", {}, (put(BOXES, 3, [0, 9, 2, 3]), BOXES), r"pred\[3\] is \[0. 9"),
    "infinite": ("CIoULoss", {}, (BOXES, put(BOXES, (1, 2), np.inf)), r"target\[1\] is .* inf"),
    "xywh": ("DIoULoss", {}, (BOXES, put(BOXES, slice(2, 4), [[9, 9, 2, 2], [5, 5, 1, 1]])),
             r"target\[2\] is \[9. 9. 2. 2.\], and x2 < x1 or y2 < y1 in 2 of 5 boxes: are they x"),
    "regression": ("L1Loss", {}, (LOGITS, put(LOGITS, (2, 2), -np.inf)), r"target\[2, 2\] is -inf"),
    "nan weight": ("L1Loss", {}, (LOGITS, LOGITS, put(SCORES, (1, 2), NAN)),
                   r"weight\[1, 2\] is nan: must be finite and not negative"),
    "avg_factor": ("L1Loss", {}, (LOGITS, LOGITS, None, np.float32(0)),
                   r"avg_factor is 0.0: must be finite and above 0"),
    "nan avg_factor": ("L1Loss", {}, (LOGITS, LOGITS, None, NAN), "avg_factor is nan: must be"),
}  # fmt: skip


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", BAD)
def test_messages(case):
    name, config, arguments, message = BAD[case]
    loss = checked(build_loss({"type": name, **config}))
    with pytest.raises(checkify.JaxRuntimeError, match=f"^{name}: {message}"):
        run(loss, *arguments)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("case", ["label", "xywh", "avg_factor", "quality score"])
def test_messages_inside_jit_and_the_derivative(case):
    name, config, (pred, *arguments), message = BAD[case]
    loss = checked(build_loss({"type": name, **config}))
    for call in (loss, jax.value_and_grad(loss)):
        with pytest.raises(checkify.JaxRuntimeError, match=f"^{name}: {message}"):
            functionalized(call, pred, *arguments)
    with pytest.raises(checkify.JaxRuntimeError, match=f"^{name}: {message}"):
        jax.grad(loss)(pred, *arguments)


def test_values_inside_jit_vmap_and_scan_are_those_of_the_loss():
    loss = FocalLoss(gamma=1.5)
    stacked = np.stack([LOGITS, -LOGITS]), np.stack([LABELS, LABELS])
    value = jax.vmap(jax.value_and_grad(loss))(*stacked)
    chex.assert_trees_all_close(
        functionalized(jax.vmap(jax.value_and_grad(checked(loss))), *stacked), value
    )

    def scan(pred, target):
        return jax.lax.scan(lambda _, x: (None, checked(loss)(*x)), None, (pred, target))[1]

    chex.assert_trees_all_close(functionalized(scan, *stacked), value[0])
    stacked[1][1, 2] = 8
    for call in (scan, jax.vmap(checked(loss))):
        with pytest.raises(checkify.JaxRuntimeError, match=r"FocalLoss: target\[2\] is 8"):
            functionalized(call, *stacked)


def test_jit_without_checkify_is_an_error_of_jax_and_not_silence():
    with pytest.raises(ValueError, match=r"without functionalizing it through `checkify.checkify`"):
        jax.jit(checked(FocalLoss()))(LOGITS, LABELS)


def test_probabilities_for_logits_are_a_warning():
    message = r"FocalLoss: all of pred is in \[0, 1\]: are these probabilities\? The loss takes log"
    loss = checked(FocalLoss())
    with pytest.warns(UserWarning, match=message) as caught:
        loss(SCORES, LABELS)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match=message):
        jax.block_until_ready(functionalized(loss, SCORES, LABELS))
    # None for an untrained network's zeros, for probabilities where they belong, for other values.
    loss(0 * SCORES, LABELS)
    checked(FocalLoss(activated=True))(SCORES, LABELS)
    loss(put(SCORES, (0, 0), -0.1), LABELS)
    checked(build_loss({"type": "L1Loss"}))(SCORES, SCORES)


def test_padding_is_not_looked_at():
    weight = np.array([1, 0, 1, 1, 0], np.float32)
    spoilt = put(put(BOXES, 1, NAN), 4, [9, 9, 0, 0])
    loss = GIoULoss()
    for w in (weight, np.repeat(weight[:, None], 4, 1)):
        assert checked(loss)(spoilt, BOXES, w) == loss(spoilt, BOXES, w)
    labels = put(LABELS, 1, -1)
    pred = put(LOGITS, 1, NAN)
    assert np.isfinite(checked(FocalLoss())(pred, labels))
    ignored = build_loss({"type": "CrossEntropyLoss"})
    assert np.isfinite(checked(ignored)(pred, put(LABELS, 1, -100)))
    with pytest.raises(ValueError, match=r"pred\[1, 0\] is nan"):
        checked(FocalLoss())(pred, LABELS)


def test_empty_input_passes():
    assert checked(FocalLoss())(LOGITS[:0], LABELS[:0]) == 0
    assert checked(GIoULoss())(BOXES[:0], BOXES[:0]) == 0


def test_what_is_wrapped():
    loss = checked(FocalLoss(gamma=1.0))
    assert isinstance(loss, Checked)
    assert loss == checked(FocalLoss(gamma=1.0))
    assert loss.gamma == 1.0
    assert copy.deepcopy(loss) == loss
    assert loss.update(loss.init(), LOGITS, LABELS)[1] == ()
    for other, name in ((giou_loss, "giou_loss"), ({"type": "L1Loss"}, "{'type': 'L1Loss'}")):
        with pytest.raises(TypeError, match=f"a loss or a head, .* got {re.escape(name)}"):
            checked(other)
    with pytest.raises(ValueError, match=r"sigmoid_focal_loss: .*shape"):
        loss(LOGITS, LABELS[:2])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", [name for name, cls in LOSSES.items() if issubclass(cls, Loss)])
def test_without_checked_not_one_instruction_is_added(name, monkeypatch):
    row = CASES[name][0]
    loss = build_loss({"type": name, **row.config})
    pred, target, *keywords = row.inputs(np.random.default_rng(0))
    keywords = keywords[0] if keywords else {}

    def program(loss):
        call = jax.jit(lambda *args, **options: run(loss, *args, **options))
        return call.lower(pred, target, **keywords).as_text()

    with_checks = program(loss)

    def fail(*args, **options):
        raise AssertionError("an unwrapped loss asked what it expects")

    monkeypatch.setattr(type(loss), "expects", fail)
    assert program(loss) == with_checks
    with pytest.raises(AssertionError, match="asked what it expects"):
        run(checked(loss), pred, target, **keywords)


class TestHeads:
    """Heads, whose arguments are outputs and padded ground truth."""

    @pytest.fixture(params=few(HEADS, ["FCOSHead"]))
    def case(self, request):
        head = HEADS[request.param].head()
        return head, outputs_for(head), *boxes_for((2, 0), 3)

    def test_valid_input_passes_padding_of_nan_included(self, case):
        head, *arguments = case
        chex.assert_trees_all_equal(checked(head).loss(*arguments), head.loss(*arguments))
        losses, state = checked(head).update(head.init(), *arguments)
        chex.assert_trees_all_equal(losses, head.loss(*arguments))
        chex.assert_trees_all_equal(state, head.init())
        assert checked(head).targets(*arguments).labels.shape[0] == 2

    def test_messages(self, case):
        head, outputs, boxes, labels = case
        name = type(head).__name__

        def raises(message, outputs=outputs, boxes=boxes, labels=labels, **options):
            with pytest.raises(checkify.JaxRuntimeError, match=rf"^{name}: {message}"):
                checked(head).loss(outputs, boxes, labels, **options)

        maps = list(outputs.bbox_preds)
        maps[1] = put(maps[1], (1, 0, 2, 0), NAN)
        raises(r"bbox_preds\[1\]\[1, 0, 2, 0\] is nan", outputs._replace(bbox_preds=maps))
        last = HEAD_CLASSES - 1
        if HEADS[name].has_classes():  # To a first stage all objects are of one class.
            raises(
                rf"gt_labels\[0, 1\] is {last + 1}: must be from 0 to {last}, or negative for pad",
                labels=put(labels, (0, 1), last + 1),
            )
        else:
            checked(head).loss(outputs, boxes, put(labels, (0, 1), last + 1))
        for nothing in ((boxes, np.full_like(labels, -1)), (boxes[:, :0], labels[:, :0])):
            with pytest.warns(UserWarning, match=f"^{name}: every image is without ground truth"):
                checked(head).loss(outputs, *nothing)
        raises(r"gt_boxes\[0, 0\] is \[.*nan", boxes=put(boxes, (0, 0, 2), NAN))
        raises(
            r"gt_boxes\[0, 1\] is \[9. 2. 3. 4.\]: must be", boxes=put(boxes, (0, 1), [9, 2, 3, 4])
        )
        xywh = put(boxes, (0, slice(0, 2)), [[20, 20, 9, 9], [22, 9, 4, 4]])
        raises(
            r"gt_boxes\[0, 0\] is \[20. 20.  9.  9.\], and x2 < x1 or y2 < y1 in 2 of", boxes=xywh
        )
        for box in ([48, 0, 60, 9], [0, 32, 9, 40], [-9, 0, 0, 9], [0, -9, 9, 0]):
            raises(r"gt_boxes\[0, 1\] is .* lies outside its image", boxes=put(boxes, (0, 1), box))
        shapes = np.array([[32, 20], [32, 48]])
        raises(
            r"gt_boxes\[0, 1\] is .* lies outside",
            boxes=put(boxes, (0, 1), [21, 0, 30, 9]),
            image_shapes=shapes,
        )


class TestDoubts:
    """What looks wrong and may be right is a warning; what cannot fit is an error."""

    head = HEADS["FCOSHead"].head()  # Strides 8 and 16, images of 32 x 48.
    outputs = outputs_for(head)

    def test_boxes_with_x_and_y_exchanged(self):
        labels = np.array([[0, 1], [2, -1]])
        boxes = np.array([[[2, 2, 20, 40], [5, 1, 9, 9]], [[3, 3, 40, 20], [0, 0, 0, 0]]])
        boxes = boxes.astype(np.float32)
        with pytest.warns(UserWarning, match="more than a quarter of gt_boxes reach far beyond"):
            checked(self.head).loss(self.outputs, boxes, labels)
        inside = np.where(boxes > 32, np.float32(32), boxes)
        checked(self.head).loss(self.outputs, inside, labels)

    def test_probabilities_in_place_of_logits(self):
        probabilities = [np.clip(abs(x), 0, 1) for x in self.outputs.cls_scores]
        outputs = self.outputs._replace(cls_scores=probabilities)
        with pytest.warns(UserWarning, match=r"cls_scores\[0\] is in .* probabilities"):
            checked(self.head).loss(outputs, *boxes_for((2, 0), 3))

    def test_images_larger_than_what_the_maps_cover(self):
        message = r"image_shapes\[1\] is \[48 32\]: must be .* within 32 x 48 pixels"
        with pytest.raises(checkify.JaxRuntimeError, match=message):
            checked(self.head).loss(
                self.outputs, *boxes_for((2, 0), 3), np.array([[32, 48], [48, 32]])
            )

    def test_boxes_of_queries_without_a_sigmoid(self):
        head = EVERY_ROW["DETRHead"].head()
        outputs, *truth = batch_for(head)
        in_pixels = outputs._replace(bbox_preds=outputs.bbox_preds * 48)
        message = r"bbox_preds\[.*\] is .*: must be in \[0, 1\]: cx, cy, w, h in fractions"
        with pytest.raises(checkify.JaxRuntimeError, match=message):
            checked(head).loss(in_pixels, *truth)


def test_a_head_inside_jit():
    head = HEADS["FCOSHead"].head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((2, 0), 3)
    loss = checked(head).loss
    chex.assert_trees_all_close(
        functionalized(loss, outputs, boxes, labels), head.loss(outputs, boxes, labels), rtol=1e-6
    )
    with pytest.raises(checkify.JaxRuntimeError, match=r"FCOSHead: gt_labels\[0, 0\] is 7"):
        functionalized(loss, outputs, boxes, put(labels, (0, 0), 7))


@pytest.mark.long
def test_a_shard_without_boxes_is_no_error():
    head = HEADS["FCOSHead"].head()
    outputs, (boxes, labels) = outputs_for(head), boxes_for((2, 0), 3)
    parts = jax.tree.map(lambda x: jnp.asarray(x)[:, None], (outputs, boxes, labels))

    def losses(*arguments):
        return checked(head).loss(*arguments, axis_name="data")

    functionalized(jax.vmap(losses, axis_name="data"), *parts)


@pytest.mark.parametrize("name", ["GHMC", "QualityFocalLoss", "VarifocalLoss", "IoUAwareBCELoss"])
def test_minus_1_is_background_where_the_docstring_says_so(name):
    target = LABELS if name == "GHMC" else (LABELS, np.zeros(4, np.float32))
    loss = checked(build_loss({"type": name}))
    assert np.isfinite(loss(LOGITS, jax.tree.map(lambda x: put(x, 0, -1 * (x is LABELS)), target)))
    wrong = put(LABELS, 1, 5) if name == "GHMC" else (put(LABELS, 1, 5), target[1])
    with pytest.raises(
        checkify.JaxRuntimeError, match=r"\[1\] is 5: .*from 0 to 3 .*or -1 for background"
    ):
        loss(LOGITS, wrong)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_labels_of_every_width_are_checked_as_they_are(dtype):
    logits = np.zeros((3, 100), np.float32)
    loss = checked(build_loss({"type": "CrossEntropyLoss"}))
    assert np.isfinite(loss(logits, np.array([0, 99, 5], dtype)))
    with pytest.raises(checkify.JaxRuntimeError, match=r"target\[1\] is 101: must be a class"):
        loss(logits, np.array([0, 101, 5], dtype))


FRACTIONS = np.array([[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.9, 1.0]], np.float32)


@pytest.mark.parametrize("call", [lambda f, *x: f(*x), functionalized])
def test_boxes_in_fractions_are_doubted(call):
    loss = checked(GIoULoss())

    def run_to_the_end(*boxes):
        call(loss, *boxes)
        jax.effects_barrier()

    with pytest.warns(UserWarning, match="all of pred is in .* fractions of the image"):
        run_to_the_end(FRACTIONS, 100 * FRACTIONS)
    with pytest.warns(UserWarning, match="all of target is in .* fractions of the image"):
        run_to_the_end(100 * FRACTIONS, FRACTIONS)


@pytest.mark.long
def test_boxes_in_pixels_are_not_doubted():
    loss = checked(GIoULoss())
    loss(100 * FRACTIONS, 100 * FRACTIONS + 1)
    loss(np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32))
    # Only the boxes that are read are looked at.
    boxes = np.concatenate([100 * FRACTIONS, FRACTIONS])
    loss(boxes, boxes, np.array([1, 1, 0, 0], np.float32))
    checked(build_loss({"type": "L1Loss"}))(FRACTIONS, FRACTIONS)
