"""Augmentation and schedules in the training step, on one and two replicas."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import assert_same_run, records, steps, trajectory, weights
from trainer import recipes
from trainer.config.schedules import Schedule
from trainer.errors import CheckpointError
from trainer.models import augmentation
from trainer.training import step
from trainer.training.adaptation import EVERY

ADAPTIVE = dict(recipe="mlp", update_rule="joint", augment="ada", augment_speed_kimg=0.05)
LIKE = dict(rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "given",
    [
        ADAPTIVE,
        dict(recipe="dcgan-sigmoid", augment="diffaugment", augment_strength="linear 0 1 over 50%"),
    ],
    ids=str,
)
def test_replicas_and_micro_batches_have_the_losses_of_one(tiny, given):
    config = tiny(**given, length=steps(8), g_norm="none").with_spans_in_kimg(1000)
    one, first = trajectory(config, 8)
    for other in (dict(devices="cpu:2"), dict(batch_per_replica=4)):
        two, second = trajectory(config.replace(**other), 8)
        np.testing.assert_allclose(two[:, :5], one[:, :5], **LIKE)
        np.testing.assert_array_equal(two[:, -1], one[:, -1])  # the strength
        np.testing.assert_allclose(weights(second.generator), weights(first.generator), **LIKE)
    assert one[-1, -1] > one[0, -1]


def test_adaptive_strength_follows_the_accuracy_on_reals(tiny):
    metrics, state = trajectory(tiny(**ADAPTIVE), 3 * EVERY)
    shares, strengths = metrics[:, 2], metrics[:, -1]
    expected, change = 0.0, 8 * EVERY / 50.0
    for k in range(3):
        np.testing.assert_allclose(strengths[EVERY * k : EVERY * (k + 1)], expected, atol=1e-6)
        excess = 2.0 * shares[EVERY * k : EVERY * (k + 1)].mean() - 1.0 - 0.6
        expected = np.clip(expected + change * np.sign(excess), 0, 1)
    assert float(state.augment.value.numpy()) == pytest.approx(expected, abs=1e-6)
    assert expected > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_augmentation_in_half_precision(tiny, precision):
    """Checks that images are augmented in float32, so that losses are those of float32."""
    given = dict(recipe="mlp", augment="ada", augment_strength=0.7, gradient_penalty=1.0)
    given |= dict(update_rule="separate")
    half, _ = trajectory(tiny(**given, precision=precision), 2)
    full, _ = trajectory(tiny(**given), 2)
    assert np.isfinite(half[:, :5]).all()
    np.testing.assert_allclose(half[0, :2], full[0, :2], rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (dict(update_rule="joint"), [16, 8]),  # D's reals and fakes, then G's fakes
        (dict(update_rule="separate"), [8, 8, 8]),
        (dict(update_rule="sequential"), [8, 8, 8]),
        (dict(update_rule="separate-reuse"), [8, 8, 8]),
        (dict(update_rule="separate", gradient_penalty=1.0), [8, 8, 8, 8]),
    ],
)
def test_reals_and_fakes_of_both_networks_are_augmented_with_draws_of_their_own(
    tiny, monkeypatch, given, sizes
):
    seen, scopes = [], []

    def spy(images, factors, draws, strength):
        assert images.dtype == tf.float32
        seen.append(images.shape[0])
        scopes.append(draws.scope)
        return images

    monkeypatch.setitem(augmentation.AUGMENT, "diffaugment", spy)
    config = tiny(recipe="mlp", augment="diffaugment", precision="bfloat16", **given)
    trajectory(config, 1)
    assert seen == sizes
    assert len(set(scopes)) == len(sizes)


SCHEDULED = dict(
    g_lr="cosine 1e-3 1e-4 over 0.07 kimg",
    beta2="cosine 0.9 0.99 over 0.05 kimg",
    ema_half_life_kimg="linear 0 1 over 0.05 kimg",
    d_input_noise="linear 0.1 0 over 0.1 kimg",
    log_every_steps=1,
    log_every_secs=1e9,
)


def test_resumed_run_with_augmentation_and_schedules_is_identical(tiny, run, tmp_path):
    """Interrupts a run between two adjustments of the strength, after 6 steps."""
    # About half of the reals are judged real in steps 5 to 8: without the first two of these
    # steps, the share would be below this target.
    given = dict(**ADAPTIVE, **SCHEDULED, augment_target=-0.25, sample_every=steps(3))
    run(tiny(**given, length=steps(9), run_dir=str(tmp_path / "whole")))
    for end in (6, 9):
        run(tiny(**given, length=steps(end), run_dir=str(tmp_path / "parts")))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    strengths = [line["augment_strength"] for line in records(tmp_path / "parts")]
    assert len(set(strengths)) == 3  # adjusted after 4 and 8 steps


def test_strength_is_in_the_log_the_metrics_and_tensorboard(tiny, run, tmp_path):
    output = run(tiny(**ADAPTIVE, length=steps(6), log_every_steps=1, log_every_secs=0.0))
    assert "  augment 0." in output
    assert records(tmp_path / "run")[-1]["augment_strength"] > 0
    (events,) = (tmp_path / "run").rglob("*tfevents*")
    tags = {
        v.tag for e in tf.compat.v1.train.summary_iterator(str(events)) for v in e.summary.value
    }
    assert "train/augment_strength" in tags


def test_a_share_of_the_run_is_resolved_once(tiny, run, tmp_path):
    given = dict(recipe="mlp", g_lr="linear 1e-3 0 over 50%")
    run(tiny(**given, length=steps(4)))
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["g_lr"] == "linear 0.001 0 over 0.016 kimg (50% of the run)"
    with pytest.raises(CheckpointError, match=r"g_lr: linear 0\.001 0 over 0\.016 kimg"):
        run(tiny(recipe="mlp", g_lr="linear 1e-3 0 over 60%", length=steps(5)))
    from trainer import api

    resumed = api.configure(**given, run_dir=str(tmp_path / "run"), steps=6)
    assert resumed.g_lr == Schedule("linear", 1e-3, 0.0, 0.016, 50.0)
    run(resumed)
    assert (Path(resumed.run_dir) / "generator.keras").exists()


def test_scheduled_beta2_and_penalty_reach_their_values(tiny):
    """Compares the first step, and one beyond the span, with the constants of a schedule."""
    base = dict(recipe="mlp", optimizer="adam", update_rule="separate")
    for name, first, last in (("beta2", 0.5, 0.9), ("gradient_penalty", 1.0, 9.0)):
        scheduled = f"linear {first} {last} over 0.008 kimg"  # one step
        moving = trajectory(tiny(**base, **{name: scheduled}), 3)[0]
        constant = trajectory(tiny(**base, **{name: first}), 3)[0]
        np.testing.assert_allclose(moving[0], constant[0], rtol=1e-5)
        assert np.abs(moving[2] - constant[2]).max() > 1e-4


def test_ema_of_r3gan_has_the_published_weights():
    path = Path(__file__).parents[1] / "golden/r3gan-schedules.json"
    table = json.loads(path.read_text(encoding="utf-8"))["CIFAR10"]
    half_life = "cosine 0 5000 over 20000 kimg"
    config = recipes.resolve(dict(ema_half_life_kimg=half_life, ema_ramp=0.0, batch_size=512))
    for row in table["rows"]:
        decay = step.ema_decay(config, tf.constant(int(1e6 * row["mimg"]), tf.int64))
        assert float(decay) == pytest.approx(row["ema_beta_per_step"], rel=1e-6)
    # The default limits the half-life to a share of the images seen, here after 1 Mimg.
    ramped = step.ema_decay(config.replace(ema_ramp=0.01), tf.constant(999_488, tf.int64))
    assert float(ramped) == pytest.approx(0.5 ** (512 / 10_000), rel=1e-6)
