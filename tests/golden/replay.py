"""Every case of a golden file is replayed, and how it was answered is counted."""

from collections import Counter

import jax
import pytest

from golden.read_golden import read

EVERY = 80  # Without `--all` one case in so many is replayed, and of few files in float32.


def files_and_precisions(files, few):
    """What to parametrize with: each file in both precisions."""
    return [
        pytest.param(
            path,
            precision,
            id=f"{path.stem}-{precision}",
            marks=pytest.mark.long if precision == "float32" and path.stem not in few else (),
        )
        for path in files
        for precision in ("float64", "float32")
    ]


def replay_file(path, precision, check, request):
    """Checks the cases with float64 on or off, and records how many were answered in which way."""
    cases = read(path) if request.config.getoption("--all") else read(path)[::EVERY]
    counts = Counter()
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", precision == "float64")
    try:
        for raw, expected in cases:
            counts[check(raw, expected, precision)] += 1
    finally:
        jax.config.update("jax_enable_x64", before)
    request.node.user_properties.append(("golden replay", (precision, dict(counts))))
    assert counts.total() > 0
