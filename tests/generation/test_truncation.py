"""Truncation of latents, and batch-norm statistics at the time of sampling."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import steps, trajectory
from trainer.errors import ExitCode
from trainer.generation.sampler import truncated
from trainer.models import norms


def test_truncated_latents_have_the_truncated_distribution():
    latents = tf.random.stateless_normal([100_000], [1, 2])
    for limit in (0.3, 1.0, 2.5):
        values = truncated(latents, limit).numpy()
        assert np.abs(values).max() <= limit
        assert np.diff(values[np.argsort(latents)]).min() > -1e-5  # the order is kept
        # The variance of N(0, 1) truncated to [-limit, limit].
        density = math.exp(-(limit**2) / 2) / math.sqrt(2 * math.pi)
        variance = 1 - 2 * limit * density / math.erf(limit / math.sqrt(2))
        assert values.var() == pytest.approx(variance, rel=0.02)
    np.testing.assert_allclose(truncated(latents, 9.0), latents, atol=2e-3)


def test_generate_truncates(tiny, run, trainer, tmp_path):
    config = tiny(recipe="mlp", length=steps(1))
    run(config)

    def draw(*flags):
        out = tmp_path / "drawn.npz"
        answer = trainer(
            "generate", f"--run_dir={config.run_dir}", "--devices=cpu", "--num=50", f"--out={out}",
            *flags,
        )  # fmt: skip
        assert answer.returncode == 0, answer.stderr
        return np.load(out)["images"].astype(float)

    whole, narrow = draw(), draw("--truncation=0.1")
    assert narrow.std(0).mean() < 0.3 * whole.std(0).mean()
    for flag in ("--truncation=0", "--truncation=nan"):
        answer = trainer("generate", f"--run_dir={config.run_dir}", flag)
        assert (answer.returncode, answer.stderr.count("\n")) == (ExitCode.USAGE, 1)
        assert f"error: {flag} must be a number above 0." in answer.stderr


def test_latents_that_are_not_normal_are_not_truncated(tiny, run, trainer):
    config = tiny(recipe="mlp", length=steps(1), latent_distribution="uniform")
    run(config)
    answer = trainer("generate", f"--run_dir={config.run_dir}", "--truncation=0.5")
    assert answer.returncode == ExitCode.USAGE
    assert "This run has --latent_distribution=uniform" in answer.stderr


def staleness(generator):
    """Returns how far the stored statistics are from those of the images that are drawn.

    Returns:
      The largest difference of a mean, in standard deviations, and of a logarithm of a variance.
    """
    layers = [layer for layer in generator.layers if isinstance(layer, norms.BatchNorm)]
    inputs = keras.Model(generator.inputs, [layer.input for layer in layers])
    latents = tf.random.stateless_normal([512, generator.inputs[0].shape[1]], [5, 6])
    means, variances = [], []
    for layer, values in zip(layers, inputs([latents, tf.range(512) % 10]), strict=True):
        mean, variance = tf.nn.moments(values, [0, 1, 2])
        scale = tf.sqrt(variance + layer.epsilon)
        means.append(tf.reduce_max(tf.abs(mean - layer.moving_mean) / scale))
        ratios = (layer.moving_variance + layer.epsilon) / (variance + layer.epsilon)
        variances.append(tf.reduce_max(tf.abs(tf.math.log(ratios))))
    return float(max(means)), float(max(variances))


def test_batch_norm_statistics_are_those_of_the_images_drawn(tiny):
    config = tiny(
        recipe="sngan", conditional=True, image_size=16, batch_size=32, d_steps=1,
        ema_half_life_kimg=0.2,
    )  # fmt: skip
    _, state = trajectory(config, 60)
    generator = state.sampling_generator
    assert generator is state.ema_generator
    mean, variance = staleness(generator)
    assert mean < 0.15
    assert variance < 0.15
    # Statistics of an earlier step, as without their average, are found to be stale.
    for layer in generator.layers:
        if isinstance(layer, norms.BatchNorm):
            layer.moving_mean.assign(tf.zeros_like(layer.moving_mean))
            layer.moving_variance.assign(tf.ones_like(layer.moving_variance))
    mean, variance = staleness(generator)
    assert mean > 0.5 or variance > 0.5
