"""Denoising queries: ground truth with noise, which a DETR learns to repair beside its matching."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from visdet_jax.boxes.formats import convert_boxes, normalize_boxes
from visdet_jax.core.checks import as_labels, check_array
from visdet_jax.core.devices import sharded_as
from visdet_jax.core.dtypes import as_dtype, compute_dtype
from visdet_jax.core.elementary import clamp, clamp_min
from visdet_jax.core.export import exportable
from visdet_jax.core.hyperparameters import Count, NonNegative
from visdet_jax.core.jitted import jitted
from visdet_jax.detectors.assigners.assigner import without_padding
from visdet_jax.detectors.heads.head import as_shapes
from visdet_jax.detectors.structures import AxisName

Style = Literal["mmdet", "rtdetr", "dfine"]


@exportable
class DenoisingQueries(NamedTuple):
    """The N denoising queries of B images, which stand in front of Q matching queries.

    They are groups of equal size. A group has a positive query for each of the G ground truths,
    and then a negative one for each.
    """

    labels: jax.Array  # (B, N) int32: the class, with noise; see `dn_queries` for padding.
    box_logits: jax.Array  # (B, N, 4): logits of cx, cy, w, h in fractions of the image.
    # (B, N) int32 for the head: 1 for the first box; 0 learns to be background; -1 learns nothing.
    gt_inds: jax.Array
    attn_mask: jax.Array  # (N + Q, N + Q) bool: True where a query (row) must not see another.


@exportable
class DenoisingNoise(NamedTuple):
    """What is random in `dn_queries`, for each of the B · N queries."""

    chosen: jax.Array  # (B, N) in [0, 1): small numbers change the label.
    labels: jax.Array  # (B, N) integers: the label that it changes to.
    is_negative: jax.Array  # (B, N, 4) bool: whether x1, y1, x2, y2 moves to smaller numbers.
    part: jax.Array  # (B, N, 4) in [0, 1): how far it moves.


@jitted(static=("num_classes", "num_matching_queries", "num_dn_queries", "num_groups"))
def dn_queries(
    key: jax.Array | None,
    gt_boxes: jax.Array,
    gt_labels: jax.Array,
    image_shapes: jax.Array,
    *,
    num_classes: Count,
    num_matching_queries: Count,
    num_dn_queries: Count = 100,
    num_groups: Count | None = None,
    label_noise_scale: NonNegative = 0.5,
    box_noise_scale: NonNegative = 1.0,
    style: Style = "mmdet",
    noise: DenoisingNoise | None = None,
    axis_name: AxisName = None,
) -> DenoisingQueries:
    """Noisy copies of the ground truth, as queries that know what they have to become.

    Each of the groups has 2 G queries: positive ones, whose corners moved by less than half a side
    of the box times `box_noise_scale`, and negative ones, whose corners moved by one to two times
    as much; G of each. Corners are clipped to the image. Labels change with the probability
    `label_noise_scale` / 2, to any class, their own included.

    Shapes depend on the padded G alone: the groups are max(num_dn_queries // G, 1), where mmdet
    counts the boxes of the batch's fullest image. So pad to few more boxes than there are. An
    image's queries of boxes that it does not have, while the fullest image has as many, learn to
    be background, as everywhere. Those beyond the fullest image are ours alone: they learn
    nothing (-1), and no other query sees them, so that they change nothing.

      >>> queries = dn_queries(key, gt_boxes, gt_labels, image_shapes, num_classes=80,
      ...                      num_matching_queries=300)
      >>> # The network embeds labels and box_logits and gives them to its decoder, with attn_mask.
      >>> outputs = outputs._replace(dn_gt_inds=queries.gt_inds)

    The styles differ in padding and in negative sizes, which a negative query's corners may give:

      ========  =============  ===================  ============================  =====
      style     padded labels  padded `box_logits`  a size below 0                eps
      ========  =============  ===================  ============================  =====
      mmdet     -1             0                    becomes 0                     1e-3
      rtdetr    num_classes    log(eps)             becomes 0                     1e-5
      dfine     num_classes    log(eps)             its absolute value            1e-5
      ========  =============  ===================  ============================  =====

    mmdet's network gives padding the embedding 0. DEIM's style is dfine. Logits are of numbers
    clipped to [eps, 1 - eps].

    Args:
      key: Draws what is random. None where `noise` is given.
      gt_boxes: (B, G, 4) as x1, y1, x2, y2, in pixels.
      gt_labels: (B, G) integers of any width. Negative ones are padding, of whose boxes nothing is
        read.
      image_shapes: (B, 2) height and width in pixels.
      num_classes: The number of classes, from which labels are drawn.
      num_matching_queries: Q, the number of the other queries, at least 1.
      num_dn_queries: About half of how many denoising queries there are, at least 1.
      num_groups: The number of groups, at least 1. None computes it from num_dn_queries.
      label_noise_scale: Twice the probability of another label, at least 0. With larger values more
        labels are noise.
      box_noise_scale: Largest move of a positive query's corner in halves of a side, at least 0.
        With larger values boxes are further from the ground truth.
      style: "mmdet", "rtdetr" or "dfine": see above.
      noise: What is drawn in place of the key.
      axis_name: The mesh axis, or axes, over which the batch is spread inside `shard_map`, so that
        the fullest image is that of all devices.

    Returns: `DenoisingQueries`, with N = 2 G groups. There is no gradient.
    Raises: ValueError, TypeError for shapes and types that do not fit, and without key and noise.
    Source: Li et al. 2022 (DN-DETR), https://arxiv.org/abs/2203.01305; Zhang et al. 2022 (DINO),
      https://arxiv.org/abs/2203.03605; mmdet's `CdnQueryGenerator`, and
      `get_contrastive_denoising_training_group` of RT-DETR, D-FINE and DEIM.
    """
    check_array("gt_boxes", gt_boxes)
    if gt_boxes.ndim != 3 or gt_boxes.shape[2] != 4:
        raise ValueError(f"gt_boxes must have shape (B, G, 4), got {gt_boxes.shape}")
    gt_labels = as_labels("gt_labels", gt_labels, gt_boxes.shape[:2])
    dtype = compute_dtype(gt_boxes=gt_boxes)
    batch, count = gt_labels.shape
    shapes = as_shapes("image_shapes", image_shapes, gt_labels, dtype)
    groups = (max(num_dn_queries // max(count, 1), 1)) if num_groups is None else num_groups
    size = 2 * count * groups
    if noise is None:
        noise = _draw(key, (batch, size), num_classes, dtype)
    _check_noise(noise, (batch, size))
    noise = jax.tree.map(lambda x: sharded_as(jnp.asarray(x), gt_labels), noise)

    def each_group(x: jax.Array) -> jax.Array:
        """(B, G, ...) for all queries, (B, N, ...)."""
        return jnp.tile(x, (1, 2 * groups, *(1,) * (x.ndim - 2)))

    exists = each_group(gt_labels >= 0)
    changes = noise.chosen < as_dtype(noise.chosen.dtype, label_noise_scale) / 2
    drawn = as_labels("noise.labels", noise.labels).astype(gt_labels.dtype)
    labels = jnp.where(changes, drawn, each_group(gt_labels))
    labels = jnp.where(exists, labels, -1 if style == "mmdet" else num_classes)

    number = jnp.arange(size, dtype=jnp.int32)
    is_positive = number % (2 * max(count, 1)) < count
    gt_boxes = without_padding(gt_boxes, gt_labels, dtype)[0][:, :count]
    corners = each_group(normalize_boxes(gt_boxes, shapes))
    half_sides = (corners[..., 2:] - corners[..., :2]) / 2
    part = noise.part.astype(dtype) + jnp.where(is_positive, 0, 1).astype(dtype)[None, :, None]
    part = jnp.where(noise.is_negative, -part, part) * as_dtype(dtype, box_noise_scale)
    corners = clamp(corners + part * jnp.concatenate([half_sides, half_sides], axis=-1), 0, 1)
    boxes = convert_boxes(corners)
    if style == "dfine":
        boxes = jnp.abs(boxes)
    eps = as_dtype(dtype, 1e-3 if style == "mmdet" else 1e-5)
    boxes = clamp(boxes, 0, 1)
    box_logits = jnp.log(clamp_min(boxes, eps)) - jnp.log(clamp_min(1 - boxes, eps))
    of_padding = 0 if style == "mmdet" else jnp.log(eps)
    box_logits = jnp.where(exists[..., None], box_logits, of_padding)

    most = jnp.where(gt_labels >= 0, jnp.arange(1, count + 1, dtype=jnp.int32)[None], 0)
    most = most.max(initial=0)
    if axis_name is not None:
        most = jax.lax.pmax(most, axis_name)
    place = number % max(count, 1)
    gt_inds = jnp.where(exists & is_positive[None], place[None] + 1, 0)
    gt_inds = jnp.where((place < most)[None], gt_inds, -1)
    queries = DenoisingQueries(
        labels.astype(jnp.int32),
        box_logits,
        gt_inds.astype(jnp.int32),
        _attention_mask(place < most, 2 * count, num_matching_queries),
    )
    return jax.tree.map(jax.lax.stop_gradient, queries)


def _draw(key: Any, shape: tuple[int, int], num_classes: int, dtype: Any) -> DenoisingNoise:
    if key is None:
        raise ValueError("key must be given, or noise")
    keys = jax.random.split(key, 4)
    return DenoisingNoise(
        jax.random.uniform(keys[0], shape, dtype),
        jax.random.randint(keys[1], shape, 0, num_classes),
        jax.random.bernoulli(keys[2], shape=(*shape, 4)),
        jax.random.uniform(keys[3], (*shape, 4), dtype),
    )


def _check_noise(noise: DenoisingNoise, shape: tuple[int, int]) -> None:
    """Raises a ValueError unless there is noise for all queries."""
    for name, x in noise._asdict().items():
        check_array(f"noise.{name}", x)
        expected = (*shape, 4)[: 3 if name in ("is_negative", "part") else 2]
        if x.shape != expected:
            raise ValueError(f"noise.{name} must have shape {expected}, got {x.shape}")


def _attention_mask(is_used: jax.Array, group_size: int, others: int) -> jax.Array:
    """Which of the N denoising and the other queries must not see which: (N + Q, N + Q)."""
    size = len(is_used)
    group = jnp.arange(size, dtype=jnp.int32) // max(group_size, 1)
    own = jnp.arange(size, dtype=jnp.int32)
    between = (group[:, None] != group[None]) | ~is_used[None]
    between &= own[:, None] != own[None]  # A row that sees nothing would be a softmax of nothing.
    from_others = jnp.ones((others, size), bool)
    to_others = jnp.zeros((size + others, others), bool)
    return jnp.concatenate([jnp.concatenate([between, from_others]), to_others], axis=1)
