"""Suggestions for names that were misspelt."""

import pytest

from visdet_jax.core.names import did_you_mean

NAMES = ["FocalLoss", "GIoULoss", "SmoothL1Loss", "eps", "reduction"]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FocaLoss", "FocalLoss"),
        ("focal_loss", "FocalLoss"),
        ("focalloss", "FocalLoss"),
        ("giou", "GIoULoss"),
        ("SMOOTH_L1_LOSS", "SmoothL1Loss"),
        ("ep", "eps"),
        ("redcution", "reduction"),
        ("Zzz", None),
    ],
)
def test_did_you_mean(name, meant):
    expected = f" Did you mean {meant!r}?" if meant else ""
    assert did_you_mean(name, iter(NAMES)) == expected


def test_no_names_give_no_suggestion():
    assert did_you_mean("FocalLoss", []) == ""
