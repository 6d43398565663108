"""examples/migrating.md is true: its snippets print what it says, and PyTorch computed the same."""

import re
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import visdet_jax
from golden.read_cases import read
from pages import ROOT, Page, numbers, words
from visdet_jax.detectors import YOLOHead, build_head, hungarian

PAGE = Page("examples/migrating.md")
SNIPPETS = PAGE.snippets()
# The recorded losses of boxes, classes and sides, in the order of the page's first table.
RECORDED = {
    "ultra_v8_base": ("box_loss", "cls_loss", "dfl_loss"),
    "ultra_e2e_base": ("box_loss", "cls_loss", "l1_loss"),
    "ultra_e2edetect": ("box_loss", "cls_loss", "dfl_loss"),
    "yolov8_base": ("loss_bbox", "loss_cls", "loss_dfl"),
    "mmyolo_rtmdet_base": ("loss_bbox", "loss_cls"),
}
# The names that the snippets print, of the same.
KINDS = ("loss_bbox", "loss_cls", "loss_dfl|loss_l1")


def recorded(case):
    arrays, _ = read("onestage", case)
    return [arrays[f"exp_{name}"].item() for name in RECORDED[case]]


def of_case(case):
    """The snippet that reads a case, of those that compute losses."""
    return next(x for x in SNIPPETS if f"{case}.npz" in x.code)


