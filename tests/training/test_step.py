"""The training step: update rules, optimizers, EMA and random draws, on one and two replicas.

A process can use only one strategy with several replicas, because the keys of their collective
operations would collide. Here it is cpu:2; end_to_end/test_run.py tests four replicas.
"""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import STEPS, trajectory, weights
from trainer import recipes
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.machine import replicas
from trainer.models import randomness
from trainer.models.objective import OBJECTIVES
from trainer.models.randomness import Draws
from trainer.training import state, step, updates
from trainer.training.forward import Forward
from trainer.training.position import Start
from trainer.training.updates import TracedNetwork


@pytest.mark.parametrize("recipe", recipes.RECIPES)
def test_two_replicas_have_the_losses_of_one(tiny, recipe):
    # Each update of D is traced on its own: two of them test as much as sngan's five. So do fewer
    # blocks. Augmentation has a test of its own.
    cheaper = {
        "dcgan-studiogan": dict(d_steps=2, image_size=8),
        "sngan": dict(d_steps=2, image_size=8),
        "r3gan": dict(augment="none", image_size=8, hyperparameters="blocks=1"),
    }
    given = dict(recipe=recipe, **cheaper.get(recipe, {}))
    one, first = trajectory(tiny(**given))
    two, second = trajectory(tiny(**given, devices="cpu:2"))
    assert one.shape == (STEPS, len(step.metric_names(tiny(**given), "float32")))
    assert np.isfinite(one).all()
    np.testing.assert_allclose(two[:, :5], one[:, :5], rtol=2e-3, atol=2e-3)
    # Gradient norms are more sensitive to rounding in Adam's first steps than losses are.
    np.testing.assert_allclose(two[:, 5:], one[:, 5:], rtol=5e-2)
    np.testing.assert_allclose(weights(second.generator), weights(first.generator), atol=2e-3)
    assert int(first.images.numpy()) == STEPS * 8


def test_another_seed_changes_the_metrics(tiny):
    one, _ = trajectory(tiny())
    other, _ = trajectory(tiny(seed=1))
    assert np.abs(one - other).max() > 1e-3


def test_bfloat16_trains_with_float32_weights(tiny):
    metrics, variables = trajectory(tiny(precision="bfloat16", devices="cpu:2"), 2)
    assert np.isfinite(metrics).all()
    assert variables.generator.compute_dtype == "bfloat16"
    assert {v.dtype for v in variables.generator.trainable_variables} == {"float32"}
    full, _ = trajectory(tiny(), 1)
    np.testing.assert_allclose(metrics[0, :2], full[0, :2], rtol=0.05, atol=0.02)


def test_weights_that_are_cast_together_give_the_bits_of_those_cast_alone(tiny, monkeypatch):
    config = tiny(recipe="mlp", precision="bfloat16", d_weights="spectral")
    found, read_in_half = [], updates._read_in_half

    def recorded(*arguments):
        found.append(read_in_half(*arguments))
        return found[-1]

    monkeypatch.setattr(updates, "_read_in_half", recorded)
    together, state = trajectory(config, steps=1)
    assert all(found)  # in both networks
    monkeypatch.setattr(updates, "_read_in_half", lambda *_: set())
    alone, other = trajectory(config, steps=1)
    np.testing.assert_array_equal(together, alone)
    for network in ("generator", "discriminator"):
        np.testing.assert_array_equal(*(weights(getattr(s, network)) for s in (state, other)))


class CallCounter:
    """Records the batch sizes of a network's calls and counts its updates."""

    def __init__(self, monkeypatch, network, updater):
        self.calls, self.updates = [], 0
        call, apply = network.call, TracedNetwork.apply

        def counted_call(inputs, *args, **kwargs):
            images = inputs[0] if isinstance(inputs, (list, tuple)) else inputs
            self.calls.append(images.shape[0])
            return call(inputs, *args, **kwargs)

        def counted_apply(traced, *args):
            self.updates += traced._updater is updater
            return apply(traced, *args)

        monkeypatch.setattr(network, "call", counted_call)
        monkeypatch.setattr(TracedNetwork, "apply", counted_apply)


