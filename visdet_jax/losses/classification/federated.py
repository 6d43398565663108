"""The classes that a federated data set's batch is judged by."""

import jax
import jax.numpy as jnp

from visdet_jax.core.checks import as_labels
from visdet_jax.core.dtypes import compute_dtype
from visdet_jax.core.hyperparameters import Count, NonNegative
from visdet_jax.core.jitted import jitted
from visdet_jax.losses._class_targets import class_mask


@jitted(static=("num_classes_sampled",))
def federated_class_mask(
    key: jax.Array,
    labels: jax.Array,
    class_frequency: jax.Array,
    *,
    num_classes_sampled: Count = 50,
    power: NonNegative = 0.5,
) -> jax.Array:
    """Which classes count in a batch: those that are in it, and others drawn by their frequency.

    1 for the classes present in `labels`, and for as many others as make `num_classes_sampled` of
    them together, drawn without replacement with probability ∝ frequency^power; 0 elsewhere.
    An image of a federated data set (LVIS) is annotated for some of the classes only: an object of
    a class that is not drawn is no negative. As a weight:

      mask = federated_class_mask(key, labels, class_frequency)
      loss = CrossEntropyLoss(use_sigmoid=True)
      loss(pred, labels, weight=mask[None], avg_factor=len(labels))

    Detectron2 counts background among the classes present, so that it draws one fewer.

    Args:
      key: A JAX random key.
      labels: Class indices of any shape. Those outside [0, C), such as background, are no class.
      class_frequency: (C,), the number of images or instances of each class in the data set, at
        least 0. A class of frequency 0 is never drawn.
      num_classes_sampled: How many classes count, at least 1: more where more are present, fewer
        where the others have frequency 0. An integer, known when the program is compiled.
      power: Exponent of the frequencies, at least 0. Larger values draw frequent classes more
        often; 0 draws all alike.

    Returns: (C,) floats, 0 or 1.
    Raises: ValueError where class_frequency is not (C,), TypeError for labels that are floats.
    Source: Zhou et al. 2021 (CenterNet2), https://arxiv.org/abs/2103.07461
    """
    labels = as_labels("labels", labels)
    dtype = compute_dtype(class_frequency=class_frequency)
    if class_frequency.ndim != 1:
        raise ValueError(f"class_frequency must have shape (C,), got {class_frequency.shape}")
    frequency = class_frequency.astype(dtype)
    classes = frequency.size
    present = class_mask(labels, classes).any(tuple(range(labels.ndim)))
    # The largest of log w + Gumbel noise are draws without replacement by the weights w.
    drawable = frequency > 0
    score = jnp.asarray(power, dtype) * jnp.log(jnp.where(drawable, frequency, 1))
    score += jax.random.gumbel(key, (classes,), dtype)
    score = jnp.where(present, jnp.inf, jnp.where(drawable, score, -jnp.inf))
    _, first = jax.lax.top_k(score, min(num_classes_sampled, classes))
    drawn = class_mask(first, classes).any(0) & drawable
    return (present | drawn).astype(dtype)
