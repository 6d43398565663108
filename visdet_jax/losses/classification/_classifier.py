"""What a loss of V3Det knows of its classifier: its channels, scores and accuracy."""

from typing import ClassVar

import jax

from visdet_jax.core.checks import as_labels
from visdet_jax.losses.classification.accuracy import masked_accuracy
from visdet_jax.losses.loss import Loss


class OwnClassifier(Loss):
    """Mixin of a loss with `num_classes` foreground classes and `use_sigmoid`.

    A detector's head that finds the `custom_*` flags asks the loss instead of assuming a softmax
    over num_classes + 1 channels. A subclass adds `get_activation`.
    """

    num_classes: int
    use_sigmoid: bool

    custom_cls_channels: ClassVar[bool] = True
    custom_activation: ClassVar[bool] = True
    custom_accuracy: ClassVar[bool] = True

    def get_cls_channels(self, num_classes: int) -> int:
        """The channels of a classifier of `num_classes` classes: one more with a softmax.

        Raises: ValueError where the loss was built for another number of classes.
        """
        if num_classes != self.num_classes:
            raise self.value_error(f"built for {self.num_classes} classes, asked for {num_classes}")
        return num_classes if self.use_sigmoid else num_classes + 1

    def get_accuracy(
        self, cls_score: jax.Array, labels: jax.Array, rows: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        """The top-1 accuracy of the foreground classes, in percent, as `acc_classes`.

        Args:
          cls_score: Outputs of the classifier (N, channels).
          labels: Class indices (N,). Rows of `num_classes` and above, background, do not count.
          rows: (N,) False for rows that do not count either. None is all True.

        Returns: {"acc_classes": (1,)}, 0 without a foreground row.
        """
        labels = as_labels("labels", labels)
        scores, foreground = cls_score[:, : self.num_classes], labels < self.num_classes
        foreground = foreground if rows is None else foreground & rows
        return {"acc_classes": masked_accuracy(scores, labels, foreground)}
