"""Reader for `heads/*.npz`: dense heads, assigners, priors and coders (numpy only, no pickles).

Made by the unmodified wheel of mmdet 3.3.0 with mmengine 0.10.7, mmcv-lite 2.2.0, torch 2.13.0 on
the CPU and numpy 2.4.6, seed 20240; only `mmcv.ops` was a placeholder. The files are never edited.
The expected values come from a run in float64, for which the places where mmdet itself converts to
float32 were replaced; the inputs are float32, which both types hold exactly. Maps are stored with
their channels first. A random case was kept only if all its integer targets are the same in
float32, in float64 and after small moves of the ground truth, so that nothing here depends on
rounding. `heads/index.json` lists the files.

`heads/legacy.npz` came later, in the same way with torch 2.14.1: mmdet's legacy coder and anchors,
its TBLR coder, and `centers` of anchors. Its anchors in float64 are those that mmdet makes in
float32, cast. `heads/panoptic_fpn.npz` is `PanopticFPNHead.loss` of the same torch.
"""

import json
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "heads"
HEAD_FILES = sorted(FOLDER.glob("head_*.npz"))
PARTS = {"cls_scores": "cls", "bbox_preds": "bbox", "centernesses": "ctr"}


def read(name):
    """(arrays by name, config) of a file, its cases as a dict by key."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    config = json.loads(str(arrays.pop("config")))
    config["cases"] = {case.pop("key"): case for case in config.get("cases", [])}
    return arrays, config


class HeadCase:
    """A batch of three images with five levels and five classes, and what mmdet makes of it."""

    def __init__(self, path):
        self.arrays, self.config = read(path.stem)
        self.head_cfg, self.train_cfg = self.config["head_cfg"], self.config["train_cfg"]
        self.gt_labels, self.gt_boxes = self.arrays["gt_labels"], self.arrays["gt_bboxes"]
        self.shapes = self.arrays["img_shapes"], self.arrays["pad_shapes"]

    def maps(self, kind):
        """Inputs ("in") or gradients ("grad") of the levels, channels last, by part."""
        levels = range(len(self.config["strides"]))
        return {
            part: tuple(self.arrays[f"{kind}_{k}_{i}"].transpose(0, 2, 3, 1) for i in levels)
            for part, k in PARTS.items()
            if f"in_{k}_0" in self.arrays
        }

    @property
    def losses(self):
        """The sums over the levels, by name."""
        return {name: self.arrays[f"sum_{name}"] for name in self.config["loss_names"]}

    @property
    def gradient_statistics(self):
        """(sum, sum of absolutes, sum of squares) of the gradient by each level, by part."""
        return {
            part: [self.arrays[f"gradstat_{PARTS[part]}_{i}"] for i in range(len(maps))]
            for part, maps in self.maps("in").items()
        }

    @property
    def targets(self):
        """The stored parts of the targets, by their names without `tgt_`."""
        return {k[4:]: v for k, v in self.arrays.items() if k.startswith("tgt_")}
