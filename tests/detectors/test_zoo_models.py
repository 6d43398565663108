"""Every model of MMDetection's zoo and every preset of visdet: what builds, and what is missing.

`build_detector` is given each model dict as it stands in the configs. When a head is added, its
line leaves MISSING.
"""

import collections
import functools
import gzip
import json
import re
from pathlib import Path

import pytest

from visdet_jax.core.elsewhere import not_here
from visdet_jax.detectors import HEADS, build_detector

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "visdet_jax" / "detectors" / "README.md").read_text()
# Of labels that are ignored and count in the mean, as in mmdet.
pytestmark = pytest.mark.filterwarnings("ignore:CrossEntropyLoss. ignored labels count")
BUILDS = 577
# How many of the 764 configs do not build, by the first thing that is missing in each.
MISSING = {
    "ATSSVLFusionHead": 21,
    "HybridTaskCascadeRoIHead": 17,
    "GARPNHead": 10,
    "RepPointsHead": 10,
    "SOLOV2Head": 9,
    "FoveaHead": 8,
    "MaskScoringRoIHead": 8,
    "SSDHead": 8,
    "PAAHead": 7,
    "GARetinaHead": 6,
    "GridRoIHead": 6,
    "SABLRetinaHead": 6,
    "YOLOV3Head": 6,
    "SCNetRoIHead": 5,
    "SOLOHead": 5,
    "LDHead": 4,
    "PISARoIHead": 4,
    "SABLHead": 4,
    "perm_repeat_gt_cfg": 4,
    "CornerHead": 3,
    "DDQDETRHead": 3,
    "FSAFHead": 3,
    "FreeAnchorRetinaHead": 3,
    "YOLACTHead": 3,
    "BoxInstBboxHead": 2,
    "CascadeRPNHead": 2,
    "DecoupledSOLOHead": 2,
    "LADHead": 2,
    "MultiInstanceRoIHead": 2,
    "PISARetinaHead": 2,
    "PISASSDHead": 2,
    "PointRendRoIHead": 2,
    "YOLOFHead": 2,
    "AutoAssignHead": 1,
    "CentripetalHead": 1,
    "CondInstBboxHead": 1,
    "DDODHead": 1,
    "DecoupledSOLOLightHead": 1,
    "DynamicRoIHead": 1,
}
# Heads that no config of mmdet's zoo names: those of mmyolo, of ultralytics and of other DETRs.
OF_OTHER_CONFIGS = {
    "RTMDetHead",
    "RTMDetInsHead",
    "YOLORTMDetHead",
    "YOLOv5Head",
    "YOLOv8Head",
    "YOLOHead",
    "EndToEndHead",
    "RTDETRCriterion",
    "RTDETRCriterionv2",
    "DFINECriterion",
    "DEIMCriterion",
    "RFDETRCriterion",
}
# How many of mmyolo's 126 configs build, by their heads.
OF_MMYOLO = {"YOLOv5Head": 29, "YOLOv8Head": 21, "YOLOXHead": 11, "YOLORTMDetHead": 6}
# Why some of the others do not, beside heads that are not here: mmyolo's own RTMDet-Ins has no
# losses, and four configs are other models.
OTHER_REASONS = ("heads with masks have no losses", "a model must have one of")
NAME = re.compile(r"is called '(?:\w+\.)*(\w+)'|(perm_repeat_gt_cfg) must be None")


def read(name):
    return json.loads(gzip.decompress((GOLDEN / f"{name}.json.gz").read_bytes()))


@functools.cache
def outcomes():
    """For each unique model of the zoo: it, its configs, and its heads or the error."""
    results = []
    for entry in read("mmdet_zoo_models")["models"]:
        try:
            built = build_detector(entry["model"])
        except (TypeError, ValueError) as error:
            built = str(error)
        results.append((entry["model"], entry["configs"], built))
    return results


def missing(message):
    """The names of what an error of `build_detector` says is not here, the first one first."""
    return ["".join(groups) for groups in NAME.findall(message)]


def test_what_is_missing():
    found = collections.Counter()
    for _, configs, built in outcomes():
        if isinstance(built, str):
            assert missing(built), f"{configs[0]} fails for a reason of its own: {built}"
            found[missing(built)[0]] += len(configs)
    assert dict(found) == MISSING, "change MISSING, and the number of configs that build"


def test_how_many_build():
    counts = collections.Counter()
    for _, configs, built in outcomes():
        counts[isinstance(built, dict)] += len(configs)
    assert counts == {True: BUILDS, False: sum(MISSING.values())}
    assert counts.total() == 764
    assert f"{BUILDS} of the 764 in mmdet's zoo" in PAGE, (
        "visdet_jax/detectors/README.md says another number"
    )


def test_what_is_missing_is_known_to_be():
    """So users get a plain answer, and not the most similar name of another class."""
    for name in MISSING.keys() - {"perm_repeat_gt_cfg"}:
        assert not_here(name) == f"mmdet's {name} is not here (yet)."


def test_what_builds_has_the_heads_of_its_config():
    for model, _, built in outcomes():
        if isinstance(built, dict):
            model = model.get("detector", model)
            heads = {key for key in model if key.endswith("_head") and model[key]}
            # It puts masks together after training, and has no loss.
            assert heads - {"panoptic_fusion_head"} == built.keys()


def test_every_registered_head_is_built_by_a_config():
    built = [built for _, _, built in outcomes() if isinstance(built, dict)]
    found = {type(head).__name__ for heads in built for head in heads.values()}
    assert found | OF_OTHER_CONFIGS == set(HEADS)
    assert not found & OF_OTHER_CONFIGS


@functools.cache
def outcomes_of_mmyolo():
    """For each unique model of mmyolo's configs: those, and its heads or the error."""
    results = []
    for entry in read("mmyolo_models")["models"]:
        try:
            built = build_detector(entry["model"])
        except (TypeError, ValueError) as error:
            built = str(error)
        results.append((entry["configs"], built))
    return results


def test_how_many_of_mmyolo_build():
    counts, named = collections.Counter(), collections.Counter()
    for configs, built in outcomes_of_mmyolo():
        if isinstance(built, dict):
            counts[type(built["bbox_head"]).__name__] += len(configs)
        elif missing(built):
            named[missing(built)[0]] += len(configs)
        else:
            named[next(x for x in OTHER_REASONS if x in built)] += len(configs)
    assert dict(counts) == OF_MMYOLO
    assert counts.total() + named.total() == 126
    assert f"{counts.total()} of mmyolo's 126" in PAGE, (
        "visdet_jax/detectors/README.md says another number"
    )


def test_equal_models_are_equal_heads():
    models = [model for model, _, built in outcomes() if isinstance(built, dict)]
    for model in models[::20]:
        first, second = (build_detector(model) for _ in range(2))
        assert first == second
        assert [hash(head) for head in first.values()] == [hash(head) for head in second.values()]


@pytest.mark.parametrize("name", read("visdet_presets")["presets"])
def test_presets_of_visdet(name):
    model = read("visdet_presets")["presets"][name]
    heads = {key: type(head).__name__ for key, head in build_detector(model).items()}
    if name.startswith("rtmdet"):
        kind = "RTMDetInsSepBNHead" if "ins" in name else "RTMDetSepBNHead"
        assert heads == {"bbox_head": kind}
    else:
        assert heads == {"rpn_head": "RPNHead", "roi_head": "StandardRoIHead"}
        roi = build_detector(model)["roi_head"]
        assert (roi.mask_head is not None) == name.startswith("mask")
