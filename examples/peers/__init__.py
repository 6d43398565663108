"""The losses of the benchmark: their inputs, ours, and the same formulas as others write them.

Each case's inputs are NumPy arrays, the first of them pred; its functions take these and return
the loss as a head calls it. `plain` is the formula transcribed to jnp, `torch` is a torch module
away from it: the form of mmdetection, or of the loss's first implementation.
"""

from . import boxes, classes, maps, rotated

CASES = (*classes.CASES, *maps.CASES, *boxes.CASES, *rotated.CASES)
