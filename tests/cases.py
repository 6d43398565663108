"""What the laws need to know of each registered class: inputs that it takes, and extreme ones.

A new class needs a row in CASES. Everything else (its fields, their ranges and choices) is read off
the class; see `tests/settings.py`.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import chex
import jax
import numpy as np
import pytest

ROWS = 8  # divisible by the devices of the mesh
CLASSES = 5
LOGITS = np.array([-1e4, -100, -17, -1e-3, 0, 17, 1e4], np.float32)


@dataclass(frozen=True)
class Row:
    """One way to call a registered class.

    Args:
      inputs: `(rng) -> (pred, target)` or `(pred, target, keywords)`. The first axis is the rows.
        Where the targets are class indices, `(rng, classes=CLASSES)`: the laws of label types ask
        for other numbers of classes.
      extremes: The same, with values that are finite but as bad as they get.
      bad_target: A target of another shape, for which the loss must raise.
      config: The fields of the class that are set.
      is_metric: It has no gradient.
      is_bare: It is called with (pred, target) and its keywords, without weight and reduction, and
        returns a tuple.
      mean: What the mean is over: "values" as everywhere; "positives" of the loss's own counting;
        "density" where weight and avg_factor are no factors and there is no sum (GHM); "mined"
        where the loss counts what its mining leaves, and its weight may change.
    """

    inputs: Callable[..., tuple]
    extremes: Callable[..., tuple]
    bad_target: Any
    config: dict[str, Any] = field(default_factory=dict)
    is_metric: bool = False
    is_bare: bool = False
    mean: str = "values"

    def arguments(self, make="inputs", seed=0, **options):
        """(pred, target, keywords), drawn with a seed; `make="extremes"` for the extreme ones."""
        return (*getattr(self, make)(np.random.default_rng(seed), **options), {})[:3]


def first_state(loss):
    """The state before the first step, () for a class that has no `init`."""
    return loss.init() if hasattr(loss, "init") else ()


def updated(loss, state, *arguments, **keywords):
    """The loss and the next state, which is () for a class that has no `update`."""
    if hasattr(loss, "update"):
        return loss.update(state, *arguments, **keywords)
    return loss(*arguments, **keywords), state


def added(value):
    """The sum of the parts of a loss that gives several by name."""
    return functools.reduce(operator.add, jax.tree.leaves(value))


def value_of(loss, *arguments, **keywords):
    """One number: the sum of a loss that is several numbers, or one a row."""
    value, _ = updated(loss, first_state(loss), *arguments, **keywords)
    return added(value).sum()


# Equal but for the rounding of float32.
close = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


def floats(*shape):
    return np.zeros(shape, np.float32)


def logits(rng, *shape):
    return rng.normal(0, 2, shape).astype(np.float32)


def probabilities(rng, *shape):
    return rng.uniform(0.05, 0.95, shape).astype(np.float32)


def boxes(rng, n=ROWS):
    corner, size = rng.uniform(0, 50, (n, 2)), rng.uniform(5, 40, (n, 2))
    return np.concatenate([corner, corner + size], 1).astype(np.float32)


def labels(rng, high=CLASSES, shape=(ROWS,)):
    return rng.integers(0, high, shape).astype(np.int32)


def box_pair(rng):
    pred = boxes(rng)
    return pred, pred + rng.normal(0, 4, pred.shape).astype(np.float32)


def box_extremes(rng):
    """Equal, zero-area, inverted, touching, far apart, huge, tiny and nested boxes."""
    pred = [
        [0, 0, 9, 9],
        [5, 5, 5, 5],
        [9, 9, 0, 0],
        [0, 0, 5, 5],
        [0, 0, 1, 1],
        [-1e4, -1e4, 1e4, 1e4],
        [0, 0, 1e-6, 1e-6],
        [0, 0, 9, 9],
    ]
    target = [
        [0, 0, 9, 9],
        [5, 5, 5, 5],
        [0, 0, 9, 9],
        [5, 0, 10, 5],
        [1e4, 1e4, 1e4 + 1, 1e4 + 1],
        [0, 0, 1, 1],
        [0, 0, 1e-6, 1e-6],
        [2, 2, 3, 3],
    ]
    return np.array(pred, np.float32), np.array(target, np.float32)


def with_image_shapes(make):
    """Boxes, and the (height, width) of the image of each."""

    def inputs(rng):
        return *make(rng), {"image_shape": rng.uniform(90, 120, (ROWS, 2)).astype(np.float32)}

    return inputs


def rotated_boxes(rng):
    centre, size = rng.uniform(0, 50, (ROWS, 2)), rng.uniform(5, 40, (ROWS, 2))
    return np.concatenate([centre, size, rng.uniform(-2, 2, (ROWS, 1))], 1).astype(np.float32)


def rotated_pair(rng):
    pred = rotated_boxes(rng)
    return pred, pred + (rng.normal(size=pred.shape) * [4, 4, 2, 2, 0.3]).astype(np.float32)


def rotated_extremes(rng):
    """Equal, empty, negative, equal by other sides or half a turn, far, huge, crossed needles."""
    pred = [
        [3, 4, 9, 5, 0.7],
        [0, 0, 0, 0, 0],
        [1, 1, -4, 5, 1],
        [3, 4, 9, 5, 0.7],
        [3, 4, 9, 5, 0.7],
        [-1e4, 1e4, 1e-6, 0, 2],
        [0, 0, 1e4, 1e4, 1e4],
        [5, 5, 1e4, 1e-7, 0.3],
    ]
    target = [
        [3, 4, 9, 5, 0.7],
        [0, 0, 0, 0, 0],
        [1, 2, 4, 5, 1],
        [3, 4, 5, 9, 0.7 + np.pi / 2],
        [3, 4, 9, 5, 0.7 - np.pi],
        [1e4, -1e4, 1, 1e-6, 0],
        [0, 0, 0, 1e-30, 0],
        [6, 5, 1e-7, 1e4, 0.3],
    ]
    return np.array(pred, np.float32), np.array(target, np.float32)


def with_decoded(make):
    """Deltas, and the rotated boxes they stand for."""

    def inputs(rng):
        pred, target = make(rng)
        boxes = {"pred_decode": pred, "targets_decode": target}
        return pred / 20, target / 20, boxes

    return inputs


def elementwise(rng):
    return logits(rng, ROWS, 4), logits(rng, ROWS, 4)


def elementwise_extremes(rng):
    pred = rng.choice(np.array([0, 1e-30, 1e-5, 1, -1, 1e4, -1e4], np.float32), (ROWS, 4))
    return pred, np.where(rng.random((ROWS, 4)) < 0.5, pred, -pred)


def extreme_logits(rng, *shape):
    return rng.choice(LOGITS, shape)


def with_labels(make):
    return lambda rng, classes=CLASSES: (make(rng, ROWS, classes), labels(rng, classes))


def with_pixels(make):
    return lambda rng, classes=CLASSES: (
        make(rng, ROWS, classes, 2, 3),
        labels(rng, classes, (ROWS, 2, 3)),
    )


def with_quality(make):
    return lambda rng, classes=CLASSES: (
        make(rng, ROWS, classes),
        (labels(rng, classes + 1), probabilities(rng, ROWS)),
    )


def saturated(rng, *shape):
    return rng.choice(np.array([0, 1e-30, 0.5, 1], np.float32), shape)


def heatmaps(make):
    def inputs(rng):
        target = probabilities(rng, ROWS, CLASSES)
        return make(rng, ROWS, CLASSES), np.where(target > 0.8, 1, target).astype(np.float32)

    return inputs


def with_masks(make):
    return lambda rng: (
        make(rng, ROWS, 3, 4),
        (probabilities(rng, ROWS, 3, 4) > 0.5).astype(np.float32),
    )


def with_classed_masks(make):
    def inputs(rng, classes=CLASSES):
        masks = (probabilities(rng, ROWS, 2, 3) > 0.5).astype(np.float32)
        return make(rng, ROWS, classes, 2, 3), masks, {"label": labels(rng, classes)}

    return inputs


def with_distances(make):
    return lambda rng: (make(rng, ROWS, 9), rng.uniform(0, 8, ROWS).astype(np.float32))


def with_two_bins(make):
    """As D-FINE's targets: the bin below, and the weights of the bin above and of that itself."""

    def inputs(rng):
        bins, right = np.floor(rng.uniform(0, 8, ROWS)), rng.uniform(0, 1, ROWS)
        parts = (x.astype(np.float32) for x in (bins, right, 1 - right))
        return make(rng, ROWS, 9), tuple(parts)

    return inputs


