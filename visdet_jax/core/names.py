"""Suggestions for names that were misspelt."""

import difflib
from collections.abc import Iterable


def misspelt(name: str, names: Iterable[str]) -> str | None:
    """Which of `names` is meant by one that differs in a letter or two; None for any other name."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.85)
    return close[0] if close and close[0] != name else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The sentence " Did you mean 'eps'?" for the closest of `names`, or "" if none is close."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=1)
    if not close:
        # Compare without case and underscores too: "focal_loss" means "FocalLoss".
        flat = {other.lower().replace("_", ""): other for other in known}
        flat_name = name.lower().replace("_", "")
        close = [flat[key] for key in difflib.get_close_matches(flat_name, list(flat), n=1)]
    return f" Did you mean {close[0]!r}?" if close else ""
