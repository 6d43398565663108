"""The base of the match costs: the weight, and what is missing."""

import jax.numpy as jnp
import numpy as np
import pytest

from visdet_jax.detectors import TASK_UTILS, Instances, MatchCost

COSTS = sorted(name for name, cls in TASK_UTILS.items() if issubclass(cls, MatchCost))
SCORES, MASKS = jnp.array([[1.0, -2.0], [0.5, 0.0]]), jnp.array([[1.0, -2, 3], [0, 2, -1]])
BOXES = jnp.array([[0.0, 0, 10, 10], [5, 5, 20, 30]])
PRED = Instances(scores=SCORES, bboxes=BOXES, masks=MASKS)
GT = Instances(
    labels=jnp.array([1]),
    bboxes=BOXES[:1],
    masks=jnp.array([[1.0, 0, 1]]),
    positive_maps=jnp.array([[0.0, 1]]),
    text_token_mask=jnp.array([1.0, 1]),
)


@pytest.mark.parametrize("name", COSTS)
def test_the_weight_is_a_factor(name):
    cost, doubled = (TASK_UTILS.build({"type": name, "weight": weight}) for weight in (1, -2.0))
    values = np.asarray(cost(PRED, GT, (40, 30)))
    np.testing.assert_array_equal(doubled(PRED, GT, (40, 30)), -2 * values)
    for weight in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"{name}: weight must be finite"):
            TASK_UTILS.build({"type": name, "weight": weight})


NEEDS = {
    "BBoxL1Cost": ("pred bboxes", "gt bboxes", "image shape"),
    "BinaryFocalLossCost": ("pred scores", "gt positive_maps", "gt text_token_mask"),
    "ClassificationCost": ("pred scores", "gt labels"),
    "CrossEntropyLossCost": ("pred masks", "gt masks"),
    "DiceCost": ("pred masks", "gt masks"),
    "FocalLossCost": ("pred scores", "gt labels"),
    "IoUCost": ("pred bboxes", "gt bboxes"),
}


@pytest.mark.parametrize("name", COSTS)
def test_a_cost_says_what_is_missing(name):
    arguments = {"pred": PRED, "gt": GT, "image shape": (40, 30)}
    for what in NEEDS[name]:
        side, _, key = what.partition(" ")
        without = dict(arguments)
        if side in without:
            without[side] = without[side]._replace(**{key: None})
        else:
            without[what] = None
        with pytest.raises(ValueError, match=f"{name}: needs {what}, got None"):
            TASK_UTILS.build({"type": name})(*without.values())
    others = dict.fromkeys(Instances._fields)
    pred = PRED._replace(**{k: v for k, v in others.items() if f"pred {k}" not in NEEDS[name]})
    gt = GT._replace(**{k: v for k, v in others.items() if f"gt {k}" not in NEEDS[name]})
    shape = (40, 30) if "image shape" in NEEDS[name] else None
    cost = TASK_UTILS.build({"type": name})
    np.testing.assert_array_equal(cost(pred, gt, shape), cost(PRED, GT, (40, 30)))


def test_the_base_class_says_what_to_define():
    with pytest.raises(NotImplementedError, match="MatchCost must define compute"):
        MatchCost()(PRED, GT)