def with_teacher(make):
    def inputs(rng):
        keywords = {"confidence": probabilities(rng, ROWS), "matched": rng.random(ROWS) < 0.4}
        return make(rng, ROWS, 9), make(rng, ROWS, 9), keywords

    return inputs


def with_ranks(make):
    """Images of four rows, some of them of one object."""

    def inputs(rng, classes=CLASSES):
        shape = (ROWS, 4)
        label = labels(rng, classes + 1, shape)
        gt_inds = labels(rng, 3, shape)
        quality = (label, probabilities(rng, *shape))
        return make(rng, *shape, classes), quality, {"gt_inds": gt_inds}

    return inputs


def twice(make):
    return lambda rng: (make(rng, ROWS, CLASSES), make(rng, ROWS, CLASSES))


def with_ious(make):
    def inputs(rng):
        iou = probabilities(rng, ROWS, CLASSES)
        return make(rng, ROWS, CLASSES), np.where(iou > 0.6, iou, 0).astype(np.float32)

    return inputs


def with_right_classes(make):
    """Any number of right classes a row, none and all included."""

    def inputs(rng):
        right = (probabilities(rng, ROWS, CLASSES) > 0.6).astype(np.int32)
        right[0], right[1] = 0, 1
        return make(rng, ROWS, CLASSES), right

    return inputs


