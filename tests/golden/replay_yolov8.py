"""Replays the golden cases of mmyolo's YOLOv8 and of ultralytics: targets, losses, gradients.

Padding holds NaN or a plausible box.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from golden.read_cases import names, read
from visdet_jax.detectors import (
    EndToEndHead,
    HeadOutputs,
    YOLOHead,
    YOLOTaskAlignedAssigner,
    build_head,
)

YOLOV8 = names("onestage", "yolov8")
ULTRALYTICS = names("onestage", "ultra")
# ultralytics' names of losses.
NAMES = {
    "box_loss": "loss_bbox",
    "cls_loss": "loss_cls",
    "dfl_loss": "loss_dfl",
    "l1_loss": "loss_l1",
}
PAIRS = {
    "E2ELoss": ((0.8, 0.2), (10, None), (7, 1)),
    "E2EDetectLoss": ((1, 1), (10, None), (1, None)),
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
        return range(len(self.config["strides"]))

    def ground_truth(self):
        labels = self["gt_labels"]
        filling = np.nan if self.padding == "nan" else np.array([9, 5, 61, 47])
        boxes = np.where(labels[..., None] >= 0, self["gt_bboxes"], filling)
        return boxes.astype(self.dtype), labels

    def maps(self, prefix, branch="", dtype=None):
        for part in ("cls", "dist"):
            names = (f"{prefix}_{branch}{part}_{level}" for level in self.levels)
            yield tuple(np.moveaxis(self[x], 1, -1).astype(dtype or self.dtype) for x in names)

    def close(self, actual, expected, what):
        rtol = 1e-9 if self.dtype == np.float64 else 1e-5
        atol = rtol * np.abs(expected).max(initial=0)
        np.testing.assert_allclose(actual, expected, rtol, atol, err_msg=f"{self.name}: {what}")

    def close_gradients(self, actual, branch=""):
        largest = max(np.abs(x).max() for maps in self.maps("grad", branch) for x in maps)
        exact = self.dtype == np.float64
        rtol, atol = (2e-6, 1e-9 * largest) if exact else (1e-5, 3e-5 * largest)
        for maps, found in zip(self.maps("grad", branch), actual[:2], strict=True):
            for level, (expected, x) in enumerate(zip(maps, found, strict=True)):
                what = f"{self.name}: gradient {branch} of level {level}"
                np.testing.assert_allclose(x, expected, rtol, atol, err_msg=what)

    def close_targets(self, targets, branch=""):
        # The golden labels of background are 5, as ours.
        for name in ("gt_inds", "labels"):
            expected = self[f"tgt_{branch}{name}"]
            np.testing.assert_array_equal(getattr(targets, name), expected, f"{self.name}: {name}")
        self.close(targets.metrics, self[f"tgt_{branch}metrics"], "metrics")

    def expected_losses(self):
        names = self.config["loss_names"]
        return {NAMES.get(name, name): self[f"exp_{name}"].sum() for name in names}


def yolo_head(config, topk=10, topk2=None):
    assigner = YOLOTaskAlignedAssigner(topk=topk, topk2=topk2, min_side=float(config["strides"][1]))
    return YOLOHead(
        num_classes=config["num_classes"],
        strides=tuple(config["strides"]),
        reg_max=config["reg_max"],
        assigner=assigner,
    )


def replay(name, dtype, padding):
    case = Case(name, dtype, padding)
    truth, config = case.ground_truth(), case.config
    if config.get("loss") in PAIRS:
        replay_pair(case)
        return
    if config["family"] == "yolov8":
        head = build_head(config["head_cfg"], config["train_cfg"])
    else:
        topk, topk2 = (config["loss_kwargs"].get(f"tal_{x}") for x in ("topk", "topk2"))
        head = yolo_head(config, topk or 10, topk2)

    def losses(outputs):
        found = head.loss(outputs, *truth)
        return sum(found.values()), (found, head.targets(outputs, *truth))

    run = jax.jit(jax.value_and_grad(losses, has_aux=True))
    (_, (found, targets)), gradient = run(HeadOutputs(*case.maps("in")))
    assert found.keys() == case.expected_losses().keys()
    case.close_targets(targets)
    for key, expected in case.expected_losses().items():
        case.close(found[key], expected, key)
    case.close_gradients(gradient)


def replay_pair(case):
    weights, many, one = PAIRS[case.config["loss"]]
    truth = case.ground_truth()
    head = EndToEndHead(
        one_to_many=yolo_head(case.config, *many), one_to_one=yolo_head(case.config, *one)
    )

    def losses(outputs):
        found = head.loss(outputs, *truth, weights=weights)
        return sum(found.values()), (found, head.targets(outputs, *truth))

    run = jax.jit(jax.value_and_grad(losses, has_aux=True))
    branches = ("o2m_", "o2o_")
    outputs = tuple(HeadOutputs(*case.maps("in", branch)) for branch in branches)
    (_, (found, targets)), gradients = run(outputs)
    for branch, learnt in zip(branches, targets, strict=True):
        case.close_targets(learnt, branch)
    for key, expected in case.expected_losses().items():
        case.close(found[f"one_to_many.{key}"] + found[f"one_to_one.{key}"], expected, key)
    for branch, gradient in zip(branches, gradients, strict=True):
        case.close_gradients(gradient, branch)
