"""The second stage of Cascade R-CNN."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import jax

from visdet_jax.boxes.nms import KeptDetections
from visdet_jax.core.docstrings import described_by
from visdet_jax.core.hyperparameters import Range
from visdet_jax.core.rules import Expected
from visdet_jax.detectors.heads.head import WithLosses, compiled, without_state
from visdet_jax.detectors.heads.roi_head import StandardRoIHead, without_empty
from visdet_jax.detectors.registry import HEADS
from visdet_jax.detectors.structures import (
    AxisName,
    Detections,
    Losses,
    Proposals,
    RoIOutputs,
    Samples,
    Shapes,
    States,
)
from visdet_jax.registry import as_dict, is_config

# Its config holds its stages' configs.
HEADS.parts = {StandardRoIHead: HEADS, **HEADS.parts}


@HEADS.register_module()
@dataclass(frozen=True, kw_only=True)
class CascadeRoIHead(WithLosses):
    """The second stage of Cascade R-CNN: stages that learn from each other's refined boxes.

    Each stage is a `StandardRoIHead`, with an assigner that asks for more overlap than the last:

      for number, stage in enumerate(cascade.stages):
          samples.append(stage.sample(proposals, gt_boxes, gt_labels, key=keys[number]))
          outputs.append(RoIOutputs(*network(number, features, samples[-1].boxes)))
          proposals = stage.refine(outputs[-1], samples[-1], image_shapes)
      losses = cascade.loss(outputs, samples)

    Losses are named `s0.loss_cls` and so on, and are those of the stage times its weight.

    Args:
      stages: The stages, the first one first. `build_head` makes them from mmdet's lists
        `bbox_head`, `mask_head` and `train_cfg`.
      stage_loss_weights: Factors of the stages' losses, at least 0. Larger values make a stage
        count more.

    Source: Cai and Vasconcelos 2018, https://arxiv.org/abs/1712.00726; mmdet's `CascadeRoIHead`
    """

    stages: tuple[StandardRoIHead, ...]
    stage_loss_weights: Annotated[tuple[float, ...], Range(0)]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stages or len(self.stages) != len(self.stage_loss_weights):
            raise self.value_error(
                f"there must be one weight for each of one stage or more, got {len(self.stages)} "
                f"stages and stage_loss_weights={self.stage_loss_weights}"
            )

    @staticmethod
    def from_mmdet(settings: dict[str, Any], train_cfg: Any) -> dict[str, Any]:
        """The fields of a config of mmdet: of its lists, one entry a stage, configs of stages.

        Raises: ValueError for a list of another length.
        """
        if "stages" in settings:
            return settings
        settings = dict(settings)
        count = settings.pop("num_stages", len(settings.get("stage_loss_weights", ())))
        parts = {name: settings.pop(name, None) for name in ("bbox_head", "mask_head")}
        parts["train_cfg"] = train_cfg
        for name, value in parts.items():
            if value is None or is_config(value):
                parts[name] = [value] * count
            elif len(value) != count:
                raise ValueError(
                    f"CascadeRoIHead: {name} must have {count} entries, one for each stage, got "
                    f"{len(value)}"
                )
        shared = {"type": StandardRoIHead}
        if "test_cfg" in settings:
            shared["test_cfg"] = settings.pop("test_cfg")
        stages = []
        for number in range(count):
            stage = {name: values[number] for name, values in parts.items()}
            learnt = as_dict(stage.pop("train_cfg") or {})
            learnt.pop("debug", None)
            present = {name: value for name, value in stage.items() if value is not None}
            stages.append(shared | present | learnt)
        return settings | {"stages": stages}

    def init(self) -> States:
        return {f"s{number}": stage.init() for number, stage in enumerate(self.stages)}

    @described_by(StandardRoIHead.update)
    @compiled
    def update(
        self,
        state: States,
        outputs: Sequence[RoIOutputs],
        samples: Sequence[Samples],
        gt_masks: jax.Array | None = None,
        *,
        axis_name: AxisName = None,
    ) -> tuple[Losses, States]:
        """The losses of all stages by name, each a scalar, and the next state.

        Args:
          outputs: What the network gave for the boxes of each stage's samples; see `RoIOutputs`.
          samples: Of each stage, from `StandardRoIHead.sample`.

        Returns: (losses, next state).
        Raises: ValueError, TypeError for shapes and types that do not fit.
        """
        self.check_state(state)
        self._raise_unless_one_a_stage("outputs", outputs)
        self._raise_unless_one_a_stage("samples", samples)
        losses: Losses = {}
        next_state = dict(state)
        for number, stage in enumerate(self.stages):
            name, weight = f"s{number}", self.stage_loss_weights[number]
            found, next_state[name] = stage.update(
                state[name], outputs[number], samples[number], gt_masks, axis_name=axis_name
            )
            losses |= {f"{name}.{key}": weight * value for key, value in found.items()}
        return losses, next_state

    loss = without_state(update)

    @compiled
    def detect(
        self,
        outputs: Sequence[RoIOutputs],
        proposals: Proposals | KeptDetections,
        image_shapes: Shapes | None = None,
    ) -> KeptDetections:
        """The detections of a batch, without duplicates, as the last stage's `test_cfg` says.

        Boxes are the last stage's, scores the mean over the stages.

        Args:
          outputs: What the network gave for the boxes of each stage's proposals.
          proposals: Of the last stage: what `refine` of the stage before gave.
          image_shapes: (B, 2) height and width of each image in pixels. Boxes are clipped to them
            where given and where the coder's `clip_border` is True.

        Returns: (B, S, ...) the boxes, scores and classes in their slots, the index of each one's
          proposal, and which slots hold one.
        """
        self._raise_unless_one_a_stage("outputs", outputs)
        boxes, exists = without_empty(proposals)
        found = [
            stage.bbox_head.decode(x, boxes, image_shapes)
            for stage, x in zip(self.stages, outputs, strict=True)
        ]
        scores = functools.reduce(operator.add, (x.scores for x in found)) / len(found)
        last = self.stages[-1]
        return last.bbox_head.detect(Detections(found[-1].boxes, scores), exists, last.test_cfg)

    def expects(
        self,
        outputs: Sequence[RoIOutputs],
        samples: Sequence[Samples],
        gt_masks: jax.Array | None = None,
        *,
        axis_name: AxisName = None,
    ) -> list[Expected]:
        """What `checked` looks at in a call of `loss`: arguments, and what their values must be."""
        return [
            argument._replace(name=f"stage {number}: {argument.name}")
            for number, stage in enumerate(self.stages)
            for argument in stage.expects(
                outputs[number], samples[number], gt_masks, axis_name=axis_name
            )
        ]

    def _raise_unless_one_a_stage(self, name: str, given: Any) -> None:
        if not isinstance(given, list | tuple) or len(given) != len(self.stages):
            raise ValueError(f"{name} must be a list of {len(self.stages)}, one for each stage")
