"""Replays the golden cases of two-stage detectors: samples, losses, gradients, detections.

What mmdet drew at random is given to the heads where a case's sampler was limited; elsewhere they
choose themselves. Padding holds NaN or garbage, and so do the network's outputs in empty slots.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, Proposals, RoIOutputs, build_head

MAX_IOU = {"type": "MaxIoUAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0.5}


@dataclass
class Case:
    """A golden file in one precision, with padding of one kind."""

    name: str
    dtype: Any
    padding: str = "nan"
    arrays: dict = field(init=False)
    config: dict = field(init=False)

    def __post_init__(self):
        self.arrays, self.config = read("twostage", self.name)

    def __getitem__(self, key):
        return self.arrays[key]

    def __contains__(self, key):
        return key in self.arrays

    def filled(self, x, exists):
        """`x` in the case's precision, with padding where nothing exists."""
        x = np.array(x, self.dtype)
        garbage = np.nan
        if self.padding == "garbage":
            garbage = np.random.default_rng(0).uniform(-90, 90, x.shape).astype(self.dtype)
        return np.where(exists.reshape(exists.shape + (1,) * (x.ndim - exists.ndim)), x, garbage)

    def ground_truth(self):
        labels = self["gt_labels"]
        return self.filled(self["gt_bboxes"], labels >= 0), labels

    def proposals(self, boxes="proposals", count="num_proposals"):
        exists = np.arange(self[boxes].shape[1])[None] < self[count][:, None]
        return Proposals(self.filled(self[boxes], exists), exists)

    def draw(self, chosen="in_chosen"):
        """What says which candidates are sampled."""
        if self.config["sampler_limited"]:
            return {"chosen": self[chosen]}
        return {"key": jax.random.key(0)}

    def expected_losses(self):
        return {
            key.removeprefix("exp_"): value.sum()
            for key, value in self.arrays.items()
            if key.startswith("exp_") and "loss" in key
        }

    @property
    def rtol(self):
        return 1e-9 if self.dtype == np.float64 else 1e-5

    def close(self, actual, expected, what, rtol=None, atol=None):
        """Close in the case's precision, relative to the largest number expected."""
        expected = np.asarray(expected)
        largest = np.abs(expected).max(initial=0)
        rtol = self.rtol if rtol is None else rtol
        atol = (rtol if atol is None else atol) * largest
        np.testing.assert_allclose(actual, expected, rtol, atol, err_msg=f"{self.name}: {what}")

    def close_gradient(self, actual, expected, what):
        self.close(actual, expected, what, rtol=2e-6 if self.dtype == np.float64 else 2e-5)

    def same(self, actual, expected, what):
        np.testing.assert_array_equal(actual, expected, err_msg=f"{self.name}: {what}")


def channels_last(x, dtype):
    return np.moveaxis(np.asarray(x, dtype), 1, -1)


def dense_outputs(case):
    levels = range(len(case["featmap_sizes"]))
    maps = (
        tuple(channels_last(case[f"in_{part}_{level}"], case.dtype) for level in levels)
        for part in ("cls", "bbox")
    )
    return HeadOutputs(*maps)


