"""Cross entropy of V3Det's classifier."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from visdet_jax.core.hyperparameters import Count
from visdet_jax.losses.classification._classifier import OwnClassifier
from visdet_jax.losses.classification.cross_entropy import CrossEntropyLoss
from visdet_jax.registry import LOSSES


@LOSSES.register_module()
@dataclass(frozen=True, kw_only=True)
class CrossEntropyCustomLoss(OwnClassifier, CrossEntropyLoss):
    """`CrossEntropyLoss` that also says how its classifier's outputs are read (V3Det).

    Args:
      num_classes: Number of foreground classes. The softmax form has one more channel, for
        background.
    """

    num_classes: Count

    def get_activation(self, cls_score: jax.Array) -> jax.Array:
        """Scores (N, num_classes + 1) of classes and background, of outputs (N, channels).

        They are the softmax. With `use_sigmoid` they are sigmoids, and that of background is one
        minus their sum, at least 0.
        """
        foreground = cls_score[:, : self.num_classes]
        if not self.use_sigmoid:
            return jax.nn.softmax(jnp.concatenate([foreground, cls_score[:, -1:]], axis=1), axis=1)
        scores = jax.nn.sigmoid(foreground)
        background = jnp.clip(1 - scores.sum(1, keepdims=True), 0, 1)
        return jnp.concatenate([scores, background], axis=1)
