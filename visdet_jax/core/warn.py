"""Warnings that point at the user's own line."""

import sys
import warnings

# The packages whose frames lie between the user's line and the warning: flax when it builds a
# module, jax when it traces.
_PASSED_OVER = ("visdet_jax", "flax", "jax", "contextlib")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the line of the user's code that led here.

    A fixed `stacklevel` would name a line of jax or flax, and Python hides deprecation warnings of
    other people's modules.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _PASSED_OVER:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