def with_similarities(make):
    def inputs(rng):
        return make(rng, ROWS, 4), (probabilities(rng, ROWS, 4) > 0.8).astype(np.float32)

    return inputs


def embedding_extremes(rng):
    """Equal, far and huge embeddings; half of the rows are one class."""
    pred = extreme_logits(rng, ROWS, 3)
    pred[1] = pred[0]
    pred[5] = pred[4]
    return pred, np.array([0, 0, 0, 0, 1, 2, 2, 3], np.int32)


def one_class(rng):
    return extreme_logits(rng, ROWS, 3), np.zeros(ROWS, np.int32)


def with_corners(make):
    """Three places for objects an image, some of them empty."""

    def inputs(rng):
        match = rng.integers(0, 4, (ROWS, 3, 2, 2)).astype(np.int32)
        mask = np.arange(3) < rng.integers(0, 4, (ROWS, 1))
        maps = (make(rng, ROWS, 1, 4, 4), make(rng, ROWS, 1, 4, 4))
        return *maps, {"match": match, "mask": mask}

    return inputs


def with_object_labels(make, more_channels):
    """Labels of the classes and background, and one or two more channels than classes."""
    return lambda rng, classes=CLASSES: (
        make(rng, ROWS, classes + more_channels),
        labels(rng, classes + 1),
    )


def with_binary_targets(make):
    return lambda rng: (
        make(rng, ROWS, CLASSES),
        (rng.random((ROWS, CLASSES)) < 0.3).astype(np.float32),
    )


SEESAW = with_object_labels(logits, 2), with_object_labels(extreme_logits, 2)


