"""Replays the golden cases of criteria that are no heads of mmdet; see `queries/`.

Padding of the ground truth holds NaN, or boxes that look like any other, and is of one length, so
that cases of one config and of equal shapes share a compiled program.
"""

import functools
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import DETROutputs, DFINEOutputs, MaskPoints, RFDETROutputs, build_head

KINDS = {
    "rtdetr": "RTDETRCriterion",
    "dfine": "DFINECriterion",
    "deim": "DEIMCriterion",
    "rfdetr": "RFDETRCriterion",
}
OUTPUTS = {"rtdetr": DETROutputs, "rfdetr": RFDETROutputs}
CASES = {kind: names("queries", kind) for kind in KINDS}
# The losses that are others here on purpose, and outputs whose gradients they change.
DIFFERENT = {
    # Without the union DEIM learns each layer's bins from those of the last layer's pairs: the k-th
    # pair of a layer gets the bins of the last layer's k-th pair, whichever query and box that is.
    "deim_nouni": ({"loss_fgl_aux_0"}, {"corners"}),
}
PARTS = {
    "cls_scores": "cls",
    "bbox_preds": "box",
    "corners": "corners",
    "mask_preds": "mask",
}
PARTS |= {f"enc_{name}": f"enc_{part}" for name, part in PARTS.items()}
PARTS |= {
    f"{x}{name}": f"{x}{PARTS[name]}" for x in ("pre_",) for name in ("cls_scores", "bbox_preds")
}
PARTS |= {f"dn_{name}": f"dn_{part}" for name, part in PARTS.items() if not name.startswith("enc_")}
# Numbers and boxes that have no gradient.
CONSTANTS = ("ref_points", "dn_ref_points", "up", "reg_scale", "dn_gt_inds")
BOXES = 6


@dataclass
class Case:
    """A golden file in one precision, with padding of one kind, "nan" or "plausible"."""

    name: str
    dtype: Any
    padding: str = "nan"
    arrays: dict = field(init=False)
    config: dict = field(init=False)

    def __post_init__(self):
        self.arrays, self.config = read("queries", self.name)

    def __getitem__(self, key):
        return self.arrays[key]

    @property
    def kind(self):
        return self.name.partition("_")[0]

    def head(self):
        """Built from the keys of the project's own config."""
        of_criterion = dict(self.config["criterion"])
        of_criterion.pop("training", None)
        if self.config.get("reg_max"):
            of_criterion["reg_max"] = self.config["reg_max"]
        for key in ("num_classes", "matcher"):
            of_criterion[key] = self.config[key]
        if self.kind == "rfdetr":
            of_criterion["weight_dict"] = self.config["weight_dict"]
            of_criterion |= {
                key: x
                for key, x in self.config.get("masks", {}).items()
                if key == "mask_point_sample_ratio"
            }
        return build_head({"type": KINDS[self.kind], **of_criterion})

    def as_float(self, x):
        return x.astype(self.dtype) if np.issubdtype(x.dtype, np.floating) else x

    def outputs(self):
        """(those with a gradient, those without), by name."""
        fields = OUTPUTS.get(self.kind, DFINEOutputs)._fields
        learnt = {
            name: self.as_float(self[f"in_{part}"])
            for name, part in PARTS.items()
            if name in fields and f"in_{part}" in self.arrays
        }
        rest = {
            name: self.as_float(self[name])
            for name in CONSTANTS
            if name in fields and name in self.arrays
        }
        return learnt, rest

    def ground_truth(self):
        """(boxes, labels), padded."""
        real, (images, count) = self["gt_labels"] >= 0, self["gt_labels"].shape
        labels = np.full((images, BOXES), -1, np.int32)
        labels[:, :count] = self["gt_labels"]
        boxes = np.full((images, BOXES, 4), np.nan)
        if self.padding == "plausible":
            corner = np.random.default_rng(0).uniform(0, 20, (images, BOXES, 2))
            boxes = np.concatenate([corner, corner + 10], axis=-1)
        boxes[labels >= 0] = self["gt_bboxes"][real]
        return boxes.astype(self.dtype), labels

    def options(self):
        """What the calls need besides, by name."""
        if self.kind != "rfdetr":
            return {}
        found = {"training": self.config["criterion"]["training"]}
        if "gt_masks" in self.arrays:
            images, count, *size = self["gt_masks"].shape
            real = self["gt_labels"] >= 0
            masks = np.full((images, BOXES, *size), np.nan if self.padding == "nan" else 1)
            masks[:, :count][real] = self["gt_masks"][real]
            found["gt_masks"] = masks.astype(self.dtype if self.padding == "nan" else bool)
            names = ("points_match", "points_over", "points_rand")
            found["points"] = MaskPoints(*(self[name].astype(self.dtype) for name in names))
        return found

    def matching(self):
        """The recorded matchings by the names of the arguments of `loss`."""
        ours = {"go_gt_inds": "union_gt_inds"}
        keys = ("gt_inds", "pre_gt_inds", "enc_gt_inds", "go_gt_inds")
        return {ours.get(key, key): self[key] for key in keys if key in self.arrays}

    def expected_losses(self):
        """By name, with their weights."""
        weights = self.config["weight_dict"] if self.kind == "rfdetr" else {}
        return {
            name: next((w for key, w in weights.items() if name.startswith(key)), 1)
            * self[f"exp_{name}"].sum()
            for name in self.config["loss_names"]
        }

    def close(self, actual, expected, rtol, atol, what):
        np.testing.assert_allclose(actual, expected, rtol, atol, err_msg=f"{self.name}: {what}")


