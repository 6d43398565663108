"""The sampler that samples nothing."""

import pytest

from visdet_jax.detectors import TASK_UTILS, PseudoSampler


def test_it_is_the_sampler_of_configs_and_has_no_keys():
    assert TASK_UTILS.build({"type": "mmdet.PseudoSampler"}) == PseudoSampler()
    with pytest.raises(ValueError, match="PseudoSampler has no key 'num'"):
        TASK_UTILS.build({"type": "PseudoSampler", "num": 256})
