"""The functions of `boxes.bins` by the names that they have in D-FINE's code."""

from visdet_jax.boxes.bins import bin_values as weighting_function
from visdet_jax.boxes.bins import boxes_to_bins as bbox2distance
from visdet_jax.boxes.bins import distances_to_boxes as distance2bbox
from visdet_jax.boxes.bins import expected_distance as integral
from visdet_jax.boxes.bins import neighbouring_bins as translate_gt

__all__ = ["bbox2distance", "distance2bbox", "integral", "translate_gt", "weighting_function"]