@pytest.mark.parametrize(
    ("given", "d_calls", "d_updates", "g_calls"),
    [
        (dict(update_rule="joint"), [16, 8], 1, [8, 8]),
        (dict(update_rule="separate"), [8, 8, 8], 1, [8, 8]),
        (dict(update_rule="sequential"), [8, 8, 8], 2, [8, 8]),
        (dict(update_rule="joint", d_steps=3), [16, 16, 16, 8], 3, [8] * 4),
        (dict(update_rule="joint-reuse"), [16, 8], 1, [8]),
        (dict(update_rule="sequential-reuse", d_steps=2), [8] * 5, 4, [8, 8]),
        (dict(update_rule="joint-reuse", batch_per_replica=4), [8, 8, 4, 4], 1, [4] * 4),
        (dict(update_rule="separate-simultaneous"), [8, 8], 1, [8]),
        (dict(update_rule="joint-simultaneous"), [16], 1, [8]),
        # The generator's update has reals of its own, or those of its pairs.
        (dict(update_rule="separate", loss="relativistic"), [8] * 4, 1, [8, 8]),
        (dict(update_rule="joint-reuse", loss="relativistic"), [16, 16], 1, [8]),
        (dict(update_rule="joint-simultaneous", loss="relativistic"), [16], 1, [8]),
    ],
)
def test_update_rules_call_and_update_the_networks_as_often_as_specified(
    tiny, monkeypatch, given, d_calls, d_updates, g_calls
):
    """Checks the batch sizes that D and G process in a step and the number of D's updates."""
    config = tiny(recipe="mlp-small", **given)
    devices = replicas.create_replicas(config)
    data = sources.load(config)
    with devices.scope():
        variables = state.create_state(config, data.shape, devices.precision)
    d = CallCounter(monkeypatch, variables.discriminator, variables.d)
    g = CallCounter(monkeypatch, variables.generator, variables.g)
    replica_step = step.Step(config, variables, data.shape.classes, 1)
    batches = step.real_batches_per_step(config)
    reals = tf.constant(data.images[: 8 * batches].reshape(-1, 8, 28, 28, 1))
    labels = tf.zeros([batches, 8], tf.int32)
    position = Start.read(variables).after(config, 0)
    tf.function(replica_step)(reals, labels, position)
    assert (d.calls, d.updates) == (d_calls, d_updates)
    assert (g.calls, g.updates) == (g_calls, 1)


def test_separate_discriminator_loss_is_twice_the_joint_loss(tiny):
    """Compares D's first loss as a mean over a joint batch and as a sum of two batches' means."""
    first = {
        rule: trajectory(tiny(recipe="mlp-small", update_rule=rule), 1)[0][0, 0]
        for rule in ("joint", "separate")
    }
    assert first["separate"] == pytest.approx(2 * first["joint"], rel=1e-4)


def test_each_d_step_draws_its_own_reals_unless_repeated(tiny):
    assert step.real_batches_per_step(tiny(d_steps=3)) == 3
    assert step.real_batches_per_step(tiny(d_steps=3, repeat_reals=True)) == 1


@pytest.mark.parametrize("rule", ["separate", "joint-reuse"])
def test_fakes_have_the_labels_of_their_reals_in_a_loss_on_pairs(tiny, monkeypatch, rule):
    """Checks that each update judges reals with their labels, and fakes drawn with these."""
    drawn, judged, read = [], [], []
    for name, record in (
        ("generate", lambda labels, draws: drawn.append(labels)),
        ("discriminate_both", lambda reals, fakes, labels, draws: judged.append(labels)),
        ("to_reals", lambda images, draws: read.append(images)),
    ):
        original = getattr(Forward, name)

        def recorded(own, *args, original=original, record=record):
            record(*args)
            return original(own, *args)

        monkeypatch.setattr(Forward, name, recorded)
    config = tiny(recipe="mlp", conditional=True, loss="relativistic", update_rule=rule)
    assert np.isfinite(trajectory(config, 1)[0]).all()
    own = rule == "separate"  # has fakes and reals of its own for the generator
    assert step.real_batches_per_step(config) == 1 + own

    def source(tensor):
        while tensor.op.type == "Identity":
            tensor = tensor.op.inputs[0]
        if tensor.op.type == "StridedSlice":  # a batch of the step's
            return tensor.op.inputs[0].name, str(tf.get_static_value(tensor.op.inputs[1]))
        return tensor.name

    drawn, judged, read = ([source(x) for x in each] for each in (drawn, judged, read))
    assert len(judged) == 2
    assert drawn == judged[: 1 + own]
    assert len({*judged}) == len({*read}) == 1 + own