def test_the_table_is_what_pytorch_computed():
    table = re.search(r"\| loss in PyTorch .*?\n\n", PAGE.text, re.DOTALL)[0]
    rows = [row.rsplit(") |", 1)[1] for row in table.strip().splitlines()[2:]]
    for row, case in zip(rows, RECORDED, strict=True):
        np.testing.assert_allclose(numbers(row), recorded(case), rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("case", RECORDED)
def test_what_the_snippets_show_is_what_pytorch_computed(case):
    shown = of_case(case).shown
    for kind, expected in zip(KINDS, recorded(case), strict=False):
        value = re.search(rf"^(?:epoch 0 )?(?:{kind}) (\S+)$", shown, re.MULTILINE)[1]
        # Four digits, of float32.
        np.testing.assert_allclose(float(value), expected, rtol=1e-5, atol=5.1e-5)


def test_the_last_epoch_is_by_the_weights():
    """ultralytics' `items` are the one-to-one branch's losses, of one image."""
    arrays, _ = read("onestage", "ultra_e2e_base")
    shown = of_case("ultra_e2e_base").shown
    for kind, both, item in zip(KINDS, recorded("ultra_e2e_base"), arrays["items"], strict=True):
        one = item * len(arrays["gt_labels"])
        many = (both - 0.2 * one) / 0.8
        value = re.search(rf"^epoch 99 (?:{kind}) (\S+)$", shown, re.MULTILINE)[1]
        np.testing.assert_allclose(float(value), 0.1 * many + 0.9 * one, rtol=1e-5, atol=5.1e-5)


@pytest.mark.one_in(6)
@pytest.mark.example
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippets_print_what_is_shown(number):
    snippet = SNIPPETS[number]
    assert_printed(snippet, snippet.run({}))


@pytest.mark.long
@pytest.mark.example
@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippets_run_in_an_interpreter_of_their_own(number):
    snippet = SNIPPETS[number]
    command = [sys.executable, "-c", snippet.code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert_printed(snippet, done.stdout)


def assert_printed(snippet, printed):
    assert snippet.shown, "a snippet of the page must be followed by what it prints"
    assert words(printed) == words(snippet.shown)
    np.testing.assert_allclose(numbers(printed), numbers(snippet.shown), rtol=1e-5, atol=1e-4)


def test_the_snippets_need_nothing_but_this_package_and_numpy():
    names = {
        name
        for snippet in SNIPPETS
        for name in re.findall(r"^(?:import|from) (\w+)", snippet.code, re.MULTILINE)
    }
    assert names == {"numpy", "jax", "visdet_jax"}


def test_the_gains_are_the_defaults():
    """The configs in the table of gains are the fields of a head that is built without them."""
    configs = re.findall(r"`((?:loss_\w+|assigner)=dict\(.*?\))` \|", PAGE.text)
    assert len(configs) == 5
    settings = eval(f"dict({', '.join(configs)})")
    assert build_head(dict(type="YOLOHead", num_classes=80, **settings)) == YOLOHead(num_classes=80)


def test_links_and_files_exist():
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-")
        for line in re.findall(r"^#+ (.*)$", PAGE.text, re.MULTILINE)
    }
    for path, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", PAGE.text):
        assert (ROOT / "examples" / path).exists(), path
        assert path or anchor in headings, anchor
    for path in re.findall(r"`((?:examples|tests)/[\w/]+\.\w+)`", PAGE.text):
        assert (ROOT / path).exists(), path


def iou_of_pairs(a, b, eps):
    """IoU, union, and width and height of the enclosing box of pairs of boxes, in NumPy."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T, b.T
    width = np.clip(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0, None)
    height = np.clip(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0, None)
    overlap = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - overlap
    enclosing = (
        np.maximum(ax2, bx2) - np.minimum(ax1, bx1),
        np.maximum(ay2, by2) - np.minimum(ay1, by1),
    )
    return overlap / (union + eps), union, *enclosing


def giou_loss(a, b, eps=1e-7):
    iou, union, width, height = iou_of_pairs(a, b, eps)
    return 1 - iou + (width * height - union) / (width * height + eps)


def diou_loss(a, b, eps=1e-7):
    iou, _, width, height = iou_of_pairs(a, b, eps)
    offset = (a[:, :2] + a[:, 2:] - b[:, :2] - b[:, 2:]) / 2
    return 1 - iou + (offset**2).sum(1) / (width**2 + height**2 + eps)


def ciou_loss(a, b, eps=1e-7):
    iou, *_ = iou_of_pairs(a, b, eps)
    angle_a, angle_b = (np.arctan2(x[:, 2] - x[:, 0], x[:, 3] - x[:, 1]) for x in (a, b))
    v = 4 / np.pi**2 * (angle_a - angle_b) ** 2
    return diou_loss(a, b, eps) + v * v / (1 - iou + v + eps)


def focal_loss(x, y, alpha=0.25, gamma=2):
    p = 1 / (1 + np.exp(-x))
    right = np.where(y == 1, p, 1 - p)
    return -np.where(y == 1, alpha, 1 - alpha) * (1 - right) ** gamma * np.log(right)


OPS = SimpleNamespace(
    sigmoid_focal_loss=focal_loss,
    generalized_box_iou_loss=giou_loss,
    distance_box_iou_loss=diou_loss,
    complete_box_iou_loss=ciou_loss,
    box_iou=lambda a, b: np.stack(
        [iou_of_pairs(a, b[[i] * len(b)], 0)[0] for i in range(len(b))], 1
    ),
)


@pytest.mark.example
@pytest.mark.parametrize("library", ["optax", "torchvision"])
def test_both_columns_give_the_same(library):
    """optax is called; torchvision's formulas are written out above."""
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(0, 20, (2, 6, 2)), rng.uniform(5, 20, (2, 6, 2))
    a, b = np.concatenate([corner, corner + size], axis=2).astype(np.float32)
    c = rng.integers(0, 5, 6)
    names = {
        "x": rng.normal(0, 2, (6, 5)).astype(np.float32),
        "c": c,
        "y": np.eye(5, dtype=np.float32)[c],
        "m": rng.normal(0, 2, (6, 9)).astype(np.float32),
        "t": (rng.random((6, 9)) < 0.5).astype(np.float32),
        "a": a,
        "b": b,
    }
    if library == "optax":
        names = {name: jnp.asarray(x) for name, x in names.items()}
    names |= vars(visdet_jax) | {"optax": optax, "torchvision": SimpleNamespace(ops=OPS)}
    rows = PAGE.rows(f"| {library} |")
    assert len(rows) >= 5
    for theirs, ours, _ in rows:
        expected, found = (eval(code.strip("`"), dict(names)) for code in (theirs, ours))
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6, err_msg=theirs)


def test_optax_matching_is_ours():
    cost = jnp.asarray(np.random.default_rng(1).normal(size=(7, 3)), jnp.float32)
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    np.testing.assert_array_equal(hungarian(cost)[rows], columns + 1)
    assert (hungarian(cost) > 0).sum() == 3