CASES: dict[str, list[Row]] = {
    "ASLSingleLabel": [Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS, 1))],
    "Accuracy": [
        Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS), is_metric=True)
    ],
    "AlphaIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1), {"mode": "ciou"})],
    "AssociativeEmbeddingLoss": [
        Row(with_corners(logits), with_corners(extreme_logits), floats(ROWS, 1), is_bare=True)
    ],
    "AsymmetricLoss": [
        Row(
            with_binary_targets(logits),
            with_binary_targets(extreme_logits),
            floats(ROWS, 1),
        ),
    ],
    "BalancedL1Loss": [Row(elementwise, elementwise_extremes, floats(ROWS, 1), {"beta": 0.7})],
    "BoundedIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1))],
    "CIoULoss": [
        Row(box_pair, box_extremes, floats(ROWS, 1)),
        Row(box_pair, box_extremes, floats(ROWS, 1), {"gated": False}),
    ],
    "CrossEntropyCustomLoss": [
        Row(
            with_labels(logits),
            with_labels(extreme_logits),
            labels(np.random.default_rng(0))[:-1],
            {"num_classes": CLASSES},
        ),
    ],
    "CrossEntropyLoss": [
        Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS, 1)),
        Row(
            with_labels(logits),
            with_labels(extreme_logits),
            floats(ROWS, 1),
            {"use_sigmoid": True, "class_weight": (0.5, 1.0, 2.0, 0.25, 1.5)},
        ),
        Row(
            with_classed_masks(logits),
            with_classed_masks(extreme_logits),
            floats(ROWS, 2, 1),
            {"use_mask": True},
        ),
        Row(
            with_labels(logits),
            with_labels(extreme_logits),
            floats(ROWS, 1),
            {"label_smoothing": 0.1, "poly_epsilon": 1.0},
        ),
    ],
    "DIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1))],
    "DecoupledDistillationFocalLoss": [
        Row(with_teacher(logits), with_teacher(extreme_logits), floats(ROWS, 1))
    ],
    "DiceLoss": [
        Row(with_masks(logits), with_masks(extreme_logits), floats(ROWS, 3, 1)),
        Row(
            with_masks(probabilities),
            lambda rng: (floats(ROWS, 3, 4), floats(ROWS, 3, 4)),
            floats(ROWS, 12),
            {"activate": False, "naive_dice": True, "eps": 0.0},
        ),
    ],
    "DistributionFocalLoss": [
        Row(with_distances(logits), with_distances(extreme_logits), floats(ROWS, 1))
    ],
    "EIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1))],
    "EQLV2Loss": [
        Row(
            with_object_labels(logits, 1),
            with_object_labels(extreme_logits, 1),
            floats(ROWS, 1),
            {"num_classes": CLASSES},
        ),
    ],
    "FineGrainedLocalizationLoss": [
        Row(with_two_bins(logits), with_two_bins(extreme_logits), floats(ROWS))
    ],
    "EfficientIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1), {"focal_gamma": 0.5})],
    "FocalCustomLoss": [
        Row(
            with_labels(logits),
            with_labels(extreme_logits),
            floats(ROWS, 1),
            {"num_classes": CLASSES},
        ),
    ],
    "FocalLoss": [
        Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS, 1)),
        Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS, 1), {"gamma": 0.5}),
        Row(
            with_labels(probabilities),
            with_labels(saturated),
            floats(ROWS, 1),
            {"activated": True, "gamma": 0.5},
        ),
        Row(
            with_labels(logits),
            with_labels(extreme_logits),
            floats(ROWS, 1),
            {"alpha": None, "poly_epsilon": 1.0},
        ),
    ],
    "GDLoss": [
        Row(rotated_pair, rotated_extremes, floats(ROWS, 1), {"loss_type": "kld", "tau": 2.0}),
        Row(rotated_pair, rotated_extremes, floats(ROWS, 1), {"loss_type": "gwd"}),
    ],
    "GDLoss_v1": [Row(rotated_pair, rotated_extremes, floats(ROWS, 1), {"loss_type": "bcd"})],
    "GHMC": [
        Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS, 1), mean="density"),
        Row(
            with_binary_targets(logits),
            with_binary_targets(extreme_logits),
            floats(ROWS, 1),
            {"momentum": 0.5, "bins": 4},
            mean="density",
        ),
    ],
    "GHMR": [
        Row(elementwise, elementwise_extremes, floats(ROWS, 1), {"mu": 1.0}, mean="density"),
        Row(elementwise, elementwise_extremes, floats(ROWS, 1), {"momentum": 0.5}, mean="density"),
    ],
    "GIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1))],
    "GaussianFocalLoss": [
        Row(heatmaps(probabilities), heatmaps(saturated), floats(ROWS, 1)),
        Row(heatmaps(probabilities), heatmaps(saturated), floats(ROWS, 1), {"alpha": 0.5}),
    ],
    "IoUAwareBCELoss": [
        Row(
            with_ranks(logits),
            with_ranks(extreme_logits),
            floats(ROWS, 4),
            {"tau": 1.5},
        ),
    ],
    "IoULoss": [
        Row(box_pair, box_extremes, floats(ROWS, 1)),
        Row(
            box_pair,
            box_extremes,
            floats(ROWS, 1),
            {"mode": "square", "inner_ratio": 1.2, "focaler": (0.1, 0.9)},
        ),
    ],
    "KFLoss": [Row(with_decoded(rotated_pair), with_decoded(rotated_extremes), floats(ROWS, 1))],
    "KnowledgeDistillationKLDivLoss": [
        Row(twice(logits), twice(extreme_logits), floats(ROWS, 1)),
        Row(twice(logits), twice(extreme_logits), floats(ROWS, 1), {"T": 1.5}),
    ],
    "L1Loss": [Row(elementwise, elementwise_extremes, floats(ROWS, 1))],
    "L2Loss": [
        Row(
            with_similarities(probabilities),
            with_similarities(extreme_logits),
            floats(ROWS, 1),
            mean="mined",
        ),
    ],
    "MPDIoULoss": [
        Row(box_pair, box_extremes, floats(ROWS, 1), {"image_shape": (90, 120)}),
        Row(with_image_shapes(box_pair), with_image_shapes(box_extremes), floats(ROWS, 1)),
    ],
    "MSELoss": [Row(elementwise, elementwise_extremes, floats(ROWS, 1))],
    "MarginL2Loss": [
        Row(
            with_similarities(probabilities),
            with_similarities(extreme_logits),
            floats(ROWS, 1),
            {"neg_pos_ub": 2, "pos_margin": 0.1, "neg_margin": 0.2, "hard_mining": True},
            mean="mined",
        ),
    ],
    "MatchabilityAwareLoss": [
        Row(
            with_quality(logits),
            with_quality(extreme_logits),
            floats(ROWS, 1),
            {"gamma": 1.5, "alpha": 0.75},
        ),
    ],
    "MultiPosCrossEntropyLoss": [
        Row(with_right_classes(logits), with_right_classes(extreme_logits), floats(ROWS, 1))
    ],
    "ProbIoULoss": [Row(rotated_pair, rotated_extremes, floats(ROWS, 1), {"ciou": True})],
    "QualityFocalLoss": [
        Row(with_quality(logits), with_quality(extreme_logits), floats(ROWS, 1)),
        Row(
            with_quality(probabilities),
            with_quality(saturated),
            floats(ROWS, 1),
            {"activated": True, "beta": 0.5, "alpha": 0.75},
        ),
    ],
    "SIoULoss": [
        Row(box_pair, box_extremes, floats(ROWS, 1)),
        Row(box_pair, box_extremes, floats(ROWS, 1), {"neg_gamma": True, "inner_ratio": 0.75}),
    ],
    "SeesawLoss": [
        Row(*SEESAW, floats(ROWS, 1), {"num_classes": CLASSES}, mean="positives"),
        Row(
            *SEESAW,
            floats(ROWS, 1),
            {"num_classes": CLASSES, "return_dict": False},
            mean="positives",
        ),
    ],
    "ShapeIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1), {"scale": 1.0})],
    "SmoothL1Loss": [Row(elementwise, elementwise_extremes, floats(ROWS, 1), {"beta": 0.5})],
    "SoftmaxFocalLoss": [
        Row(with_labels(logits), with_labels(extreme_logits), floats(ROWS, 1), {"gamma": 1.5})
    ],
    "TripletLoss": [
        Row(with_labels(logits), embedding_extremes, floats(ROWS)),
        Row(with_labels(logits), one_class, floats(ROWS)),
    ],
    "TverskyLoss": [Row(with_pixels(logits), with_pixels(extreme_logits), floats(ROWS, 3, 1))],
    "VarifocalLoss": [
        Row(with_ious(logits), with_ious(extreme_logits), floats(ROWS, 1)),
        Row(
            with_ious(logits),
            with_ious(extreme_logits),
            floats(ROWS, 1),
            {"gamma": 0.5, "iou_weighted": False},
        ),
        Row(
            with_quality(logits),
            with_quality(extreme_logits),
            floats(ROWS, 1),
            {"detached": True},
        ),
    ],
    "WIoULoss": [Row(box_pair, box_extremes, floats(ROWS, 1))],
    "WassersteinLoss": [Row(box_pair, box_extremes, floats(ROWS, 1))],
    "YOLOIoULoss": [
        Row(box_pair, box_extremes, floats(ROWS, 1), {"bbox_format": "xyxy"}),
        Row(box_pair, box_extremes, floats(ROWS, 1), {"bbox_format": "xyxy", "iou_mode": "siou"}),
    ],
}

