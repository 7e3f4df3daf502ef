"""What a step costs, as it is said before the first step."""

import json

import pytest
import tensorflow as tf

from trainer import recipes
from trainer.config.dataset import ImageShape
from trainer.config.numbers import rounded
from trainer.machine import replicas
from trainer.recipes.networks import build_networks
from trainer.training import state, step
from trainer.training.cost import Cost
from trainer.training.position import Start
from trainer.training.utilisation import flops

SHAPE = ImageShape.square(28, 1, 10)
PENALISED = dict(loss="relativistic", update_rule="separate", d_steps=2, r1=1.0)


def networks(config):
    devices = replicas.create_replicas(config)
    with devices.scope():
        return state.create_state(config, SHAPE, devices.precision)


@pytest.mark.parametrize(
    "given",
    [
        dict(recipe="dcgan"),  # reuses fakes
        dict(recipe="mlp"),  # simultaneous
        dict(recipe="mlp", **PENALISED, r2=1.0),
        dict(recipe="mlp", **PENALISED, gradient_penalty=1.0),
    ],
    ids=str,
)
def test_arithmetic_is_that_of_the_traced_step(tiny, given):
    config = tiny(**{**given, "g_width": 0.25, "d_width": 0.25})
    made = networks(config)
    batches = step.real_batches_per_step(config)
    one_step, zero = step.Step(config, made, 10, 1), tf.constant(0, tf.int64)
    position = Start(zero, zero, zero, zero).after(config, 0)
    traced = tf.function(
        lambda images, labels: one_step(images, labels, position), autograph=False
    ).get_concrete_function(
        tf.TensorSpec([batches, 8, 28, 28, 1], tf.uint8), tf.TensorSpec([batches, 8], tf.int32)
    )
    cost = Cost.of(config, made.generator, made.discriminator)
    said = config.batch_size * (cost.g_flops + cost.d_flops)
    assert said == pytest.approx(flops(traced.graph), rel=0.2)


def test_memory_depends_on_the_rows_and_the_penalties(tiny):
    config = tiny(recipe="mlp")
    made = networks(config)
    cost = Cost.of(config, made.generator, made.discriminator)
    # Variables, slots and their buffers, and the gradient in two forms, in float32.
    trained = [*made.generator.trainable_weights, *made.discriminator.trainable_weights]
    assert cost.bytes_per_device(0) == 4 * 8 * sum(
        weight.value.shape.num_elements() for weight in trained
    )
    per_row = cost.bytes_per_device(1) - cost.bytes_per_device(0)
    assert cost.bytes_per_device(64) - cost.bytes_per_device(0) == 64 * per_row
    penalised = Cost(config.replace(update_rule="separate", r1=1.0), cost.g, cost.d)
    assert penalised.bytes_per_device(64) > cost.bytes_per_device(64)


@pytest.mark.parametrize(
    ("recipe", "conditional", "counts"),
    [
        ("sngan", False, (4_276_739, 1_053_825)),
        ("r3gan", True, (20_781_952, 21_280_512)),
    ],
)
def test_parameters_are_those_of_publications(recipe, conditional, counts):
    """Batch norm's moving statistics and spectral norm's vectors are none."""
    config = recipes.resolve(dict(recipe=recipe, conditional=conditional, dataset="cifar10"))
    generator, discriminator = build_networks(config, ImageShape.square(32, 3, 10))
    cost = Cost.of(config, generator, discriminator)
    assert (cost.g.parameters, cost.d.parameters) == counts
    said = cost.describe(config.batch_size, "float32")
    assert f"Generator of {counts[0]:,} parameters and " in said
    assert f"discriminator of {counts[1]:,} and " in said


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (983.2, 2, "980"), (128.4, 2, "130"), (1138.7, 3, "1,140"), (12345.0, 3, "12,300"),
        (0.4217, 2, "0.42"), (99.97, 3, "100"), (2.0, 2, "2"), (1.25, 3, "1.25"), (0.0, 2, "0"),
        (4.71e-5, 3, "0.0000471"),
    ],
)  # fmt: skip
def test_amounts_have_no_exponents(value, digits, text):
    assert rounded(value, digits) == text


def test_cost_is_said_before_and_at_the_start(trainer):
    arguments = ("train", "--recipe=mlp", "--g_width=0.05", "--d_width=0.05", "--batch_size=8")
    dry = trainer(*arguments, "--dry_run")
    assert json.loads(dry.stdout)["recipe"] == "mlp"
    line = dry.stderr.splitlines()[-1]
    assert "GFLOP per image and step" in line
    assert "8 images at once in float32 take about 0." in line
    started = trainer(*arguments, "--steps=1")
    assert line.rstrip(".") in started.stdout + started.stderr
    own = trainer("train", "--dry_run", "--dataset=gs://bucket/pictures.zip")
    assert (own.returncode, own.stderr) == (0, "")
