"""Every case of a golden file answered, and how."""

from collections import Counter

import jax

from golden.read_golden import read


def replay_file(path, precision, check, record_property):
    """Checks every case with float64 on or off, and records how many were answered in which way."""
    counts = Counter()
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", precision == "float64")
    try:
        for raw, expected in read(path):
            counts[check(raw, expected, precision)] += 1
    finally:
        jax.config.update("jax_enable_x64", before)
    record_property("golden replay", (precision, dict(counts)))
    assert counts.total() > 0