def value_and_gradient(losses):
    """Jitted: ((total, what else is returned), gradient) of a function of outputs."""

    def total(outputs):
        values, rest = losses(outputs)
        return sum(values.values()), (values, rest)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def replay_rpn(case):
    head = build_head(case.config["head_cfg"], case.config["train_cfg"])
    batch = *case.ground_truth(), case["img_shapes"], case["pad_shapes"]
    draw = case.draw()

    def losses(outputs):
        return head.loss(outputs, *batch, **draw), head.targets(outputs, *batch, **draw)

    (_, (values, targets)), gradient = value_and_gradient(losses)(dense_outputs(case))
    assert values.keys() == case.expected_losses().keys()
    for key, expected in case.expected_losses().items():
        case.close(values[key], expected, key)
    for level in range(len(case["featmap_sizes"])):
        for part, found in (("cls", gradient.cls_scores), ("bbox", gradient.bbox_preds)):
            expected = np.moveaxis(case[f"grad_{part}_{level}"], 1, -1)
            case.close_gradient(found[level], expected, f"gradient by {part} {level}")
    chosen = case["in_chosen"]
    case.same(targets.labels, case["tgt_labels"], "labels")
    case.close(targets.label_weights, case["tgt_label_weights"], "label weights")
    case.same(
        np.where(chosen > 0, targets.gt_inds, 0),
        np.where(chosen > 0, case["tgt_gt_inds"], 0),
        "boxes of the sampled anchors",
    )
    dropped = np.asarray(targets.gt_inds) == -2
    case.same(dropped, case["tgt_gt_inds"] == -2, "dropped anchors")
    positive = np.argwhere(np.asarray(targets.bbox_weights) > 0)
    case.same(positive, case["tgt_pos_index"], "positives")
    learnt = np.asarray(targets.bbox_targets)[tuple(positive.T)]
    case.close(learnt, case["tgt_pos_bbox_targets"], "boxes that are learnt")


def replay_proposals(case):
    config = case.config["head_cfg"] | {"rpn_proposal": case.config["test_cfg"]}
    head = build_head(config, {"assigner": MAX_IOU})
    found = head.proposals(dense_outputs(case), case["img_shapes"])
    slots = min(case["exp_boxes"].shape[1], found.exists.shape[1])
    assert not case["exp_boxes"][:, slots:].any()
    case.same(found.exists.sum(1), case["exp_num"], "numbers of proposals")
    exists = np.asarray(found.exists[:, :slots])
    expected = np.where(exists, case["exp_index"][:, :slots], 0)
    case.same(found.indices[:, :slots], expected, "anchors of the proposals")
    case.same(found.labels, np.where(found.exists, 0, -1), "labels of the proposals")
    case.close(found.boxes[:, :slots], case["exp_boxes"][:, :slots], "boxes")
    case.close(found.scores[:, :slots], case["exp_scores"][:, :slots], "scores")


def fitted(case, x, exists, slots):
    """A network's outputs (B, S, ...) in so many slots, with padding in those without a box."""
    x = case.filled(x, exists)
    more = max(slots - x.shape[1], 0)
    rest = np.full((x.shape[0], more, *x.shape[2:]), np.nan, case.dtype)
    return np.concatenate([x, rest], axis=1)[:, :slots]


def roi_outputs(case, head, samples, prefix=""):
    """The outputs for the samples of a stage, whose keys have a prefix."""
    exists, slots = case[f"{prefix}roi_cand"] >= 0, samples.boxes.shape[1]
    outputs = RoIOutputs(
        *(fitted(case, case[f"in_{prefix}{part}"], exists, slots) for part in ("cls", "bbox"))
    )
    if head.mask_head is None:
        return outputs, ()
    masks = np.moveaxis(case[f"in_{prefix}mask"], 2, -1)
    positive = np.arange(masks.shape[1])[None] < case[f"{prefix}num_pos"][:, None]
    masks = fitted(case, masks, positive, head.mask_slots(samples))
    return outputs._replace(mask_preds=masks), (case["gt_masks"],)


