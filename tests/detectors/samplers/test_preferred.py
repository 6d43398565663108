"""A draw that prefers some candidates."""

import jax
import numpy as np
import pytest

from detectors.samplers.sampler_cases import assert_uniform
from programs import compiled
from visdet_jax.detectors.samplers.sampler import pick_at_random


@pytest.mark.parametrize("count", [0, 2, 4, 7, 10, 15])
def test_the_preferred_are_drawn_first_and_all_others_are_equally_likely(count):
    number = np.arange(14)
    among, preferred = number < 10, number % 3 == 0  # 4 of the 10 are preferred, and 12 is none.
    keys = jax.random.split(jax.random.key(0), 3000)
    drawn = np.asarray(jax.vmap(lambda key: pick_at_random(key, among, count, 15, preferred))(keys))
    assert (drawn.sum(1) == min(count, 10)).all()
    assert not drawn[:, ~among].any()
    first, rest = among & preferred, among & ~preferred
    assert (drawn[:, first].sum(1) == min(count, 4)).all()
    for part in (first, rest):
        if 0 < drawn[0, part].sum() < part.sum():
            assert_uniform(drawn & part, part)


def test_the_largest_are_searched_for_and_not_all_are_sorted():
    among = np.ones(5000, bool)
    program = compiled(
        lambda key, among: pick_at_random(key, among, 256, 256, ~among), jax.random.key(0), among
    ).as_text()
    assert 'custom_call_target="TopK"' in program
    assert " sort(" not in program
