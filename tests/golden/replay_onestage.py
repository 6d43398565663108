"""Replays the golden cases of RTMDet's heads: targets, losses, gradients.

Padding of the ground truth holds NaN, or a box that looks like any other.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import HeadOutputs, build_head

KINDS = ("rtmdet", "rtmdetins", "mmyolo_rtmdet")
# What mmdet computes there is a fault of its own, or hangs on a sort of equal numbers.
LEFT_OUT = ("mmyolo_rtmdet_nopos",)
CASES = [name for kind in KINDS for name in names("onestage", kind) if name not in LEFT_OUT]
PARTS = {
    "cls": "cls_scores",
    "bbox": "bbox_preds",
    "kernel": "kernel_preds",
    "maskfeat": "mask_feats",
}


@dataclass
class Case:
    """A golden file in one precision, with padding of one kind."""

    name: str
    dtype: Any
    padding: str = "nan"
    arrays: dict = field(init=False)
    config: dict = field(init=False)

    def __post_init__(self):
        self.arrays, self.config = read("onestage", self.name)

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def levels(self):
        return len(self["featmap_sizes"])

    def maps(self, prefix, part):
        """The maps of one of the outputs, of each level, channels last."""
        count = 1 if part == "maskfeat" else self.levels
        maps = tuple(
            np.moveaxis(self[f"{prefix}_{part}_{level}"], 1, -1).astype(self.dtype)
            for level in range(count)
        )
        return maps[0] if part == "maskfeat" else maps

    def outputs(self, prefix="in"):
        parts = {PARTS[part]: self.maps(prefix, part) for part in self.config["pred_names"]}
        return HeadOutputs(**parts)

    def ground_truth(self):
        labels, boxes = self["gt_labels"], self["gt_bboxes"].astype(self.dtype)
        fill = np.array([3, 5, 40, 33]) if self.padding == "garbage" else np.full(4, np.nan)
        return np.where(labels[..., None] >= 0, boxes, fill).astype(self.dtype), labels

    def masks(self):
        """The bitmaps by name, for a head that has masks."""
        if "gt_masks" not in self.arrays:
            return {}
        masks, exists = self["gt_masks"], self["gt_labels"][..., None, None] >= 0
        if self.padding == "garbage":
            return {"gt_masks": np.where(exists, masks, 1).astype(bool)}
        return {"gt_masks": np.where(exists, masks, np.nan).astype(self.dtype)}

    def losses(self):
        return {name: self[f"exp_{name}"].sum() for name in self.config["loss_names"]}


def replay(name, dtype, padding="nan", without=()):
    """Replays a case by name, and fails where a number differs.

    Args:
      without: Losses that are not compared, and then no gradients but those of `loss_cls` and
        `loss_bbox` are.
    """
    case = Case(name, dtype, padding)
    head = build_head(case.config["head_cfg"], case.config["train_cfg"])
    truth = (*case.ground_truth(), case["img_shapes"], case["pad_shapes"])
    masks = case.masks()

    @jax.jit
    def run(outputs):
        def total(outputs):
            losses = head.loss(outputs, *truth, **masks)
            return sum(losses.values()), losses

        (_, losses), gradient = jax.value_and_grad(total, has_aux=True)(outputs)
        return losses, gradient, head.targets(outputs, *truth, **masks)

    losses, gradient, targets = run(case.outputs())
    exact = dtype == np.float64
    expected = case.losses()
    assert losses.keys() == expected.keys()
    for key in expected.keys() - set(without):
        assert losses[key].dtype == dtype
        rtol = 1e-9 if exact else 1e-5
        np.testing.assert_allclose(losses[key], expected[key], rtol, err_msg=f"{name}: {key}")
    np.testing.assert_array_equal(targets.gt_inds, case["tgt_gt_inds"])
    np.testing.assert_array_equal(targets.labels, case["tgt_labels"])
    positives = np.argwhere(np.asarray(targets.gt_inds) > 0)
    np.testing.assert_array_equal(positives, case["tgt_pos_index"])
    if "tgt_label_weights" in case.arrays:
        np.testing.assert_array_equal(targets.label_weights, case["tgt_label_weights"])
    atol = 1e-12 if exact else 1e-6
    np.testing.assert_allclose(targets.metrics, case["tgt_metrics"], atol * 10, atol)
    for part in case.config["pred_names"]:
        if without and part not in ("cls", "bbox"):
            continue
        found = getattr(gradient, PARTS[part])
        expected_maps = case.maps("grad", part)
        for level, (actual, wanted) in enumerate(
            zip(jax.tree.leaves(found), jax.tree.leaves(expected_maps), strict=True)
        ):
            largest = np.abs(wanted).max(initial=0)
            rtol, atol = (2e-6, 1e-9 * largest) if exact else (0, 3e-5 * largest)
            what = f"{name}: gradient by {part} {level}"
            np.testing.assert_allclose(actual, wanted, rtol, atol, err_msg=what)
