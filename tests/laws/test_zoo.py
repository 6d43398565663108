"""Every loss dict of MMDetection's model zoo, as it stands in the configs, builds and works."""

import json
import re
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cases import CASES, CLASSES, ROWS, labels, logits
from visdet_jax import CrossEntropyLoss, Loss, build_loss, cross_entropy
from visdet_jax.detectors import TASK_UTILS, Instances

GOLDEN = Path(__file__).parents[1] / "golden"
ZOO = json.loads((GOLDEN / "mmdet_zoo_losses.json").read_text())["losses"]
CONFIGS = [entry["config"] for entry in ZOO]
COSTS = [config for config in CONFIGS if config["type"].endswith("Cost")]
OTHERS = [config for config in CONFIGS if config["type"].startswith("mmpretrain.")]
LOSSES = [config for config in CONFIGS if config not in COSTS + OTHERS]


def test_the_counts():
    assert (len(ZOO), sum(entry["count"] for entry in ZOO)) == (94, 3441)
    assert (len(LOSSES), len(COSTS), len(OTHERS)) == (88, 5, 1)


def inputs_for(config):
    """(pred, target, keywords) that suit a config: its number of classes, its kind of target."""
    rng = np.random.default_rng(0)
    kind, class_weight = config["type"], config.get("class_weight")
    classes = len(class_weight) if isinstance(class_weight, list) else CLASSES
    classes = config.get("num_classes", classes)
    if kind == "SeesawLoss":
        return logits(rng, ROWS, classes + 2), labels(rng), {}
    if kind == "CrossEntropyLoss" and not config.get("use_mask"):
        return logits(rng, ROWS, classes), labels(rng), {}
    modes = ("use_mask", "activated", "activate")  # what pred holds
    row = next(
        row
        for row in CASES[kind]
        if {k: row.config[k] for k in modes if row.config.get(k) == (k != "activate")}
        == {k: config[k] for k in modes if config.get(k) == (k != "activate")}
    )
    pred, target, *keywords = row.inputs(rng)
    if "num_classes" in config:
        pred = logits(rng, ROWS, classes)
    return pred, target, keywords[0] if keywords else {}


TYPES = {}
for config in LOSSES:
    TYPES.setdefault(config["type"], []).append(config)


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=f"{name}-{i}", marks=pytest.mark.long if i else ())
        for name, configs in TYPES.items()
        for i, config in enumerate(configs)
    ],
)
def test_a_config_gives_a_finite_loss_and_gradient(config):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated spellings and ignore_index, tested elsewhere
        loss = build_loss(config)
    pred, target, keywords = inputs_for(config)

    def total(pred):
        if isinstance(loss, Loss):
            value, _ = loss.update(loss.init(), pred, target, **keywords)
        else:
            value = loss(pred, target, **keywords)
        return sum(jnp.sum(part) for part in jax.tree.leaves(value))

    value, gradient = jax.value_and_grad(total)(pred)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.any(gradient)


@pytest.mark.parametrize("config", COSTS, ids=lambda config: config["type"])
def test_match_costs_build_among_the_task_utils(config):
    cost = TASK_UTILS.build(config)
    assert all(getattr(cost, key) == value for key, value in config.items() if key != "type")
    rng = np.random.default_rng(0)
    pred = Instances(scores=logits(rng, 6, 4), masks=logits(rng, 6, 8))
    masks = (rng.random((2, 8)) < 0.5).astype(np.float32)
    tokens = (rng.random((2, 4)) < 0.5).astype(np.float32)
    gt = Instances(
        labels=np.array([1, 3]), masks=masks, positive_maps=tokens, text_token_mask=np.ones(4)
    )
    assert cost(pred, gt).shape == (6, 2)
    assert np.isfinite(cost(pred, gt)).all()
    message = f"No loss is called '{config['type']}': it is a match cost, for the `match_costs`"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_loss(config)


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config["type"])
def test_other_libraries_losses_say_whose_they_are(config):
    with pytest.raises(
        ValueError, match="it is mmpretrain's own, and only mmdet, mmrotate, mmyolo and visdet's"
    ):
        build_loss(config)


def test_the_background_weight_of_detr():
    pred = logits(np.random.default_rng(0), ROWS, 3)
    label = np.array([0, 1, 2, 2, 1, 0, 2, 2])
    loss = CrossEntropyLoss(class_weight=2.0, bg_cls_weight=0.1)
    expected = cross_entropy(pred, label, class_weight=jnp.array([2.0, 2.0, 0.1]))
    np.testing.assert_allclose(loss(pred, label), expected, rtol=1e-6)
    listed = CrossEntropyLoss(class_weight=(2.0, 2.0, 1.0), bg_cls_weight=0.1)
    np.testing.assert_allclose(listed(pred, label), expected, rtol=1e-6)
    alone = CrossEntropyLoss(bg_cls_weight=0.1)
    expected = cross_entropy(pred, label, class_weight=jnp.array([1.0, 1.0, 0.1]))
    np.testing.assert_allclose(alone(pred, label), expected, rtol=1e-6)
    for mode in ({"use_sigmoid": True}, {"use_mask": True}):
        with pytest.raises(ValueError, match="bg_cls_weight is softmax's"):
            CrossEntropyLoss(bg_cls_weight=0.1, **mode)