def test_simultaneous_gradients_come_from_the_same_weights(tiny):
    """Checks that G's first update does not depend on D's update of the same step."""
    given = dict(recipe="mlp", optimizer="rmsprop", g_lr=1e-3)
    both = trajectory(tiny(**given, d_lr=1.0), 1)[1]
    reference = trajectory(tiny(**given, d_lr=0.0), 1)[1]
    np.testing.assert_array_equal(weights(both.generator), weights(reference.generator))
    for rule in ("separate", "separate-reuse"):  # G is updated after D
        given.update(update_rule=rule)
        after = trajectory(tiny(**given, d_lr=1.0), 1)[1]
        assert np.abs(weights(after.generator) - weights(reference.generator)).max() > 1e-4


def test_inverse_time_schedule_decays_with_the_images_shown(tiny):
    given = dict(recipe="mlp-small", update_rule="joint", optimizer="adam", beta1=0.0, beta2=0.0)
    variables = trajectory(
        tiny(**given, g_lr=0.5, g_lr_schedule="inverse_time", g_lr_decay_per_kimg=125.0), 4
    )[1]
    # After four steps of 8 images the rate is 0.5 / (1 + 125 * 0.032).
    assert float(variables.g.optimizer.learning_rate) == pytest.approx(0.5 / 5.0)


def test_fused_optimizers_equal_those_of_keras():
    import keras

    from trainer.training import optimizers

    for config, keras_optimizer in (
        (dict(optimizer="adam", beta1=0.5), keras.optimizers.Adam(1e-3, beta_1=0.5)),
        (dict(optimizer="rmsprop", beta2=0.9), keras.optimizers.RMSprop(1e-3)),
        (dict(optimizer="sgd", momentum=0.8), keras.optimizers.SGD(1e-3, momentum=0.8)),
        (dict(optimizer="sgd", momentum=0.0), keras.optimizers.SGD(1e-3)),
    ):
        start = np.linspace(-1, 1, 7, dtype=np.float32)
        own_variable = keras.Variable(start)
        keras_variable = keras.Variable(start)
        resolved = recipes.resolve(dict(**config, g_lr=1e-3))
        own_optimizer = optimizers.make(resolved, "g", tf.Variable(0, dtype=tf.int64))
        own_optimizer.build([own_variable])
        own_slots = [slot.value for (slot,) in own_optimizer.slots()]
        keras_optimizer.build([keras_variable])
        for k in range(5):
            gradient = tf.constant(np.cos(start * (k + 1)))
            before = [v.numpy() for v in (own_variable, *own_slots)]
            for finite in (tf.constant(False), tf.constant(True) if k % 2 else None):
                skipped = finite is not None and not finite
                gradient_or_none = tf.zeros_like(gradient) if skipped else gradient
                update = optimizers.Update(
                    own_variable.value, own_slots, gradient_or_none, 0, k + 1, finite
                )
                own_optimizer.update(update)
                if skipped:  # nothing changes but RMSprop's second slot, which is never read
                    after = [v.numpy() for v in (own_variable, *own_slots)]
                    kept = 2 if config["optimizer"] == "rmsprop" else len(after)
                    np.testing.assert_array_equal(after[:kept], before[:kept])
            keras_optimizer.apply([gradient], [keras_variable])
        np.testing.assert_allclose(
            own_variable.numpy(), keras_variable.numpy(), rtol=1e-5, atol=1e-7
        )


