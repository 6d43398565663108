"""The `iou_calculator` of assigners' configs."""

from dataclasses import dataclass

from visdet_jax.core.frozen import FrozenModule
from visdet_jax.detectors.registry import TASK_UTILS


@TASK_UTILS.register_module()
@dataclass(frozen=True, kw_only=True)
class BboxOverlaps2D(FrozenModule):
    """The IoU of boxes, by the name that configs of assigners give it. There is no other one."""
