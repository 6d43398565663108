"""The cases of the benchmark: a loss of this package, and the same formula as others write it.

The inputs of a case are NumPy arrays, of which the first is pred. Its functions take these inputs
and return the loss as a head calls it. `plain` is the formula written in jnp. `torch` is the form
of mmdet, or of the loss's first implementation.
"""

from . import boxes, classes, maps, rotated

CASES = (*classes.CASES, *maps.CASES, *boxes.CASES, *rotated.CASES)
