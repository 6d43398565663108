"""Replays the golden cases of one-stage heads: targets, losses, gradients; see `onestage/`.

Padding of the ground truth holds NaN, or boxes that look like any other. It is of one length, so
that cases of one config whose maps are of one size share a compiled program.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, build_head

# mmyolo's answer hangs on a sort of equal numbers there.
LEFT_OUT = ("mmyolo_rtmdet_nopos",)
KINDS = (
    *("rtmdet", "rtmdetins", "mmyolo_rtmdet"),
    *("vfnet", "yolox", "tood_init", "tood_tal"),
    *("yolov8", "ultra"),
)
CASES = {kind: [x for x in names("onestage", kind) if x not in LEFT_OUT] for kind in KINDS}
# The names of outputs and losses in the files, and ours.
PARTS = {
    "cls": "cls_scores",
    "bbox": "bbox_preds",
    "dist": "bbox_preds",
    "bboxrf": "bbox_preds_refine",
    "obj": "objectnesses",
    "kernel": "kernel_preds",
    "maskfeat": "mask_feats",
}
LOSSES = {
    "box_loss": "loss_bbox",
    "cls_loss": "loss_cls",
    "dfl_loss": "loss_dfl",
    "l1_loss": "loss_l1",
}
# ultralytics' pairs of branches: their weights, and (topk, topk2) of each.
PAIRS = {
    "E2ELoss": ((0.8, 0.2), (10, None), (7, 1)),
    "E2EDetectLoss": ((1, 1), (10, None), (1, None)),
}
BRANCHES = {"one_to_many": "o2m_", "one_to_one": "o2o_"}
BOXES = 24


@dataclass
class Case:
    """A golden file in one precision, with padding of one kind, "nan" or "plausible"."""

    name: str
    dtype: Any
    padding: str
    arrays: dict = field(init=False)
    config: dict = field(init=False)

    def __post_init__(self):
        self.arrays, self.config = read("onestage", self.name)

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def branches(self):
        """What the names of a branch start with: of two where the head is a pair."""
        return tuple(BRANCHES.values()) if self.config.get("loss") in PAIRS else ("",)

    def head(self):
        if self.config["family"] != "ultra":
            return build_head(self.config["head_cfg"], self.config["train_cfg"])
        if self.config["loss"] in PAIRS:
            _, *branches = PAIRS[self.config["loss"]]
            heads = (self.yolo_head(*branch) for branch in branches)
            return build_head({"type": "EndToEndHead", **dict(zip(BRANCHES, heads, strict=True))})
        settings = self.config["loss_kwargs"]
        return self.yolo_head(settings.get("tal_topk", 10), settings.get("tal_topk2"))

    def yolo_head(self, topk, topk2):
        assigner = {"type": "YOLOTaskAlignedAssigner", "topk": topk, "topk2": topk2}
        settings = {key: self.config[key] for key in ("num_classes", "strides", "reg_max")}
        min_side = float(self.config["strides"][1])
        return build_head(
            {"type": "YOLOHead", **settings, "assigner": {**assigner, "min_side": min_side}}
        )

    def maps(self, prefix, branch=""):
        """The maps of each output by our name, level by level, channels last."""
        parts = {x.removeprefix(branch) for x in self.config["pred_names"] if x.startswith(branch)}
        return {PARTS[part]: self.maps_of(f"{prefix}_{branch}{part}", part) for part in parts}

    def maps_of(self, key, part):
        levels = range(1 if part == "maskfeat" else len(self.config["strides"]))
        maps = (np.moveaxis(self[f"{key}_{level}"], 1, -1).astype(self.dtype) for level in levels)
        return tuple(maps) if part != "maskfeat" else next(maps)

    def outputs(self):
        outputs = tuple(HeadOutputs(**self.maps("in", branch)) for branch in self.branches)
        return outputs if len(outputs) > 1 else outputs[0]

    def ground_truth(self):
        """(boxes, labels), padded."""
        real, (images, count) = self["gt_labels"] >= 0, self["gt_labels"].shape
        labels = np.full((images, BOXES), -1, np.int32)
        labels[:, :count] = self["gt_labels"]
        if self.padding == "nan":
            boxes = np.full((images, BOXES, 4), np.nan)
        else:
            corner = np.random.default_rng(0).uniform(0, 40, (images, BOXES, 2))
            boxes = np.concatenate([corner, corner + 30], axis=-1)
        boxes[labels >= 0] = self["gt_bboxes"][real]
        return boxes.astype(self.dtype), labels

    def options(self):
        """(what `targets` needs besides, what only `loss` does), by name."""
        of_targets = {key: self.config[key] for key in ("epoch",) if key in self.config}
        of_loss = {key: self.config[key] for key in ("use_l1",) if key in self.config}
        if self.config.get("loss") in PAIRS:
            of_loss["weights"] = PAIRS[self.config["loss"]][0]
        if "gt_masks" in self.arrays:
            images, _, *size = self["gt_masks"].shape
            masks = np.full((images, BOXES, *size), np.nan if self.padding == "nan" else 1)
            real = self["gt_labels"] >= 0
            masks[:, : real.shape[1]][real] = self["gt_masks"][real]
            of_targets["gt_masks"] = masks.astype(self.dtype if self.padding == "nan" else bool)
        return of_targets, of_loss

    def expected_losses(self):
        found = {LOSSES.get(x, x): self[f"exp_{x}"].sum() for x in self.config["loss_names"]}
        return found | ({"loss_l1": 0.0} if self.config.get("use_l1") is False else {})

    def close(self, actual, expected, rtol, atol, what):
        np.testing.assert_allclose(actual, expected, rtol, atol, err_msg=f"{self.name}: {what}")


@functools.cache
def program(head):
    """Jitted: (total, (losses, targets)) and the gradient of the total by the outputs."""

    def total(outputs, *truth, of_targets, of_loss):
        losses = head.loss(outputs, *truth, **of_targets, **of_loss)
        return sum(losses.values()), (losses, head.targets(outputs, *truth, **of_targets))

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def replay(name, dtype, padding, without=()):
    """Replays a case by name, and fails where a number differs.

    Args:
      without: Losses that are not compared, and then no gradients but those of `cls_scores` and
        `bbox_preds` are.
    """
    case = Case(name, dtype, padding)
    batch = (case.outputs(), *case.ground_truth(), case["img_shapes"], case["pad_shapes"])
    of_targets, of_loss = case.options()
    result = program(case.head())(*batch, of_targets=of_targets, of_loss=of_loss)
    (_, (losses, targets)), gradients = jax.tree.map(np.asarray, result)
    assert_losses(case, losses, without)
    pair = len(case.branches) > 1
    for branch, learnt, gradient in zip(
        case.branches,
        targets if pair else (targets,),
        gradients if pair else (gradients,),
        strict=True,
    ):
        assert_targets(case, learnt, branch)
        assert_gradients(case, gradient, branch, without)


def assert_losses(case, losses, without):
    assert all(value.dtype == case.dtype for value in losses.values())
    if len(case.branches) > 1:  # The recorded ones are the sums of both.
        many, one = (
            {key.removeprefix(f"{x}."): y for key, y in losses.items() if key.startswith(x)}
            for x in BRANCHES
        )
        assert many.keys() == one.keys()
        losses = {key: many[key] + one[key] for key in many}
    expected = case.expected_losses()
    assert losses.keys() == expected.keys()
    rtol = 1e-9 if case.dtype == np.float64 else 1e-5
    for key in expected.keys() - set(without):
        case.close(losses[key], expected[key], rtol, 0, key)


def assert_targets(case, targets, branch):
    """Compares what is stored of the targets: integers exactly."""

    def equal(actual, key):
        if key in case.arrays:
            np.testing.assert_array_equal(actual, case[key], f"{case.name}: {key}")

    positive = targets.gt_inds > 0
    equal(targets.gt_inds, f"tgt_{branch}gt_inds")  # FCOS's points have none.
    equal(targets.labels, f"tgt_{branch}labels")
    equal(targets.label_weights, "tgt_label_weights")
    if not branch:
        equal(np.argwhere(positive), "tgt_pos_index")
    np.testing.assert_array_equal(targets.bbox_weights, positive)
    assert not targets.bbox_targets[~positive].any()
    exact = case.dtype == np.float64
    if f"tgt_{branch}metrics" in case.arrays:
        tolerance = (1e-11, 1e-12) if exact else (1e-5, 2e-8)
        case.close(targets.metrics, case[f"tgt_{branch}metrics"], *tolerance, "metrics")
    else:
        assert targets.metrics is None
    if "tgt_pos_bbox_targets" in case.arrays:
        tolerance = (1e-9, 1e-9) if exact else (2e-5, 2e-5)
        actual, expected = targets.bbox_targets[positive], case["tgt_pos_bbox_targets"]
        case.close(actual, expected, *tolerance, "bbox_targets")


def assert_gradients(case, gradient, branch, without):
    for part, expected in case.maps("grad", branch).items():
        if without and part not in ("cls_scores", "bbox_preds"):
            continue
        found = jax.tree.leaves(getattr(gradient, part))
        for level, (actual, wanted) in enumerate(
            zip(found, jax.tree.leaves(expected), strict=True)
        ):
            largest = np.abs(wanted).max(initial=0)
            exact = case.dtype == np.float64
            rtol, atol = (2e-6, 1e-12 * largest) if exact else (0, 3e-5 * largest)
            case.close(actual, wanted, rtol, atol, f"gradient by {branch}{part} {level}")