# Values of fields that are neither numbers, flags nor choices, for the laws that set every field.
EXAMPLES = {
    "class_weight": (0.5, 1.0, 2.0, 0.25, 1.5),
    "focaler": (0.1, 0.9),
    "ignore_index": 1,
    "image_shape": (90.0, 120.0),
    "topk": (1, 2),
}

# What tests are parametrized with.
WITH_METRICS = [
    pytest.param(name, row, id=f"{name}-{i}")
    for name, rows in CASES.items()
    for i, row in enumerate(rows)
]
WITH_BARE = [param for param in WITH_METRICS if not param.values[1].is_metric]
CASE_ROWS = [param for param in WITH_BARE if not param.values[1].is_bare]
# Where the base class does the work (exports, meshes, modules), one way to call a class will do.
ONE_EACH = [pytest.param(name, rows[0], id=name) for name, rows in CASES.items()]
ONE_EACH_WITH_BARE = [param for param in ONE_EACH if not param.values[1].is_metric]
# Where a law takes long, these stand for all classes without `--all`: an elementwise loss, boxes,
# labels with sigmoid and with softmax, labels with scores, statistics, and a call of its own.
FEW = (
    "SmoothL1Loss",
    "GIoULoss",
    "FocalLoss",
    "CrossEntropyLoss",
    "QualityFocalLoss",
    "SeesawLoss",
    "AssociativeEmbeddingLoss",
)


def few(params, names=FEW):
    """The same parameters (or names), marked `long` but for those of a few classes."""
    params = [p if isinstance(p, tuple) else pytest.param(p, id=p) for p in params]
    return [p if p.id.removesuffix("-0") in names else as_long(p) for p in params]


def first_rows(params):
    """The same parameters, marked `long` but for the first row of each class."""
    return [param if param.id.endswith("-0") else as_long(param) for param in params]


def as_long(param):
    """The same parameter (or value), marked `long`."""
    param = param if isinstance(param, tuple) else pytest.param(param)
    return pytest.param(*param.values, id=param.id, marks=pytest.mark.long)
