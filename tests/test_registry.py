"""From configs to losses: what is built, what raises, and with which message."""

import importlib
import importlib.util
import re
import types
from dataclasses import dataclass, field

import ml_collections
import numpy as np
import omegaconf
import pytest
import yaml

import visdet_jax
from visdet_jax import LOSSES, MODELS, FocalLoss, Loss, Registry, build_loss, configs
from visdet_jax.core.frozen import FrozenModule

CONFIG = {"type": "CrossEntropyLoss", "use_sigmoid": True, "class_weight": [0.5, 2.0]}


def as_dict(config):
    return config


def as_proxy(config):
    return types.MappingProxyType(config)


def as_ml_collections(config):
    return ml_collections.ConfigDict(config)


def as_frozen_ml_collections(config):
    return ml_collections.FrozenConfigDict(config)


def as_omegaconf(config):
    return omegaconf.OmegaConf.create(config)


def as_mmengine(config):
    return importlib.import_module("mmengine.config").ConfigDict(config)


def as_mmengine_top_level(config):
    return importlib.import_module("mmengine.config").Config(config)


MAKERS = [as_dict, as_proxy, as_ml_collections, as_frozen_ml_collections, as_omegaconf]
if importlib.util.find_spec("mmengine"):  # not in the test extra: it drags in opencv
    MAKERS += [as_mmengine, as_mmengine_top_level]


@pytest.mark.parametrize("make", MAKERS)
def test_every_kind_of_config_builds_and_stays_as_it_was(make):
    config, twin = make(CONFIG), make(CONFIG)
    loss = build_loss(config)
    assert loss == visdet_jax.CrossEntropyLoss(use_sigmoid=True, class_weight=(0.5, 2.0))
    assert {k: config[k] for k in config.keys()} == {k: twin[k] for k in twin.keys()}  # noqa: SIM118
    assert hash(loss) == hash(build_loss(twin))


def test_omegaconf_interpolation_is_resolved():
    config = omegaconf.OmegaConf.create(
        {"gamma": 1.5, "loss": {"type": "FocalLoss", "gamma": "${gamma}"}}
    )
    assert build_loss(config.loss) == FocalLoss(gamma=1.5)


def test_a_name_a_scoped_name_and_a_class_are_the_same():
    expected = FocalLoss(gamma=1.5)
    for kind in ("FocalLoss", "mmdet.FocalLoss", "visdet.FocalLoss", FocalLoss):
        assert build_loss({"type": kind, "gamma": 1.5}) == expected


