"""Penalties on the discriminator's gradient: closed forms, number formats, steps that have them."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import assert_same_run, steps, trajectory, weights
from trainer.config import compatibility
from trainer.models import augmentation
from trainer.models.randomness import Draws
from trainer.reporting import lines
from trainer.training import penalties, step
from trainer.training.forward import Forward
from trainer.training.gradients import MicroBatch
from trainer.training.updates import TracedNetwork, Updater

PAIRS = dict(recipe="mlp", loss="relativistic", update_rule="separate")
SIDE = 4
LIKE = dict(rtol=2e-3, atol=2e-3)


def linear():
    """Returns D(x) = <w, x>, whose gradient is w."""
    return keras.layers.Dense(1, use_bias=False)


class Quadratic(keras.layers.Layer):
    """D(x) = a / 2 |x|^2, whose gradient is a x."""

    def build(self, _):
        self.factor = self.add_weight(shape=(), initializer="ones")

    def call(self, inputs):
        return 0.5 * self.factor * tf.reduce_sum(tf.square(inputs), 1, keepdims=True)


class Tiny(keras.layers.Layer):
    """D(x) = v w <1, x>, whose gradient v w is too small for float16 while v and w are not."""

    def build(self, _):
        self.factors = self.add_weight(shape=(2,), initializer=keras.initializers.Constant(2e-4))

    def call(self, inputs):
        total = tf.reduce_sum(inputs, 1, keepdims=True)
        return total * self.factors[0] * self.factors[1]


def d_gradients(config, layer, images, fakes, dtype="float32", seen=0):
    """Returns D's gradients, without those of the adversarial loss, and D's weights."""
    keras.config.set_dtype_policy(dtype)
    inputs = keras.Input([SIDE, SIDE, 1])
    outputs = layer()(keras.layers.Flatten()(inputs))
    network = keras.Model(inputs, keras.layers.Reshape([], dtype="float32")(outputs))
    updater = Updater.create(network, types.SimpleNamespace(build=lambda _: None, slots=lambda: ()))
    draws = Draws(0, 0, config.batch_size, images=seen)

    def gradients(config):
        updater.weights.load()
        d = TracedNetwork(updater)
        batch = MicroBatch(config, None, d, Forward(config, None, d, None), 1)
        labels = tf.zeros([len(images)], tf.int32)
        return batch.discriminator(images, labels, fakes, draws=draws)[0]

    none = config.replace(gradient_penalty=0.0, r1=0.0, r2=0.0)
    whole, adversarial = (tf.function(gradients)(each) for each in (config, none))
    keras.config.set_dtype_policy("float32")
    parts = updater.weights.parts([a - b for a, b in zip(whole, adversarial, strict=True)])
    return [part.numpy() for part in parts], network.get_weights()


@pytest.fixture
def batch():
    images = tf.constant(np.arange(8 * SIDE * SIDE).reshape(8, SIDE, SIDE, 1) % 256, tf.uint8)
    return images, tf.random.stateless_uniform([8, SIDE, SIDE, 1], [0, 0], -1, 1)


@pytest.mark.parametrize("rule", ["separate", "joint"])
def test_penalties_of_a_linear_and_a_quadratic_discriminator(tiny, batch, rule):
    reals, fakes = batch[0].numpy() / 127.5 - 1.0, batch[1].numpy()
    given = {**PAIRS, "update_rule": rule}
    for settings, at_reals, at_fakes in ((dict(r1=3.0), 3, 0), (dict(r1=3.0, r2=5.0), 3, 5)):
        # gamma / 2 |w|^2 has the gradient gamma w.
        (gradient,), (w,) = d_gradients(tiny(**given, **settings), linear, *batch)
        np.testing.assert_allclose(gradient, (at_reals + at_fakes) * w, rtol=1e-4, atol=1e-6)
        # gamma / 2 |a x|^2 has the gradient gamma a |x|^2, on average over the images.
        (gradient,), (a,) = d_gradients(tiny(**given, **settings), Quadratic, *batch)
        squares = [np.mean(np.sum(x**2, (1, 2, 3))) for x in (reals, fakes)]
        expected = at_reals * a * squares[0] + at_fakes * a * squares[1]
        np.testing.assert_allclose(gradient, expected, rtol=1e-4)
    # (|w| - 1)^2 has the gradient 2 (|w| - 1) w / |w|.
    (gradient,), (w,) = d_gradients(tiny(**given, gradient_penalty=3.0), linear, *batch)
    length = np.linalg.norm(w)
    np.testing.assert_allclose(gradient, 6 * (length - 1) * w / length, rtol=1e-4, atol=1e-6)


def test_weights_follow_schedules_and_weigh_more_if_they_are_rare(tiny, batch):
    config = tiny(**PAIRS, r1="linear 1 3 over 1 kimg", penalty_every=4)
    for seen, weight in ((0, 1.0), (8, 0.0), (512, 2.024), (2048, 3.0)):
        (gradient,), (w,) = d_gradients(config, linear, *batch, seen=seen)
        np.testing.assert_allclose(gradient, 4 * weight * w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_penalties_in_half_precision_do_not_underflow(tiny, batch, dtype):
    config = tiny(**PAIRS, r1=3e6, r2=5e6)  # outweighs the adversarial loss
    (full,), _ = d_gradients(config, Tiny, *batch)
    (half,), _ = d_gradients(config, Tiny, *batch, dtype)
    np.testing.assert_allclose(full, 8e6 * 16 * 2e-4**3, rtol=1e-2)
    np.testing.assert_allclose(half, full, rtol=2e-2)


def test_gradients_are_those_of_the_images_before_augmentation(tiny, batch, monkeypatch):
    monkeypatch.setitem(augmentation.AUGMENT, "diffaugment", lambda images, *_: 3.0 * images)
    config = tiny(**PAIRS, augment="diffaugment", r1=1.0)
    (gradient,), (w,) = d_gradients(config, linear, *batch)
    np.testing.assert_allclose(gradient, 9.0 * w, rtol=1e-4, atol=1e-6)


def test_penalties_of_some_steps_are_in_those_steps_only(tiny):
    still = dict(**PAIRS, d_lr=0.0, g_lr=0.0)
    rare = trajectory(tiny(**still, r1=1.0, r2=1.0, penalty_every=3), 4)[0]
    always = trajectory(tiny(**still, r1=3.0, r2=3.0), 4)[0]
    never = trajectory(tiny(**still), 4)[0]
    common = slice(never.shape[1])
    np.testing.assert_allclose(rare[[0, 3], common], always[[0, 3], common], rtol=1e-5)
    np.testing.assert_allclose(rare[[1, 2], common], never[[1, 2]], rtol=1e-5)
    # The metrics have the penalties without their weights.
    names = step.metric_names(tiny(**still, r1=1.0, r2=1.0), "float32")
    shown = [names.index("r1"), names.index("r2")]
    np.testing.assert_allclose(3.0 * always[:, shown].sum(1), always[:, 0] - never[:, 0], rtol=1e-3)
    np.testing.assert_allclose(rare[[0, 3]][:, shown], 3.0 * always[[0, 3]][:, shown], rtol=1e-5)
    assert not rare[[1, 2]][:, shown].any()
    assert always[:, shown].min() > 1e-3


def test_replicas_and_micro_batches_have_the_penalties_of_one(tiny):
    config = tiny(**PAIRS, g_norm="none", r1=1.0, gradient_penalty=1.0, penalty_every=2)
    one, first = trajectory(config, 4)
    for other in (dict(devices="cpu:2"), dict(batch_per_replica=4)):
        two, second = trajectory(config.replace(**other), 4)
        np.testing.assert_allclose(two[:, :5], one[:, :5], **LIKE)
        np.testing.assert_allclose(weights(second.generator), weights(first.generator), **LIKE)


def test_resumed_run_with_pairs_and_rare_penalties_is_identical(tiny, run, tmp_path):
    given = dict(**PAIRS, r1="cosine 1 0.1 over 0.03 kimg", r2=1.0, penalty_every=2)
    given |= dict(sample_every=steps(3), log_every_steps=1, log_every_secs=1e9)
    run(tiny(**given, length=steps(5), run_dir=str(tmp_path / "whole")))
    for end in (3, 5):
        run(tiny(**given, length=steps(end), run_dir=str(tmp_path / "parts")))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_every_penalty_is_checked_against_other_settings_and_shown():
    names = {each.setting for each in penalties.PENALTIES}
    assert names == set(compatibility.PENALTIES)
    assert names <= set(lines.SCALARS)
