"""What V3Det's losses say of their classifier: its channels, scores and accuracy."""

from typing import ClassVar

import jax

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
        """The channels of a classifier of `num_classes` classes: one more with a softmax."""
        if num_classes != self.num_classes:
            raise self.value_error(f"built for {self.num_classes} classes, asked for {num_classes}")
        return num_classes if self.use_sigmoid else num_classes + 1

    def get_accuracy(self, cls_score: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        """`acc_classes`: the top-1 accuracy (1,) in percent over the foreground rows, 0 of none."""
        fine = cls_score[:, : self.num_classes]
        return {"acc_classes": masked_accuracy(fine, labels, labels < self.num_classes)}
