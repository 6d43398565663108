"""Boxes (..., 4): overlaps, formats, and what networks predict for them.

overlap      IoU, IoF and GIoU
formats      corners, corner and size, centre and size; pixels and fractions of the image
deltas       boxes as changes of a prior, for R-CNN, RetinaNet and most others
distances    boxes as distances from a point to their sides, for FCOS, ATSS and GFL
tblr         boxes as distances from a prior's centre, in its sizes, for FSAF
bins         boxes as distributions over bins, for D-FINE
nms          non-maximum suppression into a fixed number of slots
roi_align    what a feature map holds in regions, at one size
masks        masks of boxes, cropped from bitmaps and pasted into them
points       what masks hold at points, and which points are the least certain
_pairs       what the overlaps and the losses of pairs of boxes are made of
_gaussians   rotated boxes as Gaussians, and the distances of these
"""

from visdet_jax.boxes.deltas import bbox2delta as bbox2delta
from visdet_jax.boxes.deltas import delta2bbox as delta2bbox
from visdet_jax.boxes.deltas import legacy_bbox2delta as legacy_bbox2delta
from visdet_jax.boxes.deltas import legacy_delta2bbox as legacy_delta2bbox
from visdet_jax.boxes.distances import bbox2distance as bbox2distance
from visdet_jax.boxes.distances import centerness_target as centerness_target
from visdet_jax.boxes.distances import distance2bbox as distance2bbox
from visdet_jax.boxes.distances import integral as integral
from visdet_jax.boxes.formats import convert_boxes as convert_boxes
from visdet_jax.boxes.formats import denormalize_boxes as denormalize_boxes
from visdet_jax.boxes.formats import normalize_boxes as normalize_boxes
from visdet_jax.boxes.masks import crop_masks as crop_masks
from visdet_jax.boxes.masks import paste_masks as paste_masks
from visdet_jax.boxes.nms import Kept as Kept
from visdet_jax.boxes.nms import KeptDetections as KeptDetections
from visdet_jax.boxes.nms import batched_nms as batched_nms
from visdet_jax.boxes.nms import multiclass_nms as multiclass_nms
from visdet_jax.boxes.nms import nms as nms
from visdet_jax.boxes.overlap import bbox_overlaps as bbox_overlaps
from visdet_jax.boxes.points import sample_points as sample_points
from visdet_jax.boxes.points import uncertain_points as uncertain_points
from visdet_jax.boxes.roi_align import roi_align as roi_align
from visdet_jax.boxes.tblr import bboxes2tblr as bboxes2tblr
from visdet_jax.boxes.tblr import tblr2bboxes as tblr2bboxes
