"""Which predictions become detections: mmdet's `test_cfg`."""

from dataclasses import dataclass
from typing import ClassVar

from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Count, Finite, Fraction, Positive
from visdet_jax.detectors.registry import TASK_UTILS


@dataclass(frozen=True, kw_only=True)
class Suppression(FrozenModule):
    """Base of what a `test_cfg` may have as its `nms`."""


@TASK_UTILS.register_module("nms")
@dataclass(frozen=True, kw_only=True)
class NMS(Suppression):
    """Non-maximum suppression: `batched_nms`.

    Args:
      iou_threshold: IoU above which the worse of two boxes is left out, in [0, 1]. Larger values
        keep more boxes. None leaves out none.
      class_agnostic: Whether boxes of different classes suppress each other too.
      max_num, split_thr: Keys of mmcv that have no effect: the number is `max_per_img`.
    """

    iou_threshold: Fraction | None = 0.5
    class_agnostic: bool = False
    max_num: int = -1
    split_thr: int = 10000


@TASK_UTILS.register_module("soft_nms")
@dataclass(frozen=True, kw_only=True)
class SoftNMS(Suppression):
    """mmcv's soft suppression, so that configs that name it build; `detect` raises for it.

    Args:
      iou_threshold, sigma, min_score, method: Keys of mmcv without effect.
    """

    iou_threshold: Fraction = 0.3
    sigma: Positive = 0.5
    min_score: Finite = 1e-3
    method: str = "linear"


@dataclass(frozen=True, kw_only=True)
class TestConfig(FrozenModule):
    """Which predictions become detections: mmdet's `test_cfg`, or its `rpn_proposal`.

    Args:
      score_thr: Score above which a class of a prior is a candidate. Larger values leave fewer
        detections.
      nms_pre: The number of best candidates of each level that take part, or for the heads of
        mmyolo and ultralytics of all levels together. -1 takes all.
      min_bbox_size: In pixels. Boxes whose width or height is not above it are dropped, after
        clipping. A negative number drops none.
      nms: How duplicates are suppressed. None suppresses none.
      max_per_img: The number of slots for the detections of an image, at least 1.
      nms_post: A key of mmdet 2 that has no effect.
      mask_thr_binary: Probability from which a pixel belongs to a mask, in [0, 1].
      multi_label: Whether every class of a prior is a candidate, or its best one alone, as mmyolo's
        key says. None leaves it to the head: all classes, or YOLOX's best.
    """

    needs_no_type: ClassVar[bool] = True
    __test__: ClassVar[bool] = False  # It is no test of pytest's.

    score_thr: Finite = 0.0
    nms_pre: int = 1000
    min_bbox_size: Finite = -1
    nms: Suppression | None = NMS(iou_threshold=0.5)
    max_per_img: Count = 100
    nms_post: int = -1
    mask_thr_binary: Fraction = 0.5
    multi_label: bool | None = None

    def suppression(self) -> NMS:
        """How duplicates are suppressed; with an `iou_threshold` of None where none are.

        Raises: ValueError for a suppression that is not here.
        """
        if self.nms is None:
            return NMS(iou_threshold=None)
        if not isinstance(self.nms, NMS):
            raise self.value_error(f"{self.nms!r} is not here: detect takes dict(type='nms')")
        return self.nms


@dataclass(frozen=True, kw_only=True)
class ProposalConfig(TestConfig):
    """`TestConfig` with the defaults of a first stage's proposals."""

    nms: Suppression | None = NMS(iou_threshold=0.7)
    min_bbox_size: Finite = 0
    max_per_img: Count = 1000


@dataclass(frozen=True, kw_only=True)
class QueryTestConfig(TestConfig):
    """`TestConfig` of the heads with queries, of which `max_per_img` alone has an effect.

    Args:
      max_per_img: The number of best predictions of an image that are detections, at least 1.
      chunked_size: A key of mmdet's Grounding DINO that has no effect.
    """

    max_per_img: Count = 300
    chunked_size: int = -1
