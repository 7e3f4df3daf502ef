"""Losses, compared with values that were calculated by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.models.objective import OBJECTIVES, verdicts

LOG3 = math.log(3.0)  # sigmoid(log 3) = 3/4


@pytest.mark.parametrize(
    ("name", "d_real", "d_fake", "g_fake"),
    [
        ("nonsaturating", -math.log(0.75), -math.log(0.25), -math.log(0.75)),
        ("hinge", 0.0, 1.0 + LOG3, -LOG3),
        ("least_squares", 0.5 * (LOG3 - 1) ** 2, 0.5 * (LOG3 + 1) ** 2, 0.5 * (LOG3 - 1) ** 2),
    ],
)
def test_losses_at_logit_log_3(name, d_real, d_fake, g_fake):
    logits = tf.constant([LOG3, LOG3])
    objective = OBJECTIVES[name]
    for loss, expected in (
        (objective.d_real, d_real),
        (objective.d_fake, d_fake),
        (objective.g_fake, g_fake),
    ):
        np.testing.assert_allclose(loss(logits), [expected] * 2, rtol=1e-6, atol=1e-7)


def test_hinge_loss_is_zero_beyond_the_margin():
    logits = tf.constant([-2.0, 0.0, 2.0])
    np.testing.assert_allclose(OBJECTIVES["hinge"].d_real(logits), [3.0, 1.0, 0.0])
    np.testing.assert_allclose(OBJECTIVES["hinge"].d_fake(logits), [0.0, 1.0, 3.0])


def test_relativistic_loss_depends_on_the_margin_of_pairs():
    reals, fakes = tf.constant([5.0 + LOG3, 2.0]), tf.constant([5.0, 2.0 + LOG3])
    objective = OBJECTIVES["relativistic"]
    right, wrong = -math.log(0.75), -math.log(0.25)
    np.testing.assert_allclose(objective.d_loss(reals, fakes), [right, wrong], rtol=1e-5)
    np.testing.assert_allclose(objective.g_loss(reals, fakes), [wrong, right], rtol=1e-5)
    margins = objective.margins(tf.stack([reals, fakes]))
    np.testing.assert_array_equal(verdicts(margins), [[1, -1], [-1, 1]])


def test_losses_of_sums_are_those_of_reals_and_of_fakes():
    reals, fakes = tf.constant([0.5, -2.0]), tf.constant([3.0, 0.25])
    for objective in OBJECTIVES.values():
        if not objective.on_pairs:
            expected = objective.d_real(reals) + objective.d_fake(fakes)
            np.testing.assert_array_equal(objective.d_loss(reals, fakes), expected)
            expected = objective.g_fake(fakes)
            np.testing.assert_array_equal(objective.g_loss(None, fakes), expected)


def test_losses_of_large_logits_are_finite():
    logits = tf.constant([-1e4, 1e4])
    for objective in OBJECTIVES.values():
        for loss in (objective.d_loss, objective.g_loss):
            assert np.isfinite(loss(logits, -logits)).all()


def test_a_positive_logit_means_real():
    np.testing.assert_array_equal(verdicts(tf.constant([-1.0, 0.5, 0.0])), [-1.0, 1.0, 0.0])
