"""Augmentation: gradients and draws by position; test_conformance.py has the published results."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config import augment_policy
from trainer.errors import UsageError
from trainer.models import ada, affine, augmentation
from trainer.models.randomness import Draws

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden/augment.npz"))


def images(name: str) -> np.ndarray:
    """Returns golden images as [N, H, W, C]."""
    return GOLDEN[name].transpose(0, 2, 3, 1)


def assert_near(actual, expected, bound=1e-5):
    """Asserts that arrays differ by at most `bound` times the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound * np.abs(expected).max())


def test_the_identity_changes_nothing():
    batch = tf.constant(images("ada/in"))
    identity = tf.constant([[[1.0, 0, 0], [0, 1.0, 0]]] * 4)
    assert_near(affine.transform(batch, identity), batch, 2e-6)


@pytest.mark.parametrize(
    ("augment", "policy"),
    [("diffaugment", "color,translation,cutout"), ("ada", "blit,geometry,color,cutout")],
)
def test_augmentation_depends_on_the_position_only_and_has_exact_second_derivatives(
    augment, policy
):
    config = recipes.resolve(dict(augment=augment, augment_policy=policy))
    batch = tf.constant(np.concatenate([images("ada/in"), images("diffaugment/in")])[:, ::2, ::2])
    draws = Draws(seed=3, step=5, batch_size=4, rows=4)
    whole = augmentation.augment(config, batch, draws, 0.8)
    for row in range(4):  # a replica or a micro-batch of one row of two concatenated batches
        part = tf.stack([batch[row], batch[4 + row]])
        alone = augmentation.augment(config, part, draws.part(row, 1), 0.8)
        np.testing.assert_allclose(alone[0], whole[row], atol=1e-5)
        np.testing.assert_allclose(alone[1], whole[4 + row], atol=1e-5)
    other = augmentation.augment(config, batch, draws.within("g"), 0.8)
    assert np.abs(whole - other).max() > 0.1

    def penalty(images: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
        """Returns the squared gradient of a quadratic discriminator of augmented images."""
        with tf.GradientTape() as tape:
            tape.watch(images)
            seen = augmentation.augment(config, images, draws, 0.8)
            logits = tf.reduce_sum(weight * seen + 0.5 * tf.square(seen))
        return tf.reduce_sum(tf.square(tape.gradient(logits, images)))

    direction = tf.constant(np.random.default_rng(0).normal(size=batch.shape), tf.float32)
    for k in (0, 1):  # with respect to the images and to the weights
        at = [batch, tf.ones_like(batch)]
        with tf.GradientTape() as tape:
            tape.watch(at[k])
            total = penalty(*at)
        slope = float(tf.reduce_sum(tape.gradient(total, at[k]) * direction))
        up, down = ([*at[:k], at[k] + h * direction, *at[k + 1 :]] for h in (0.05, -0.05))
        # The penalty is quadratic in both, so the difference quotient is exact.
        assert slope == pytest.approx(float(penalty(*up) - penalty(*down)) / 0.1, rel=2e-3)


def test_images_from_0_to_1_are_augmented_alike():
    config = recipes.resolve(dict(augment="ada", augment_policy="blit,geometry,color"))
    draws = Draws(seed=3, step=5, batch_size=4, rows=4)
    expected = augmentation.augment(config, images("ada/in"), draws, 1.0)
    actual = augmentation.augment(
        config.replace(image_range="sigmoid"), 0.5 + 0.5 * images("ada/in"), draws, 1.0
    )
    np.testing.assert_allclose(actual, 0.5 + 0.5 * expected, atol=1e-5)


def test_strength_zero_changes_nothing_and_probabilities_are_met():
    batch = tf.constant(np.tile(images("ada/in")[:1, :8, :8], [2000, 1, 1, 1]))
    draws = Draws(seed=0, step=0, batch_size=2000)
    for augment, policy in augment_policy.DEFAULT_POLICIES.items():
        if augment != "none":
            config = recipes.resolve(dict(augment=augment, augment_policy=policy))
            np.testing.assert_allclose(
                augmentation.augment(config, batch[:4], draws.part(0, 4), 0.0), batch[:4], atol=3e-6
            )
    factors = {"lumaflip": 0.5, "rotate": 1.0}
    values = ada.values_of(
        tf.random.stateless_uniform([2000, len(ada.GATES)], [1, 2]),
        tf.fill([2000, len(ada.UNIFORM)], 0.9),
        tf.ones([2000, len(ada.NORMAL)]),
        factors,
        0.6,
    )
    assert np.mean(values["lumaflip"] > 0) == pytest.approx(0.3, abs=0.04)
    before, after = (values[f"rotate_{k}"] != 0.5 for k in ("before", "after"))
    assert np.mean(before | after) == pytest.approx(0.6, abs=0.04)
    assert not np.any(values["xflip"])
    assert not np.any(values["scale"])


@pytest.mark.parametrize(
    ("augment", "policy", "message"),
    [
        (
            "ada",
            "blit,xflp",
            "--augment_policy=blit,xflp: 'xflp' is not known. Did you mean xflip?",
        ),
        ("ada", "blit:2", "--augment_policy=blit:2 is not valid at 'blit:2'. Write NAME or NAME:F"),
        ("ada", "blit:x", "is not valid at 'blit:x'"),
        ("ada", "blit:0", "--augment_policy=blit:0 has no transformation. Use --augment=none"),
        ("none", "blit", "--augment_policy='blit' needs an augmentation. Add --augment="),
    ],
)
def test_policies_that_are_wrong_are_named(augment, policy, message):
    with pytest.raises(UsageError) as error:
        augment_policy.parse(augment, policy)
    assert message in str(error.value)
    assert augment_policy.parse("ada", "blit, xflip:0") == {"rotate90": 1.0, "xint": 1.0}