def assert_samples(case, samples, prefix=""):
    """The boxes that are sampled and what they learn; slots that mmdet has not are empty."""
    expected = {
        key: case[f"{prefix}roi_{key}"]
        for key in ("bboxes", "gt_inds", "labels", "label_weights", "bbox_targets")
    }
    valid, targets = case[f"{prefix}roi_cand"] >= 0, samples.targets
    slots = min(valid.shape[1], samples.boxes.shape[1])
    assert not valid[:, slots:].any()
    valid = valid[:, :slots]

    def of_samples(x):
        return np.asarray(x)[:, :slots][valid]

    case.same((np.asarray(targets.gt_inds) >= 0).sum(1), valid.sum(1), "numbers of samples")
    case.same(np.asarray(samples.candidates >= 0).sum(1), valid.sum(1), "numbers of candidates")
    case.same(of_samples(targets.gt_inds) - 1, expected["gt_inds"][:, :slots][valid], "boxes")
    case.same(of_samples(targets.labels), expected["labels"][:, :slots][valid], "labels")
    case.same(of_samples(samples.is_gt), case[f"{prefix}roi_is_gt"][:, :slots][valid], "is_gt")
    case.close(of_samples(samples.boxes), expected["bboxes"][:, :slots][valid], "boxes")
    for name in ("label_weights", "bbox_targets"):
        found = of_samples(getattr(targets, name))
        case.close(found, expected[name][:, :slots][valid], name)
    assert not np.any(np.asarray(targets.label_weights)[:, slots:])


def assert_losses(case, values):
    """The losses; those of a batch without a region, which mmdet leaves out, are 0."""
    expected = case.expected_losses()
    assert expected.keys() <= values.keys()
    for key, value in values.items():
        case.close(value, expected.get(key, 0), key)


def assert_roi_gradient(case, gradient, prefix=""):
    for part, found in gradient._asdict().items():
        if found is None:
            continue
        key = {"cls_scores": "cls", "bbox_preds": "bbox", "mask_preds": "mask"}[part]
        expected = case[f"grad_{prefix}{key}"]
        expected = np.moveaxis(expected, 2, -1) if key == "mask" else expected
        slots = min(expected.shape[1], found.shape[1])
        case.close_gradient(found[:, :slots], expected[:, :slots], f"gradient by {prefix}{key}")
        assert not np.any(found[:, slots:])


def state_of(case, head):
    """The state before the call, from the case where it has one."""
    state = head.init()
    loss = state["bbox_head"]["loss_cls"]
    if any(key.startswith("in_state_") for key in case.arrays):
        stored = {name: jnp.asarray(case[f"in_state_{name}"], case.dtype) for name in loss._fields}
        state["bbox_head"]["loss_cls"] = type(loss)(**stored)
    return state


def replay_roi(case):
    config = dict(case.config["roi_head_cfg"])
    head = build_head(config, config.pop("train_cfg"))
    samples = head.sample(case.proposals(), *case.ground_truth(), **case.draw())
    assert_samples(case, samples)
    case.same(samples.candidates, case["roi_cand"], "candidates")
    outputs, masks = roi_outputs(case, head, samples)
    state = state_of(case, head)
    update = value_and_gradient(lambda outputs: head.update(state, outputs, samples, *masks))
    (_, (values, state)), gradient = update(outputs)
    assert_losses(case, values)
    assert_roi_gradient(case, gradient)
    if masks:
        found = head.mask_targets(samples, *masks)
        slots = min(found.shape[1], case["tgt_masks"].shape[1])
        is_soft = case.config["roi_head_cfg"]["train_cfg"].get("soft_mask_target")
        soft = max(case.rtol, 1e-6) if is_soft else 0  # Stored in float32.
        case.close(found[:, :slots], case["tgt_masks"][:, :slots], "masks", rtol=soft)
    loss = state["bbox_head"]["loss_cls"]
    for key, expected in case.arrays.items():
        if key.startswith("exp_state_"):
            case.close(getattr(loss, key.removeprefix("exp_state_")), expected, key)
        if key.startswith("exp_acc"):
            name = key.removeprefix("exp_")
            case.close(head.accuracy(outputs, samples)[name], expected, key)


