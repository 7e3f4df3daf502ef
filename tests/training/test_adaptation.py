"""The strength of the augmentation follows the signs of the discriminator on reals."""

import numpy as np
import pytest

from trainer.training.adaptation import EVERY, AdaptiveStrength, Rule

RULE = Rule(target=0.6, speed_kimg=500.0, batch_size=64, reals_per_step=128)


def strengths(shares, rule=RULE, first=0.0) -> list[float]:
    """Returns the strength after each step."""
    state = AdaptiveStrength.create(rule)
    state.value.assign(first)
    found = []
    for step, share in enumerate(shares):
        state.observe(np.float32(share), np.int64(step))
        found.append(float(state.value.numpy()))
    return found


def test_strength_changes_by_the_images_of_four_steps_as_published():
    # p += sign(mean sign - 0.6) * 64 * 4 / 500,000: the mean sign is 2 * share - 1.
    change = 64 * 4 / 500_000
    rising = strengths([0.7, 0.9, 0.9, 0.9] * 2)  # means of 0.85 > 0.8
    np.testing.assert_allclose(rising, [0.0] * 3 + [change] * 4 + [2 * change], rtol=1e-6)
    falling = strengths([0.7] * 4, first=0.5)
    assert falling[-1] == pytest.approx(0.5 - change, rel=1e-6)
    half_as_fast = Rule(target=0.6, speed_kimg=1000.0, batch_size=64, reals_per_step=128)
    assert strengths([0.9] * 4, half_as_fast)[-1] == pytest.approx(change / 2, rel=1e-6)


def test_strength_stays_at_the_target_and_between_0_and_1():
    even = Rule(target=0.5, speed_kimg=1.0, batch_size=100, reals_per_step=8)
    assert strengths([0.5, 1.0] * (EVERY // 2), even, 0.5)[-1] == 0.5  # mean share 0.75
    assert strengths([0.0] * EVERY, even, 0.1)[-1] == 0.0
    assert strengths([1.0] * EVERY, even, 0.9)[-1] == 1.0


def test_rounding_of_the_shares_has_no_effect():
    even = Rule(target=0.5, speed_kimg=500.0, batch_size=64, reals_per_step=96)
    for error in (-1e-6, 1e-6):
        assert strengths([0.75 + error] * EVERY, even, 0.25)[-1] == 0.25
