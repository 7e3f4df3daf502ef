"""Losses, compared with values that were calculated by hand."""

import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.models.objective import OBJECTIVES, share_real

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


def test_losses_of_large_logits_are_finite():
    for objective in OBJECTIVES.values():
        for loss in (objective.d_real, objective.d_fake, objective.g_fake):
            assert np.isfinite(loss(tf.constant([-1e4, 1e4]))).all()


def test_a_positive_logit_means_real():
    np.testing.assert_array_equal(share_real(tf.constant([-1.0, 0.5])), [0.0, 1.0])