def test_strings_of_numbers_become_numbers():
    config = yaml.safe_load("{type: IoULoss, eps: 1e-6, loss_weight: 2}")
    assert config["eps"] == "1e-6"  # as PyYAML reads it
    loss = build_loss(config)
    assert loss.eps == 1e-6
    assert isinstance(loss.eps, float)
    weights = build_loss({"type": "CrossEntropyLoss", "class_weight": ["1e-1", "2"]}).class_weight
    assert weights == (0.1, 2)
    array = {"type": "CrossEntropyLoss", "class_weight": np.array([0.5, 1.0])}
    assert build_loss(array).class_weight == (0.5, 1.0)
    assert (
        build_loss(
            {"type": "CrossEntropyLoss", "ignore_index": "-1", "avg_non_ignore": True}
        ).ignore_index
        == -1
    )


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (
            {"type": "FocaLoss"},
            ValueError,
            "No loss is called 'FocaLoss'. Did you mean 'FocalLoss'?",
        ),
        (
            {"type": "focal_loss"},
            KeyError,
            "No loss is called 'focal_loss'. Did you mean 'FocalLoss'?",
        ),
        ({"type": "Zzz"}, KeyError, "No loss is called 'Zzz'."),
        (
            {"type": "mmpretrain.FocalLoss"},
            ValueError,
            "No loss is called 'mmpretrain.FocalLoss': it is mmpretrain's own, and only mmdet, ",
        ),
        (
            {"type": "FocalLoss", "gama": 2.0},
            ValueError,
            "FocalLoss has no key 'gama'. Did you mean 'gamma'? Its keys: reduction, loss_weight, "
            "use_sigmoid, gamma, alpha, activated, poly_epsilon.",
        ),
        ({"gamma": 2.0}, ValueError, "The config of a loss needs a key 'type', got {'gamma': 2.0}"),
        (
            "FocalLoss",
            TypeError,
            "A loss is built from a config such as dict(type=...), got 'FocalLoss'",
        ),
        (None, TypeError, "A loss is built from a config such as dict(type=...), got None"),
        ({"type": 3}, TypeError, "3 must be a frozen, keyword-only dataclass"),
        ({"type": dict}, TypeError, "'dict' must be a frozen, keyword-only dataclass"),
        (
            {"type": "CrossEntropyCustomLoss"},
            ValueError,
            "CrossEntropyCustomLoss needs a key 'num_classes' in its config",
        ),
        (
            {"type": "FocalLoss", "gamma": "two"},
            TypeError,
            "FocalLoss: gamma must be a number, got 'two'",
        ),
        (
            {"type": "FocalLoss", "gamma": None},
            TypeError,
            "FocalLoss: gamma must be a number, got None",
        ),
        (
            {"type": "FocalLoss", "activated": 1},
            TypeError,
            "FocalLoss: activated must be True or False, got 1",
        ),
        (
            {"type": "FocalLoss", "gamma": True},
            TypeError,
            "FocalLoss: gamma must be a number, got True",
        ),
        (
            {"type": "CrossEntropyLoss", "class_weight": (True,)},
            TypeError,
            "CrossEntropyLoss: class_weight must be a number or a tuple of numbers or None, got",
        ),
        (
            {"type": "L1Loss", "reduction": "average"},
            ValueError,
            "L1Loss: reduction must be one of none, mean, sum; got 'average'",
        ),
        (
            {"type": "IoULoss", "mode": "cubic"},
            ValueError,
            "IoULoss: mode must be one of linear, square, log; got 'cubic'",
        ),
        (
            {"type": "SmoothL1Loss", "beta": -1.0},
            ValueError,
            "SmoothL1Loss: beta must be at least 0, got -1.0",
        ),
        (
            {"type": "FocalLoss", "alpha": 1.5},
            ValueError,
            "FocalLoss: alpha must be in [0, 1], got 1.5; alpha=None switches it off",
        ),
        (
            {"type": "FocalLoss", "use_sigmoid": False},
            ValueError,
            "FocalLoss: use_sigmoid must be True: the softmax form is SoftmaxFocalLoss",
        ),
        (
            {"type": "CrossEntropyLoss", "use_sigmoid": True, "use_mask": True},
            ValueError,
            "CrossEntropyLoss: use_sigmoid and use_mask exclude each other",
        ),
        (
            {"type": "DiceLoss", "use_sigmoid": False},
            ValueError,
            "DiceLoss: use_sigmoid=False needs activate=False",
        ),
    ],
)
def test_messages(config, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build_loss(config)


def test_a_registry_is_a_mapping():
    assert MODELS is LOSSES
    assert len(LOSSES) == len(list(LOSSES)) == len(LOSSES.module_dict)
    assert LOSSES["FocalLoss"] is LOSSES.get("mmdet.FocalLoss") is FocalLoss
    assert LOSSES.get("FocaLoss") is None
    assert "FocalLoss" in LOSSES
    assert "FocaLoss" not in LOSSES
    assert "FocalLoss" in repr(LOSSES)
    with pytest.raises(TypeError):
        LOSSES.module_dict["Mine"] = FocalLoss


def test_visdets_listing_works_with_the_package_name_changed():
    from visdet_jax.registry import MODELS

    losses = [name for name in sorted(MODELS.module_dict.keys()) if "Loss" in name]
    assert "GIoULoss" in losses


def test_registering():
    registry = Registry("loss")

    @registry.register_module()
    @dataclass(frozen=True, kw_only=True)
    class Mine(Loss):
        scales: tuple[float, ...] = field(default_factory=lambda: (1.0,))

        def compute(self, pred, target, weight, **reduce):
            return visdet_jax.l1_loss(pred, target, weight, **reduce)

    assert registry.build({"type": "Mine", "scales": [2, "3"]}).scales == (2, 3)
    assert registry.build({"type": Mine}) == Mine()
    assert registry.register_module("Other")(Mine) is registry["Other"] is Mine
    with pytest.raises(
        ValueError, match=rf"A loss called 'Mine' is registered already \({__name__}\)"
    ):
        registry.register_module()(Mine)
    assert registry.register_module(force=True)(Mine) is Mine
    with pytest.raises(TypeError, match="write @register_module\\(\\), with parentheses"):
        registry.register_module(Mine)


@dataclass(frozen=True, kw_only=True)
class Gear(FrozenModule):
    teeth: int


@dataclass(frozen=True, kw_only=True)
class Machine(FrozenModule):
    loss: Loss | None = None
    gear: Gear = Gear(teeth=8)
    size: float = 1.0


@pytest.fixture
def machines():
    """A registry whose classes nest losses and gears."""
    gears = Registry("gear")
    gears.register_module()(Gear)
    registry = Registry("machine", parts={Loss: LOSSES, Gear: gears}, ignored=("colour", "type_"))
    registry.register_module()(Machine)
    return registry


@pytest.mark.parametrize("make", MAKERS[:5])
def test_parts_are_built_by_their_own_registries(machines, make):
    config = make(
        {
            "type": "Machine",
            "loss": {"type": "mmdet.FocalLoss", "gamma": 1.5},
            "gear": {"type": "Gear", "teeth": "12"},
        }
    )
    expected = Machine(loss=FocalLoss(gamma=1.5), gear=Gear(teeth=12))
    assert machines.build(config) == expected
    parts = {"loss": FocalLoss(gamma=1.5), "gear": Gear(teeth=12)}
    assert machines.build({"type": "Machine", **parts}) == expected
    assert machines.build({"type": "Machine", "loss": None}) == Machine()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"loss": {"type": "FocaLoss"}}, ValueError, "No loss is called 'FocaLoss'. Did you mean"),
        ({"gear": {"type": "FocalLoss"}}, ValueError, "No gear is called 'FocalLoss'"),
        ({"gear": {"teeth": 3}}, ValueError, "The config of a gear needs a key 'type', got {'te"),
        ({"gear": {"type": "Gear", "tooth": 3}}, ValueError, "Gear has no key 'tooth'. Did you"),
        ({"gear": {"type": FocalLoss}}, TypeError, "Machine: gear must be Gear, got FocalLoss("),
        ({"size": {"type": "Gear"}}, TypeError, "Machine: size must be a number, got {'type'"),
        ({"gear": 3}, TypeError, "Machine: gear must be Gear, got 3"),
    ],
)
def test_parts_that_do_not_fit(machines, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        machines.build({"type": "Machine", **changes})


def test_ignored_keys_are_dropped(machines):
    config = {"type": "Machine", "colour": {"type": "Nonsense"}, "type_": 3, "size": 2}
    assert machines.build(config) == Machine(size=2)
    assert "colour" in config
    with pytest.raises(ValueError, match="Machine has no key 'color'"):
        machines.build({"type": "Machine", "color": "red"})
    with pytest.raises(ValueError, match="Gear has no key 'colour'"):  # each registry has its own
        machines.build({"type": "Machine", "gear": {"type": "Gear", "teeth": 3, "colour": "red"}})


def test_losses_have_neither_parts_nor_ignored_keys():
    assert not LOSSES.parts
    assert not LOSSES.ignored
    with pytest.raises(ValueError, match="FocalLoss has no key 'init_cfg'"):
        build_loss({"type": "FocalLoss", "init_cfg": None})


def test_a_class_that_is_no_frozen_keyword_only_dataclass_is_an_error():
    class Forgot(FocalLoss):
        extra: float = 1.0

    @dataclass
    class Mutable:
        gamma: float = 2.0

    @dataclass(frozen=True)
    class Positional:
        gamma: float = 2.0

    for cls in (Forgot, Mutable, Positional, int):
        message = f"'{cls.__name__}' must be a frozen, keyword-only dataclass: decorate it with @da"
        with pytest.raises(TypeError, match=message):
            Registry("loss").register_module()(cls)


def test_an_unknown_mapping_type_is_read_by_keys_and_getitem():
    class Bare:
        def keys(self):
            return ["type", "gamma"]

        def __getitem__(self, key):
            return {"type": "FocalLoss", "gamma": 3.0}[key]

    assert build_loss(Bare()) == FocalLoss(gamma=3.0)


@pytest.mark.parametrize("detector", ["RETINANET", "FCOS", "ATSS", "GFL"])
def test_the_four_detectors(detector):
    losses = {name: build_loss(config) for name, config in getattr(configs, detector).items()}
    assert {"loss_cls", "loss_bbox"} <= losses.keys()
    copy = {**getattr(configs, detector)["loss_bbox"], "loss_weight": 5.0}
    assert build_loss(copy).loss_weight == 5.0


def test_the_four_detectors_are_the_specifications():
    names = {
        detector: [config["type"] for config in getattr(configs, detector).values()]
        for detector in ("RETINANET", "FCOS", "ATSS", "GFL")
    }
    assert names == {
        "RETINANET": ["FocalLoss", "SmoothL1Loss"],
        "FCOS": ["FocalLoss", "IoULoss", "CrossEntropyLoss"],
        "ATSS": ["FocalLoss", "GIoULoss", "CrossEntropyLoss"],
        "GFL": ["QualityFocalLoss", "GIoULoss", "DistributionFocalLoss"],
    }
    assert configs.ATSS["loss_bbox"]["loss_weight"] == configs.GFL["loss_bbox"]["loss_weight"] == 2
    assert configs.GFL["loss_dfl"]["loss_weight"] == 0.25


def other_librarys(name, module):
    """A class as another library has it."""
    return type(name, (), {"__module__": module})


@pytest.mark.parametrize(
    "config",
    [
        {"type": "mmdet.FocalLoss"},
        {"type": "visdet.FocalLoss"},
        {"type": "mmyolo.FocalLoss"},
        {"type": "mmdet.models.losses.focal_loss.FocalLoss"},  # what mmengine dumps
        {"type": "visdet_jax.losses.classification.focal.FocalLoss"},
        {"type": other_librarys("FocalLoss", "mmdet.models.losses.focal_loss")},
        {"type": other_librarys("FocalLoss", "visdet.models.losses.focal_loss")},
        {"type": "FocalLoss", "_scope_": "mmdet"},
        {"type": "mmdet.FocalLoss", "_scope_": "mmyolo"},
        {"type": FocalLoss, "_scope_": "mmdet"},
    ],
)
def test_types_as_they_are_found(config):
    assert build_loss({**config, "gamma": 1.5}) == FocalLoss(gamma=1.5)


def test_a_type_that_mmengine_has_not_imported_yet():
    lazy = types.new_class("LazyAttr", (), {})
    lazy.__module__ = "mmengine.config.lazy"
    lazy.__str__ = lambda self: "mmdet.models.losses.focal_loss.FocalLoss"
    assert build_loss({"type": lazy()}) == FocalLoss()


def test_nothing_is_imported_for_a_config(monkeypatch):
    def no_import(name, *args, **options):
        raise AssertionError(f"{name} was imported")

    monkeypatch.setattr(importlib, "import_module", no_import)
    assert build_loss({"type": "mmdet.models.losses.no_such_file.FocalLoss"}) == FocalLoss()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"type": "FocalLoss", "_scope_": "mmcls"}, "it is mmcls's own"),
        ({"type": "torch.nn.L1Loss"}, "it is torch's own"),
        ({"type": "mmcls.models.losses.FocalLoss"}, "it is mmcls's own"),
        ({"type": "FocalLoss", "_delete_": True}, "replace the base config's dict"),
        ({"type": "FocalLoss", "use_sigmoid": False}, "the softmax form is SoftmaxFocalLoss"),
        ({"type": "CIoULoss", "return_iou": False}, "mmyolo's IoULoss"),
        ({"type": "mmyolo.OksLoss"}, r"mmyolo's OksLoss is not here \(yet\)"),
        ({"type": "RotatedIoULoss"}, r"mmrotate's RotatedIoULoss is not here \(yet\)"),
    ],
)
def test_configs_that_say_what_to_do(config, message):
    with pytest.raises(ValueError, match=message):
        build_loss(config)


def test_a_class_of_torch_is_not_taken_for_ours():
    with pytest.raises(TypeError, match="'L1Loss' must be a frozen, keyword-only dataclass"):
        build_loss({"type": other_librarys("L1Loss", "torch.nn.modules.loss")})
