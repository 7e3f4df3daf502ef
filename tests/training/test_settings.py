"""Training settings: regularization, noise, schedules, gradient accumulation and float16."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import TINY, trajectory, weights
from trainer import recipes
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.errors import UsageError
from trainer.machine import batch, replicas
from trainer.models import kernels, layers, norms
from trainer.models.objective import OBJECTIVES
from trainer.models.randomness import Draws
from trainer.recipes.networks import build_networks
from trainer.training import optimizers, state, step
from trainer.training.updates import TracedNetwork

BASE = dict(recipe="cgan", d_norm="none", update_rule="separate")


@pytest.mark.parametrize(
    "setting",
    [
        dict(loss="minimax"),
        dict(loss="wasserstein", d_clip=0.01),
        dict(loss="relativistic"),
        dict(gradient_penalty=10.0),
        dict(smooth_real=0.1),
        dict(smooth_fake=0.1),
        dict(flip_labels=0.3),
        dict(d_input_noise=0.5),
        dict(d_layer_noise=0.5),
        dict(d_norm="layer"),
        dict(d_norm="instance"),
        dict(d_weights="weight"),
        dict(g_norm="none", g_weights="spectral"),
        dict(d_activation="elu"),
        dict(d_slope=0.4),
        dict(latent_distribution="truncated_normal"),
        dict(initializer="he"),
        dict(optimizer="sgd"),
    ],
    ids=str,
)
def test_each_setting_changes_the_metrics_and_keeps_them_finite(tiny, baseline, setting):
    metrics, variables = trajectory(tiny(**{**BASE, **setting}), 2)
    assert np.isfinite(metrics).all()
    assert np.isfinite(weights(variables.generator)).all()
    common = metrics[:, : baseline.shape[1]]  # penalties are metrics of their own
    assert np.abs(common - baseline).max() > 1e-6


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    given = {**TINY, "run_dir": str(tmp_path_factory.mktemp("baseline"))}
    return trajectory(recipes.resolve({**given, **BASE}), 2)[0]


def test_smoothed_labels_give_the_cross_entropy_with_the_target():
    logits = tf.constant([-1.0, 0.3, 2.0])
    objective = OBJECTIVES["nonsaturating"].with_targets(0.9, 0.2)
    for loss, target in ((objective.d_real, 0.9), (objective.d_fake, 0.2)):
        labels = tf.fill([3], target)
        expected = tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)
        np.testing.assert_allclose(loss(logits), expected, rtol=1e-5)


def test_gradient_penalty_moves_the_gradient_norm_towards_one(tiny):
    """Checks the norm of D's gradient with respect to real images after training."""
    norms_by_weight = {}
    for weight in (0.0, 100.0):
        config = tiny(
            recipe="mlp-small", update_rule="separate", gradient_penalty=weight, d_lr=1e-2
        )
        variables = trajectory(config, 40)[1]
        images = tf.constant(sources.load(config).images[:8] / 127.5 - 1.0, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(images)
            verdict = tf.reduce_sum(variables.discriminator(images))
        gradient = tape.gradient(verdict, images)
        norms_by_weight[weight] = float(
            tf.reduce_mean(tf.sqrt(tf.reduce_sum(gradient**2, [1, 2, 3])))
        )
    assert abs(norms_by_weight[100.0] - 1.0) < abs(norms_by_weight[0.0] - 1.0)
    assert norms_by_weight[100.0] == pytest.approx(1.0, abs=0.5)


def test_clipping_bounds_only_the_discriminators_weights(tiny):
    variables = trajectory(tiny(recipe="mlp-small", loss="wasserstein", d_clip=0.01), 2)[1]
    assert np.abs(weights(variables.discriminator)).max() <= 0.01
    assert np.abs(weights(variables.generator)).max() > 0.01


def test_noise_decays_with_the_images_shown(tiny):
    """Checks that noise which decays to zero within a batch affects only the first step."""
    given = dict(recipe="mlp-small", d_lr=0.0, g_lr=0.0)
    none = trajectory(tiny(**given), 3)[0]
    for noise in (dict(d_input_noise=0.5), dict(d_layer_noise=0.5)):
        decaying = trajectory(tiny(**given, **noise, noise_decay_kimg=0.008), 3)[0]
        constant = trajectory(tiny(**given, **noise), 3)[0]
        assert np.abs(decaying[0] - none[0]).max() > 1e-4
        np.testing.assert_allclose(decaying[1:], none[1:], rtol=1e-5, atol=1e-6)
        assert np.abs(constant[1:] - none[1:]).max() > 1e-4


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", 1.0), ("linear", 0.1 + 0.9 * 0.75), ("cosine", 0.1 + 0.9 * 0.8535534)],
)
def test_learning_rate_schedules_at_a_quarter_and_after_the_decay(schedule, expected):
    decay = {} if schedule == "constant" else dict(lr_decay_kimg=4.0, lr_end=0.1)
    config = recipes.resolve(dict(g_lr=2.0, g_lr_schedule=schedule, **decay))
    seen = tf.Variable(1000, dtype=tf.int64)
    optimizer = optimizers.make(config, "g", seen)
    assert float(optimizer.learning_rate) == pytest.approx(2.0 * expected)
    seen.assign(9000)
    end = 2.0 if schedule == "constant" else 0.2
    assert float(optimizer.learning_rate) == pytest.approx(end)


