"""Adapters of the golden cases of later years; importing this package registers them all."""

from adapters import classification, detr_losses, iou, matching, rotated  # noqa: F401
from adapters.base import ADAPTERS, DIFFERENCES, RAISES, Instead, Rounding

__all__ = ["ADAPTERS", "DIFFERENCES", "RAISES", "Instead", "Rounding"]