def test_ema_half_life_is_measured_in_images(tiny):
    config = tiny(ema_half_life_kimg=0.008, g_lr=1e-2)  # one batch of 8
    devices = replicas.create_replicas(config)
    data = sources.load(config)
    with devices.scope():
        variables = state.create_state(config, data.shape, devices.precision)
    before = [v.numpy() for v in variables.ema_generator.variables]
    variables.images.assign(10**6)  # far beyond the ramp
    for variable in variables.generator.variables:
        variable.assign_add(tf.ones_like(variable))
    variables.load()
    whole = step.Step(config, variables, data.shape.classes, 1)
    position = Start.read(variables).after(config, 0)
    tf.function(lambda: step.ReplicaStep(whole, position).update_ema())()
    variables.store()
    for old, new in zip(before, variables.ema_generator.variables, strict=True):
        np.testing.assert_allclose(new.numpy(), old + 0.5, rtol=1e-5, atol=1e-6)


def test_ema_includes_batch_norm_statistics(tiny):
    _, variables = trajectory(tiny())
    moving = [v for v in variables.ema_generator.variables if "moving_mean" in v.path]
    assert moving
    assert all(np.abs(v.numpy()).max() > 0 for v in moving)


def test_random_draws_depend_only_on_seed_step_name_and_row():
    full_batch = Draws(seed=3, step=7, batch_size=8)
    second_half = Draws(seed=3, step=7, batch_size=8, first_row=4, rows=4)
    np.testing.assert_array_equal(full_batch.normal("x", (5,))[4:], second_half.normal("x", (5,)))
    both = full_batch.uniform("m", (3,), parts=2).numpy().reshape(2, 8, 3)
    np.testing.assert_array_equal(
        second_half.uniform("m", (3,), parts=2), both[:, 4:].reshape(8, 3)
    )
    for other in (Draws(4, 7, 8), Draws(3, 8, 8), full_batch.within("g")):
        assert np.abs(full_batch.normal("x", (5,)) - other.normal("x", (5,))).max() > 0.1
    labels = Draws(0, 0, 10000).integers("labels", 10).numpy()
    assert set(labels) == set(range(10))
    assert np.bincount(labels).min() > 850


def test_latent_vectors_have_the_configured_distribution():
    for name, low, high, std in (("uniform", -1, 1, 3**-0.5), ("normal", -9, 9, 1)):
        config = recipes.resolve(dict(latent_distribution=name, latent_dim=50))
        latents = randomness.latents(config, Draws(0, 0, 1000)).numpy()
        assert latents.shape == (1000, 50)
        assert low <= latents.min() < -0.9
        assert 0.9 < latents.max() <= high
        assert latents.std() == pytest.approx(std, rel=0.02)


def test_generator_loss_is_the_mean_over_the_global_batch(tiny):
    """Compares G's loss in the first step with the objective at the logits of its fakes."""
    config = tiny(recipe="mlp-small", update_rule="joint", d_lr=0.0, g_lr=0.0)
    metrics, variables = trajectory(config, 1)
    draws = Draws(0, 0, 8).within("g")
    fakes = variables.generator(randomness.latents(config, draws), training=True)
    logits = variables.discriminator(fakes, training=True)
    expected = tf.reduce_mean(OBJECTIVES["nonsaturating"].g_fake(logits))
    assert metrics[0, 1] == pytest.approx(float(expected), rel=1e-4)


def test_epochs_are_converted_to_steps():
    assert Duration(1, "epochs").steps(64, 1500) == 24


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        (dict(recipe="mlp"), 4),
        (dict(recipe="dcgan"), 0),
        (dict(recipe="dcgan", networks="mlp-small"), 4),
        (dict(recipe="mlp", operation_threads=3), 3),
    ],
)
def test_number_of_threads_per_operation(tiny, monkeypatch, given, threads):
    thread_counts = []
    monkeypatch.setattr(replicas.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(
        tf.config.threading, "set_intra_op_parallelism_threads", thread_counts.append
    )
    config = tiny(**given)
    small_operations = recipes.get(config.networks).fully_connected
    replicas.create_replicas(config, small_operations=small_operations)
    assert thread_counts == [threads]
