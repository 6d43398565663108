"""The losses of the benchmark: their inputs, ours, and the same formulas as others write them.

Each case's inputs are NumPy arrays, the first of them pred; its functions take these and return
the loss as a head calls it. `plain` is the formula transcribed to jnp, `torch` is a torch module
away from it: the form of mmdetection.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import visdet_jax as vj

AVG_FACTOR = 1000.0


@dataclass(frozen=True)
class Case:
    """A loss at training size."""

    name: str
    inputs: Callable[..., tuple]  # (rng, scale of the number of rows, ...)
    ours: Callable[..., jax.Array]
    plain: Callable[..., jax.Array]
    torch: Callable[..., Any]  # (torch, *tensors)
    optax: Callable[..., jax.Array] | None = None
    rows_of: int = 0  # rows at scale 1, where the cost by the number of rows is measured


def _rows(n, scale):
    return max(int(n * scale), 8)


def _logits(rng, shape, wide=False):
    if wide:
        return rng.uniform(-100, 100, shape).astype(np.float32)
    return (rng.standard_normal(shape, np.float32) * 2 - 2).astype(np.float32)


def _labels(rng, n, classes, share=0.01):
    positive = rng.uniform(size=n) < share
    return np.where(positive, rng.integers(classes, size=n), classes).astype(np.int32)


def _weight(rng, n):
    return (rng.uniform(size=n) < 0.98).astype(np.float32)


def sparse_inputs(n, classes):
    """Logits, class indices with background, weights."""

    def make(rng, scale, wide=False, classes=classes):
        rows = _rows(n, scale)
        labels = _labels(rng, rows, classes, 0.5 if wide else 0.01)
        return _logits(rng, (rows, classes), wide), labels, _weight(rng, rows)

    return make


def foreground_inputs(n, classes):
    """Logits, class indices without background, weights."""

    def make(rng, scale, wide=False, classes=classes):
        rows = _rows(n, scale)
        labels = rng.integers(classes, size=rows).astype(np.int32)
        return _logits(rng, (rows, classes), wide), labels, _weight(rng, rows)

    return make


def scored_inputs(n, classes):
    """Logits, class indices with background, IoUs, weights."""

    def make(rng, scale, wide=False, classes=classes):
        logits, labels, weight = sparse_inputs(n, classes)(rng, scale, wide, classes)
        scores = np.where(labels < classes, rng.uniform(0.3, 1, labels.shape), 0)
        return logits, labels, scores.astype(np.float32), weight

    return make


def dense_quality_inputs(n, classes):
    """Logits, an IoU at the class of each positive and 0 elsewhere, weights."""

    def make(rng, scale, wide=False, classes=classes):
        logits, labels, scores, _ = scored_inputs(n, classes)(rng, scale, wide, classes)
        target = (np.arange(classes) == labels[:, None]) * scores[:, None]
        return logits, target.astype(np.float32)

    return make


def mask_inputs(rng, scale, wide=False):
    n = _rows(256, scale)
    logits = _logits(rng, (n, 80, 28, 28), wide)
    masks = (rng.uniform(size=(n, 28, 28)) < 0.5).astype(np.float32)
    return logits, masks, rng.integers(80, size=n).astype(np.int32)


def heatmap_inputs(rng, scale, wide=False):
    shape = (8, max(int(80 * scale), 1), 128, 128)
    logits = _logits(rng, shape, wide)
    # The logits' sigmoids, as CenterNet passes them, kept off 0 and 1 as it does.
    pred = np.clip(1 / (1 + np.exp(-logits.astype(np.float64))), 1e-4, 1 - 1e-4)
    target = rng.uniform(size=shape) ** 8
    target[rng.uniform(size=shape) < 1e-3] = 1
    return pred.astype(np.float32), target.astype(np.float32)


def box_inputs(rng, scale, wide=False, classes=None):
    n = _rows(200_000, scale)
    low = rng.uniform(0, 500, (n, 2))
    target = np.concatenate([low, low + rng.uniform(40, 300, (n, 2))], -1)
    pred = target + rng.uniform(-15, 15, (n, 4))
    return pred.astype(np.float32), target.astype(np.float32), _weight(rng, n)


def delta_inputs(rng, scale, wide=False, classes=None):
    n = _rows(200_000, scale)
    pred = rng.uniform(-100, 100, (n, 4)) if wide else rng.normal(0, 1, (n, 4))
    target = rng.normal(0, 1, (n, 4))
    weight = np.repeat(_weight(rng, n)[:, None], 4, 1)
    return pred.astype(np.float32), target.astype(np.float32), weight


def distribution_inputs(rng, scale, wide=False, classes=None):
    n = _rows(200_000, scale)
    return (
        _logits(rng, (n, 17), wide),
        rng.uniform(0, 15.9, n).astype(np.float32),
        _weight(rng, n),
    )


def dice_inputs(rng, scale, wide=False):
    n = _rows(300, scale)
    masks = (rng.uniform(size=(n, 128, 128)) < 0.3).astype(np.float32)
    return _logits(rng, (n, 128, 128), wide), masks, np.ones(n, np.float32)


# ---- the formulas in plain jnp


def _bce(x, t):
    return jnp.maximum(x, 0) - x * t + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _weighed(values, weight):
    return (values * weight[:, None]).sum() / AVG_FACTOR


def plain_focal(x, labels, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    p = jax.nn.sigmoid(x)
    miss = (1 - p) * t + p * (1 - t)
    return _weighed((0.25 * t + 0.75 * (1 - t)) * miss**2 * _bce(x, t), weight)


def optax_focal(x, labels, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    return _weighed(optax.sigmoid_focal_loss(x, t, alpha=0.25, gamma=2.0), weight)


def plain_quality_focal(x, labels, scores, weight):
    t = jax.nn.one_hot(labels, x.shape[1]) * scores[:, None]
    return _weighed(jnp.abs(t - jax.nn.sigmoid(x)) ** 2 * _bce(x, t), weight)


def plain_varifocal(x, t):
    focal = jnp.where(t > 0, t, 0.75 * jnp.abs(jax.nn.sigmoid(x) - t) ** 2)
    return (focal * _bce(x, t)).sum() / AVG_FACTOR


def plain_softmax(x, labels, weight):
    log_p = jax.nn.log_softmax(x)
    return -(jnp.take_along_axis(log_p, labels[:, None], 1)[:, 0] * weight).sum() / AVG_FACTOR


def optax_softmax(x, labels, weight):
    values = optax.softmax_cross_entropy_with_integer_labels(x, labels)
    return (values * weight).sum() / AVG_FACTOR


def plain_sigmoid(x, labels, weight):
    return _weighed(_bce(x, jax.nn.one_hot(labels, x.shape[1])), weight)


def optax_sigmoid(x, labels, weight):
    t = jax.nn.one_hot(labels, x.shape[1])
    return _weighed(optax.sigmoid_binary_cross_entropy(x, t), weight)


def plain_mask(x, masks, labels):
    return _bce(x[jnp.arange(len(x)), labels], masks).mean()


def plain_heatmap(p, t):
    positive = -jnp.log(p + 1e-12) * (1 - p) ** 2 * (t == 1)
    negative = -jnp.log(1 - p + 1e-12) * p**2 * (1 - t) ** 4
    return (positive + negative).sum() / AVG_FACTOR


def _pairs(xp, pred, target, eps=1e-6):
    """Overlap, union, and hull of boxes, in torch or jnp alike."""
    low, high = (xp.maximum, xp.minimum)
    size = (high(pred[:, 2:], target[:, 2:]) - low(pred[:, :2], target[:, :2])).clip(0)
    hull = low(pred[:, 2:], target[:, 2:]) - high(pred[:, :2], target[:, :2])
    overlap = size[:, 0] * size[:, 1]
    area1, area2 = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (pred, target))
    return overlap, area1 + area2 - overlap, hull


def _iou(xp, pred, target):
    overlap, union, _ = _pairs(xp, pred, target)
    return -xp.log((overlap / union.clip(1e-6)).clip(1e-6))


def _giou(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    area = (hull[:, 0] * hull[:, 1]).clip(1e-6)
    return 1 - (overlap / union.clip(1e-6) - (area - union) / area)


def _distance(pred, target, hull):
    centers = ((target[:, :2] + target[:, 2:]) - (pred[:, :2] + pred[:, 2:])) ** 2 / 4
    return (centers[:, 0] + centers[:, 1]) / (hull[:, 0] ** 2 + hull[:, 1] ** 2 + 1e-6)


def _diou(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    return 1 - (overlap / (union + 1e-6) - _distance(pred, target, hull))


def _ciou(xp, pred, target):
    overlap, union, hull = _pairs(xp, pred, target)
    iou = overlap / (union + 1e-6)
    ratio1, ratio2 = (
        xp.arctan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1] + 1e-6)) for b in (pred, target)
    )
    v = 4 / np.pi**2 * (ratio2 - ratio1) ** 2
    alpha = (iou > 0.5) * v / (1 - iou + v)
    alpha = jax.lax.stop_gradient(alpha) if xp is jnp else alpha.detach()
    return 1 - (iou - (_distance(pred, target, hull) + alpha * v)).clip(-1, 1)


def _l1(xp, pred, target):
    return abs(pred - target)


def _smooth_l1(xp, pred, target):
    d = abs(pred - target)
    return xp.where(d < 1, 0.5 * d * d, d - 0.5)


def _balanced_l1(xp, pred, target):
    d, b = abs(pred - target), np.e**3 - 1
    inner = 0.5 / b * (b * d + 1) * xp.log(b * d + 1) - 0.5 * d
    return xp.where(d < 1, inner, 1.5 * d + 1.5 / b - 0.5)


def plain_distribution(x, t, weight):
    left = t.astype(jnp.int32)
    log_p = jax.nn.log_softmax(x)
    ce = [-jnp.take_along_axis(log_p, i[:, None], 1)[:, 0] for i in (left, left + 1)]
    return ((ce[0] * (left + 1 - t) + ce[1] * (t - left)) * weight).sum() / AVG_FACTOR


def plain_dice(x, t, weight):
    p, t = jax.nn.sigmoid(x).reshape(len(x), -1), t.reshape(len(x), -1)
    overlap = (p * t).sum(1)
    dice = 2 * overlap / ((p * p).sum(1) + 1e-3 + (t * t).sum(1) + 1e-3)
    return ((1 - dice) * weight).sum() / AVG_FACTOR


# ---- the same in torch


def _one_hot(torch, labels, classes):
    return (labels[:, None] == torch.arange(classes, device=labels.device)).float()


def _torch_bce(torch, x, t):
    return torch.nn.functional.binary_cross_entropy_with_logits(x, t, reduction="none")


def torch_focal(torch, x, labels, weight):
    t = _one_hot(torch, labels, x.shape[1])
    p = x.sigmoid()
    miss = (1 - p) * t + p * (1 - t)
    focal = (0.25 * t + 0.75 * (1 - t)) * miss**2
    return _weighed(_torch_bce(torch, x, t) * focal, weight)


def torch_quality_focal(torch, x, labels, scores, weight):
    p = x.sigmoid()
    values = _torch_bce(torch, x, torch.zeros_like(x)) * p**2
    rows = torch.nonzero(labels < x.shape[1]).squeeze(1)
    classes = labels[rows].long()
    miss = (scores[rows] - p[rows, classes]).abs() ** 2
    values[rows, classes] = _torch_bce(torch, x[rows, classes], scores[rows]) * miss
    return (values.sum(1) * weight).sum() / AVG_FACTOR


def torch_varifocal(torch, x, t):
    positive = t > 0
    focal = t * positive + 0.75 * (x.sigmoid() - t).abs() ** 2 * ~positive
    return (_torch_bce(torch, x, t) * focal).sum() / AVG_FACTOR


def torch_softmax(torch, x, labels, weight):
    values = torch.nn.functional.cross_entropy(x, labels.long(), reduction="none")
    return (values * weight).sum() / AVG_FACTOR


def torch_sigmoid(torch, x, labels, weight):
    return _weighed(_torch_bce(torch, x, _one_hot(torch, labels, x.shape[1])), weight)


def torch_mask(torch, x, masks, labels):
    own = x[torch.arange(len(x)), labels.long()]
    return torch.nn.functional.binary_cross_entropy_with_logits(own, masks)


def torch_heatmap(torch, p, t):
    positive = -(p + 1e-12).log() * (1 - p).pow(2) * t.eq(1)
    negative = -(1 - p + 1e-12).log() * p.pow(2) * (1 - t).pow(4)
    return (positive + negative).sum() / AVG_FACTOR


def torch_distribution(torch, x, t, weight):
    left = t.long()
    ce = [torch.nn.functional.cross_entropy(x, i, reduction="none") for i in (left, left + 1)]
    return ((ce[0] * (left + 1 - t) + ce[1] * (t - left)) * weight).sum() / AVG_FACTOR


def torch_dice(torch, x, t, weight):
    p, t = x.sigmoid().flatten(1), t.flatten(1)
    dice = 2 * (p * t).sum(1) / ((p * p).sum(1) + 1e-3 + (t * t).sum(1) + 1e-3)
    return ((1 - dice) * weight).sum() / AVG_FACTOR


def _ours(function, **options):
    """Pred, targets and, last, a weight, with avg_factor."""

    def call(pred, *rest):
        return function(pred, *rest, avg_factor=AVG_FACTOR, **options)

    return call


def _of_pairs(name, function, formula, inputs, **peers):
    """A loss of pairs (pred, target, weight), whose formula torch and jnp write alike."""

    def plain(pred, target, weight):
        return (formula(jnp, pred, target) * weight).sum() / AVG_FACTOR

    def torch_form(torch, pred, target, weight):
        return (formula(torch, pred, target) * weight).sum() / AVG_FACTOR

    return Case(name, inputs, _ours(function), plain, torch_form, rows_of=200_000, **peers)


def _optax_huber(pred, target, weight):
    return (optax.huber_loss(pred, target) * weight).sum() / AVG_FACTOR


CASES = (
    Case(
        "focal",
        sparse_inputs(100_000, 80),
        _ours(vj.sigmoid_focal_loss),
        plain_focal,
        torch_focal,
        optax_focal,
        rows_of=100_000,
    ),
    Case(
        "quality focal",
        scored_inputs(40_000, 80),
        lambda x, labels, scores, weight: vj.quality_focal_loss(
            x, (labels, scores), weight, avg_factor=AVG_FACTOR
        ),
        plain_quality_focal,
        torch_quality_focal,
        rows_of=40_000,
    ),
    Case(
        "varifocal",
        dense_quality_inputs(40_000, 80),
        _ours(vj.varifocal_loss),
        plain_varifocal,
        torch_varifocal,
        rows_of=40_000,
    ),
    Case(
        "softmax 81",
        foreground_inputs(100_000, 81),
        _ours(vj.cross_entropy),
        plain_softmax,
        torch_softmax,
        optax_softmax,
        rows_of=100_000,
    ),
    Case(
        "softmax 1204",
        foreground_inputs(8_000, 1204),
        _ours(vj.cross_entropy),
        plain_softmax,
        torch_softmax,
        optax_softmax,
    ),
    Case(
        "sigmoid",
        sparse_inputs(100_000, 80),
        _ours(vj.binary_cross_entropy),
        plain_sigmoid,
        torch_sigmoid,
        optax_sigmoid,
        rows_of=100_000,
    ),
    Case("masks", mask_inputs, vj.mask_cross_entropy, plain_mask, torch_mask),
    Case("heatmap", heatmap_inputs, _ours(vj.gaussian_focal_loss), plain_heatmap, torch_heatmap),
    _of_pairs("IoU", vj.iou_loss, _iou, box_inputs),
    _of_pairs("GIoU", vj.giou_loss, _giou, box_inputs),
    _of_pairs("DIoU", vj.diou_loss, _diou, box_inputs),
    _of_pairs("CIoU", vj.ciou_loss, _ciou, box_inputs),
    _of_pairs("L1", vj.l1_loss, _l1, delta_inputs),
    _of_pairs("smooth L1", vj.smooth_l1_loss, _smooth_l1, delta_inputs, optax=_optax_huber),
    _of_pairs("balanced L1", vj.balanced_l1_loss, _balanced_l1, delta_inputs),
    Case(
        "distribution",
        distribution_inputs,
        _ours(vj.distribution_focal_loss),
        plain_distribution,
        torch_distribution,
        rows_of=200_000,
    ),
    Case("dice", dice_inputs, _ours(vj.dice_loss_with_logits), plain_dice, torch_dice),
)


# ---- torch, in processes of its own: beside jax's threads it is several times slower


class Torch:
    """torch's contenders for one case after the other, eager and compiled.

    In some processes its log1p takes seven times as long as in others, from start to end, for a
    reason not found. So several run the same, and the fastest counts.
    """

    NAMES = ("torch", "torch.compile")

    def __init__(self, on_gpu: bool = False, processes: int = 4) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes = []
        for _ in range(processes):
            ours, theirs = context.Pipe()
            context.Process(target=_serve_torch, args=(theirs, on_gpu), daemon=True).start()
            self._pipes.append(ours)
        (self.version, *_) = [pipe.recv() for pipe in self._pipes]

    def prepare(self, case: Case, inputs: tuple) -> None:
        """Compiles the contenders of a case for these inputs."""
        self._ask("prepare", case.name, inputs)

    def result(self, name: str, kind: str) -> Any:
        """What a contender computes, as NumPy arrays."""
        return self._ask("result", name, kind)[0]

    def seconds(self, name: str, kind: str) -> list[float]:
        """How long one call takes in each process."""
        return self._ask("seconds", name, kind)

    def _ask(self, *question: Any) -> list:
        answers = []
        for pipe in self._pipes:
            pipe.send(question)
            answers.append(pipe.recv())
            if isinstance(answers[-1], Exception):
                raise answers[-1]
        return answers


def seconds_of_one(call: Callable[[], Any]) -> float:
    """How long a call takes once it has its caches and threads to itself.

    A contender's threads wait for more work, spinning, for some 20 ms after it; and those of the
    next, woken on one core, may take 5 ms to spread.
    """
    time.sleep(0.03)
    warm = time.perf_counter() + 0.01
    while True:
        started = time.perf_counter()
        call()
        if started > warm:
            return time.perf_counter() - started


def _serve_torch(pipe, on_gpu):
    import torch

    pipe.send(torch.__version__)
    calls: dict = {}
    while True:
        try:
            task, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if task == "prepare":
                name, inputs = arguments
                (case,) = (case for case in CASES if case.name == name)
                calls = _torch_calls(torch, case, inputs, "cuda" if on_gpu else "cpu")
                answer = None
            elif task == "seconds":
                answer = seconds_of_one(calls[tuple(arguments)])
            else:
                result = calls[tuple(arguments)]()
                parts = result if isinstance(result, tuple) else (result,)
                arrays = tuple(part.detach().cpu().numpy() for part in parts)
                answer = arrays if isinstance(result, tuple) else arrays[0]
        except Exception as error:
            answer = RuntimeError(f"torch: {error}")
        pipe.send(answer)


def _torch_calls(torch, case, inputs, device):
    pred, *rest = (torch.from_numpy(x).to(device) for x in inputs)
    wanting = pred.clone().requires_grad_()

    def formula(pred, *rest):
        return case.torch(torch, pred, *rest)

    def finished(result):
        if device == "cuda":
            torch.cuda.synchronize()
        return result

    torch._dynamo.reset()
    calls = {}
    for name, function in {"torch": formula, "torch.compile": torch.compile(formula)}.items():

        def value(function=function):
            with torch.no_grad():
                return finished(function(pred, *rest))

        def both(function=function):
            result = function(wanting, *rest)
            return finished((result, *torch.autograd.grad(result, wanting)))

        calls[name, "value"], calls[name, "value+grad"] = value, both
    return calls