def test_weight_norm_ignores_the_kernels_length():
    layer = kernels.NormalizedConv2DTranspose(3, 3, norm="weight", strides=2)
    images = tf.random.stateless_normal([1, 4, 4, 2], [0, 0])
    before = layer(images)
    assert before.shape == (1, 8, 8, 3)
    np.testing.assert_allclose(layer.normalized_kernel(), layer.kernel, rtol=1e-5, atol=1e-6)
    layer.kernel.assign(5.0 * layer.kernel)
    np.testing.assert_allclose(layer(images), before, rtol=1e-4, atol=1e-5)


def test_instance_norm_normalizes_each_image():
    config = recipes.resolve({})
    inputs = tf.keras.Input([4, 4, 2])
    model = tf.keras.Model(inputs, norms.norm(inputs, config, "instance"))
    out = model(3.0 + 2.0 * tf.random.stateless_normal([5, 4, 4, 2], [0, 0])).numpy()
    np.testing.assert_allclose(out.mean((1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(out.std((1, 2)), 1.0, atol=1e-2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(recipe="cgan", gradient_penalty=10.0), "which --d_norm=batch mixes"),
        (dict(recipe="mlp-small", gradient_penalty=10.0), "needs reals and fakes in one update"),
        (dict(recipe="cgan", r1=10.0), "--r1 needs the gradient of single images"),
        (dict(recipe="mlp-small", loss="relativistic"), "--loss=relativistic compares reals with"),
        (dict(loss="relativistic", flip_labels=0.1), "--flip_labels=0.1 changes the targets of"),
        (dict(loss="relativistic", augment="ada"), "mean nothing with --loss=relativistic"),
        (dict(g_lr_schedule="cosine"), "--g_lr_schedule=cosine needs --lr_decay_kimg"),
        (dict(d_lr_schedule="inverse_time"), "needs --d_lr_decay_per_kimg"),
        (dict(flip_labels=0.6), "--flip_labels=0.6 is too large"),
    ],
)
def test_inconsistent_settings_are_usage_errors(given, message):
    with pytest.raises(UsageError, match=message):
        recipes.resolve(given)


@pytest.mark.parametrize(
    "given",
    [
        dict(recipe="dcgan-kstep", conditional=True),
        dict(recipe="dcgan", g_norm="layer", g_conditioning="concat"),  # spectral norm, EMA
        dict(recipe="mlp", g_norm="none"),  # simultaneous
        dict(recipe="mlp-small", g_norm="none"),  # sequential
    ],
    ids=str,
)
def test_gradient_accumulation_equals_one_large_batch(tiny, given):
    expected, first = trajectory(tiny(**given))
    accumulated, second = trajectory(tiny(**given, batch_per_replica=2))
    np.testing.assert_allclose(accumulated, expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(weights(second.generator), weights(first.generator), atol=2e-3)


def test_gradient_accumulation_is_logged_at_the_start(tiny, run):
    output = run(tiny(recipe="mlp", batch_per_replica=2, length=Duration(1, "steps")))
    assert "Accumulating gradients over 4 micro-batches of 2 images per device" in output


def test_batch_per_replica_must_divide_the_replicas_batch(tiny):
    with pytest.raises(UsageError, match="--batch_per_replica=3 does not divide"):
        batch.check_batch_size(tiny(batch_per_replica=3), 1)


def test_float16_trains_and_reports_its_loss_scales(tiny):
    metrics, variables = trajectory(tiny(recipe="dcgan", precision="float16", devices="cpu:2"))
    assert np.isfinite(metrics).all()
    np.testing.assert_array_equal(metrics[:, 7:], 2.0**15)
    full, _ = trajectory(tiny(recipe="dcgan", devices="cpu:2"))
    np.testing.assert_allclose(metrics[:, :2], full[:, :2], rtol=0.05, atol=0.02)
    assert {"d_loss_scale", "g_loss_scale"} <= set(variables.trackables())


def test_log_and_metrics_contain_the_loss_scales(tiny, run):
    config = tiny(precision="float16", length=Duration(2, "steps"), log_every_secs=0.0)
    output = run(config)
    assert "scales D 32768 G 32768" in output
    line = json.loads((Path(config.run_dir) / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["d_loss_scale"] == 2.0**15


def test_out_of_memory_error_names_the_flag(tiny, run, monkeypatch):
    def out_of_memory(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(step.Step, "__call__", out_of_memory)
    with pytest.raises(UsageError, match=r"too small for 8 images at once\. Lower --batch_per_rep"):
        run(tiny(length=Duration(2, "steps")))


def update_with_overflow(config: Config, bad_replica: int | None):
    """Updates D with gradients of ones, or of infinities on one replica.

    Returns:
      D's weights before the update, its weights on each replica after it, and D's updater.
    """
    devices = replicas.create_replicas(config)
    with devices.scope():
        variables = state.create_state(config, ImageShape.square(28, 1, 10), devices.precision)
    before = weights(variables.discriminator)

    def update():
        index = replicas.replica_index()
        bad = tf.equal(index, -1 if bad_replica is None else bad_replica)
        value = tf.where(bad, np.inf, 1.0)
        variables.load()
        d = TracedNetwork(variables.d)
        d.apply(variables.d.weights.join_sum([[tf.fill(w.shape, value) for w in d.weights]]), 0)
        variables.store()
        return tf.zeros([])

    tf.function(lambda: devices.run_and_sum(update))()
    copies = [
        np.concatenate(
            [w.value.values[k].numpy().ravel() for w in variables.discriminator.trainable_variables]
        )
        for k in range(devices.num_replicas)
    ]
    return before, copies, variables.d


def test_all_replicas_skip_an_update_that_overflows_on_one(tiny):
    config = tiny(recipe="mlp-small", precision="float16", devices="cpu:2")
    before, copies, updater = update_with_overflow(config, bad_replica=1)
    for copy in copies:
        np.testing.assert_array_equal(copy, before)
    assert [float(v.numpy()) for v in updater.scale.value.values] == [2.0**14] * 2
    assert int(updater.optimizer.iterations.numpy()) == 0
    before, copies, updater = update_with_overflow(config, bad_replica=None)
    np.testing.assert_array_equal(copies[0], copies[1])
    assert np.abs(copies[0] - before).min() > 0
    assert float(updater.scale.value.numpy()) == 2.0**15
    assert int(updater.optimizer.iterations.numpy()) == 1


def test_loss_scale_doubles_after_enough_finite_updates():
    from trainer.training.updates import GROWTH_STEPS, LossScale

    scale = LossScale.create()
    scale.finite_steps.assign(GROWTH_STEPS - 1)
    scale.after(tf.constant(True))
    assert (scale.value.numpy(), scale.finite_steps.numpy()) == (2.0**16, 0)
    scale.after(tf.constant(False))
    assert (scale.value.numpy(), scale.finite_steps.numpy()) == (2.0**15, 0)


def test_part_of_draws_equals_rows_of_all_draws():
    draws = Draws(seed=1, step=2, batch_size=8, first_row=4, rows=4)
    np.testing.assert_array_equal(draws.part(2, 2).normal("x", (3,)), draws.normal("x", (3,))[2:])


def test_layer_noise_applies_to_all_but_the_first_layer():
    config = recipes.resolve(dict(recipe="dcgan-studiogan", d_layer_noise=0.1))
    _, discriminator = build_networks(config, ImageShape.square(32, 3, 10))
    noisy = [layer for layer in discriminator.layers if isinstance(layer, layers.GaussianNoise)]
    assert len(noisy) == 6  # seven convolutions
