"""Boxes (..., 4): overlaps, formats, and what networks predict for them."""

from visdet_jax.boxes.deltas import bbox2delta as bbox2delta
from visdet_jax.boxes.deltas import delta2bbox as delta2bbox
from visdet_jax.boxes.distances import bbox2distance as bbox2distance
from visdet_jax.boxes.distances import centerness_target as centerness_target
from visdet_jax.boxes.distances import distance2bbox as distance2bbox
from visdet_jax.boxes.distances import integral as integral
from visdet_jax.boxes.formats import convert_boxes as convert_boxes
from visdet_jax.boxes.formats import denormalize_boxes as denormalize_boxes
from visdet_jax.boxes.formats import normalize_boxes as normalize_boxes
from visdet_jax.boxes.overlap import bbox_overlaps as bbox_overlaps
