"""The base of the match costs: what it costs to match a prediction with a ground truth."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from visdet_jax.core.frozen import FrozenModule
from visdet_jax.core.hyperparameters import Finite


class Instances(NamedTuple):
    """The N predictions of an image, or its N ground truths; None for what no cost asks for.

    Labels are integers of any width.
    """

    scores: jax.Array | None = None  # predictions: logits (N, C)
    labels: jax.Array | None = None  # ground truth: (N,) from 0 to C - 1; negative for padding
    bboxes: jax.Array | None = None  # (N, 4) as x1, y1, x2, y2, in pixels
    masks: jax.Array | None = None  # (N, ...) logits or probabilities; ground truth: 0 and 1
    positive_maps: jax.Array | None = None  # ground truth: (N, T), which tokens name it
    text_token_mask: jax.Array | None = None  # ground truth: (T,), which tokens there are


@dataclass(frozen=True, kw_only=True)
class MatchCost(FrozenModule):
    """Base of the match costs: a subclass is its fields and `compute`.

    Args:
      weight: Factor of the cost. Larger values make it count more beside other costs.
    """

    weight: Finite = 1.0

    def __call__(self, pred: Instances, gt: Instances, image_shape: Any = None) -> jax.Array:
        """The cost (Q, G) of each of Q predictions with each of G ground truths of one image.

        Args:
          pred, gt: What the cost asks for; a ValueError says what is missing. Columns of padded
            ground truth mean nothing.
          image_shape: (height, width) in pixels, where the cost asks for it.
        """
        return self.weight * self.compute(pred, gt, image_shape)

    def compute(self, pred: Instances, gt: Instances, image_shape: Any) -> jax.Array:
        """The cost before its weight."""
        raise NotImplementedError(f"{type(self).__name__} must define compute")

    def parts(self, **named: Any) -> list[Any]:
        """The values, or a ValueError that says which one is missing."""
        for name, value in named.items():
            if value is None:
                raise self.value_error(f"needs {name.replace('_', ' ', 1)}, got None")
        return list(named.values())