def replay_cascade(case):
    config = dict(case.config["roi_head_cfg"])
    head = build_head(config, config.pop("train_cfg"))
    ground_truth = case.ground_truth()
    images, boxes = ground_truth[1].shape
    proposals, outputs, samples, masks = case.proposals(), [], [], ()
    ran = [number for number in range(3) if f"s{number}_roi_cand" in case]
    for number, stage in enumerate(head.stages):
        if number not in ran:  # mmdet does not run a stage without a proposal.
            assert not np.any(proposals.exists)
            samples.append(stage.sample(proposals, *ground_truth, key=jax.random.key(0)))
            channels = stage.bbox_head.channels
            shape = samples[-1].boxes.shape[:2]
            empty = (np.zeros((*shape, n), case.dtype) for n in channels.values())
            outputs.append(RoIOutputs(*empty))
            continue
        chosen = case[f"s{number}_in_chosen"]
        if number:  # mmdet's proposals lie together; ours are where their samples were.
            where = case[f"s{number}_proposal_from_slot"]
            count = case[f"s{number}_num_proposals"]
            own = np.zeros((images, boxes + proposals.boxes.shape[1]), np.int8)
            refined = np.zeros(proposals.boxes.shape)
            exists = np.zeros(proposals.exists.shape, bool)
            own[:, :boxes] = chosen[:, :boxes]
            for i in range(images):
                slots = where[i, : count[i]]
                own[i, boxes + slots] = chosen[i, boxes : boxes + count[i]]
                refined[i, slots] = case[f"s{number}_proposals"][i, : count[i]]
                exists[i, slots] = True
            case.same(proposals.exists, exists, f"which are refined for stage {number}")
            case.close(proposals.boxes, refined, f"boxes refined for stage {number}")
            chosen = own
        samples.append(stage.sample(proposals, *ground_truth, chosen=chosen))
        assert_samples(case, samples[-1], f"s{number}_")
        found, masks = roi_outputs(case, stage, samples[-1], f"s{number}_")
        outputs.append(found)
        proposals = stage.refine(found, samples[-1], case["img_shapes"])
    update = value_and_gradient(lambda outputs: head.update(head.init(), outputs, samples, *masks))
    (_, (values, _)), gradient = update(outputs)
    assert_losses(case, values)
    for number in ran:
        assert_roi_gradient(case, gradient[number], f"s{number}_")


def replay_predictions(case):
    settings = case.config
    config = {"type": "StandardRoIHead", "bbox_head": settings["bbox_head"]}
    head = build_head(config, {"assigner": MAX_IOU}, settings["test_cfg"])
    rois = case.proposals("rois", "num_rois")
    exists = np.asarray(rois.exists)
    outputs = RoIOutputs(*(case.filled(case[f"in_{part}"], exists) for part in ("cls", "bbox")))
    decoded = head.decode(outputs, rois.boxes, case["img_shapes"])
    boxes = np.asarray(decoded.boxes).reshape(case["exp_raw_boxes"].shape)
    scores = case["exp_raw_scores"][..., : settings["num_classes"]]
    case.close(boxes[exists], case["exp_raw_boxes"][exists], "decoded boxes")
    case.close(np.asarray(decoded.scores)[exists], scores[exists], "decoded scores")
    found = head.detect(outputs, rois, case["img_shapes"])
    slots = case["exp_boxes"].shape[1]
    case.same(found.exists.sum(1), case["exp_num"], "numbers of detections")
    found = jax.tree.map(lambda x: np.asarray(x)[:, :slots], found)
    case.same(found.labels, np.where(found.exists, case["exp_labels"], -1), "labels")
    case.close(found.boxes, case["exp_boxes"], "boxes of the detections")
    case.close(found.scores, case["exp_scores"], "scores of the detections")


REPLAYS = {
    "rpn": replay_rpn,
    "prop": replay_proposals,
    "roi": replay_roi,
    "mask": replay_roi,
    "cascade": replay_cascade,
    "pred": replay_predictions,
}
CASES = [
    name for kind in REPLAYS for name in names("twostage", kind) if name != "mask_targets"
]  # those of crop_masks


def replay(name, dtype, padding):
    """Replays a case by name, and fails where a number differs."""
    REPLAYS[name.split("_")[0]](Case(name, dtype, padding))