@functools.cache
def program(head, outputs_type, training=None, whole=True):
    """Jitted: (total, (losses, matchings)) and the gradient of the total by the outputs."""
    static = {} if training is None else {"training": training}

    def total(learnt, rest, truth, options, matching):
        outputs = outputs_type(**learnt, **rest)
        losses = head.loss(outputs, *truth, **options, **static, **matching)
        found = {}
        if whole:
            found["gt_inds"] = head.targets(outputs, *truth, **options, **static).gt_inds
            if getattr(head, "use_uni_set", False):
                found["go_gt_inds"] = head.union_targets(outputs, *truth).gt_inds
        return sum(losses.values()), (losses, found)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def replay(name, dtype, padding="nan", given=False):
    """Replays a case by name, and fails where a number differs.

    Args:
      given: The recorded matchings are given; else they are found, and compared.

    Returns: the losses by name.
    """
    case = Case(name, dtype, padding)
    learnt, rest = case.outputs()
    options = case.options()
    training = options.pop("training", None)
    outputs_type = OUTPUTS.get(case.kind, DFINEOutputs)
    run = program(case.head(), outputs_type, training, not given)
    matching = case.matching() if given else {}
    truth = *case.ground_truth(), case["img_shapes"]
    result = run(learnt, rest, truth, options, matching)
    (_, (losses, found)), gradient = jax.tree.map(np.asarray, result)
    for key, actual in found.items():
        np.testing.assert_array_equal(actual, case[key], f"{name}: {key}")
    assert given or "gt_inds" in found
    expected = case.expected_losses()
    assert losses.keys() == expected.keys()
    assert all(value.dtype == dtype for value in losses.values())
    different, changed = DIFFERENT.get(name, ((), ()))
    exact = dtype == np.float64
    for key in expected.keys() - set(different):
        case.close(losses[key], expected[key], 1e-9 if exact else 2e-5, 1e-12, key)
    for key in gradient.keys() - set(changed):
        wanted = case[f"grad_{PARTS[key]}"]
        atol = (1e-9 if exact else 5e-5) * np.abs(wanted).max(initial=0)
        case.close(gradient[key], wanted, 0, atol, f"gradient by {key}")
    return losses
