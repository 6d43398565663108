"""D-FINE's names for the functions of `boxes.bins`."""

from visdet_jax.boxes.bins import bbox2distance as bbox2distance
from visdet_jax.boxes.bins import distance2bbox as distance2bbox
from visdet_jax.boxes.bins import integral as integral
from visdet_jax.boxes.bins import translate_gt as translate_gt
from visdet_jax.boxes.bins import weighting_function as weighting_function
