"""Rotated boxes as covariance matrices in NumPy, and what is asked of every loss of them.

`values` is a function (pred, target) -> losses (N,) whose eps is too small to count, and `formula`
the loss of one pair of boxes by its definition.
"""

import math

import jax
import numpy as np


def rotated_pairs(seed=0, n=16):
    """Boxes (n, 5) in float64, and boxes near them."""
    rng = np.random.default_rng(seed)
    pred = np.concatenate(
        [rng.uniform(0, 50, (n, 2)), rng.uniform(4, 40, (n, 2)), rng.uniform(-2, 2, (n, 1))], 1
    )
    return pred, pred + rng.normal(size=pred.shape) * [4, 4, 2, 2, 0.3]


def covariance(box, divisor=4.0):
    """The covariance matrix of a box whose variances are its squared sides by `divisor`."""
    c, s = math.cos(box[4]), math.sin(box[4])
    rotation = np.array([[c, -s], [s, c]])
    return rotation @ np.diag(box[2:4] ** 2 / divisor) @ rotation.T


def covariances(pred, target, divisor=4.0):
    """P, T and the offset of the centres."""
    return covariance(pred, divisor), covariance(target, divisor), target[:2] - pred[:2]


def kl(p, t, d):
    """KL(T ‖ P)."""
    inverse = np.linalg.inv(p)
    logs = math.log(np.linalg.det(t) / np.linalg.det(p))
    return (d @ inverse @ d + np.trace(inverse @ t) - 2 - logs) / 2


def bhattacharyya(p, t, d):
    middle = (p + t) / 2
    dets = np.linalg.det(middle) / math.sqrt(np.linalg.det(p) * np.linalg.det(t))
    return d @ np.linalg.inv(middle) @ d / 8 + math.log(dets) / 2


def squared_wasserstein(p, t):
    """Of Gaussians at one place."""
    dets = np.linalg.det(p) * np.linalg.det(t)
    # (tr √M)² = tr M + 2 √det M of 2 × 2 matrices.
    return np.trace(p) + np.trace(t) - 2 * math.sqrt(np.trace(p @ t) + 2 * math.sqrt(dets))


def check_formula(values, formula):
    """In float64 the losses are those of the definition."""
    pred, target = rotated_pairs()
    expected = [formula(*pair) for pair in zip(pred, target, strict=True)]
    np.testing.assert_allclose(values(pred, target), expected, rtol=1e-9)


def check_invariances(values):
    """Half a turn, the other sides, another scale, and a motion of both change nothing."""
    pred, target = rotated_pairs()
    value = np.asarray(values(pred, target))
    assert (value > 1e-3).all()

    def check_unchanged(pred, target):
        np.testing.assert_allclose(values(pred, target), value, rtol=1e-9)

    check_unchanged(np.add(pred, [0, 0, 0, 0, math.pi]), target)
    check_unchanged(pred, target[:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, -math.pi / 2])
    check_unchanged(*(3 * boxes * [1, 1, 1, 1, 1 / 3] for boxes in (pred, target)))
    rotation = np.eye(5)
    rotation[:2, :2] = [[math.cos(1), math.sin(1)], [-math.sin(1), math.cos(1)]]
    check_unchanged(*(boxes @ rotation + [7, -5, 0, 0, 1] for boxes in (pred, target)))


def check_digits_of_needles(values, formula, apart):
    """In float32 boxes 1000 times as long as wide keep their digits, nearly equal ones too.

    Determinants of their covariance matrices have none left.
    """
    rng = np.random.default_rng(0)
    pred = np.float32([[0, 0, 4000, 4, angle] for angle in np.linspace(0, 3, 16)])
    target = (pred + apart * rng.normal(size=pred.shape) * [1, 1, 100, 1, 1e-3]).astype(np.float32)
    expected = [formula(*pair) for pair in np.float64([pred, target]).transpose(1, 0, 2)]
    np.testing.assert_allclose(values(pred, target), expected, rtol=2e-4)


def check_equal_boxes(loss, least=None):
    """Equal boxes cost `least` (None: less than 1e-3), and have no gradient."""
    boxes = rotated_pairs()[0].astype(np.float32)
    value, gradient = jax.value_and_grad(lambda pred: loss(pred, boxes))(boxes)
    assert value < 1e-3 if least is None else abs(value / least - 1) < 1e-4
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
