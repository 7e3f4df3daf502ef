"""Buffers hold the values of many variables; sizes that are not aligned are padded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import trajectory
from trainer.config.dataset import ImageShape
from trainer.training import state
from trainer.training.buffer import ALIGNMENT, Buffer, Buffers


def variables():
    shapes = [(4, 8), (1,), (), (3, 5, 7), (16,)]
    return [
        keras.Variable(np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 100 * k)
        for k, shape in enumerate(shapes)
    ]


def test_values_survive_the_buffer():
    made = variables()
    before = [v.numpy() for v in made]
    buffer = Buffer.create(made, "buffer")
    buffer.load()
    for variable in made:
        variable.assign(tf.zeros_like(variable))
    buffer.store()
    for variable, value in zip(made, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    for part, value in zip(buffer.parts(), before, strict=True):
        np.testing.assert_array_equal(part, value)


def test_padding_is_zero_and_parts_are_aligned():
    made = variables()
    buffer = Buffer.create(made, "buffer")
    buffer.load()
    flat = buffer.value().numpy()
    assert len(flat) == sum(-(-v.numpy().size // ALIGNMENT) * ALIGNMENT for v in made)
    assert flat[32] == 100
    assert not flat[33:48].any()


def test_stored_values_are_not_changed_by_later_updates_of_the_buffer():
    """TensorFlow lets a variable share the buffer's memory until either of them is written."""
    made = variables()
    buffer = Buffer.create(made, "buffer")
    buffer.load()
    buffer.store()
    before = [v.numpy().copy() for v in made]
    buffer.move_towards(tf.zeros_like(buffer.value()), tf.constant(0.5))
    for variable, value in zip(made, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    np.testing.assert_allclose(buffer.parts()[0], 0.5 * before[0])


def test_tensors_of_several_formats_are_summed_in_float32():
    made = variables()
    buffer = Buffer.create(made, "buffer")
    value = tf.random.stateless_normal([buffer.flat.shape[0]], seed=[1, 2])
    first = buffer.parts(tf.cast(tf.cast(value, tf.bfloat16), tf.float32))
    halves = [tf.cast(part, tf.bfloat16) if k % 2 else part for k, part in enumerate(first)]
    second = [part + 1.0 for part in first]
    joined = buffer.join_sum([halves, [*second[:3], None, tf.cast(second[4], tf.float16)]])
    second[3:] = [tf.zeros_like(second[3]), tf.cast(tf.cast(second[4], tf.float16), tf.float32)]
    assert joined.dtype == tf.float32
    for part, one, other in zip(buffer.parts(joined), first, second, strict=True):
        np.testing.assert_array_equal(part, one + other)


def test_an_empty_buffer_does_nothing():
    buffer = Buffer.create([], "empty")
    buffer.load()
    buffer.store()
    assert buffer.parts() == []


def test_variables_are_held_by_several_buffers():
    made = variables()
    buffers = Buffers.create(made, "buffers", size=96)
    # The variable of 105 elements has a buffer of its own.
    order = [3, 0, 1, 2, 4]
    assert [len(buffer.variables) for buffer in buffers.each] == [1, 4]
    made = [made[k] for k in order]
    assert list(map(id, buffers.variables)) == list(map(id, made))
    whole = Buffers.create(made, "buffers")
    assert len(whole.each) == 1
    for each in (buffers, whole):
        each.load()
    half = [tf.cast(part, tf.bfloat16) for part in whole.parts()]
    groups = [half, [None, *whole.parts()[1:]], [None, *half[1:]]]
    sums = [each.parts(each.join_sum(groups)) for each in (buffers, whole)]
    for one, other in zip(*sums, strict=True):
        np.testing.assert_array_equal(one, other)
    buffers.assign([part + 1.0 for part in buffers.parts()])
    buffers.move_towards([tf.zeros_like(value) for value in buffers.values()], tf.constant(0.5))
    buffers.store()
    for variable, part in zip(made, whole.parts(), strict=True):
        np.testing.assert_array_equal(variable, 0.5 * (part + 1.0))


@pytest.mark.parametrize(
    "given",
    [
        dict(ema_half_life_kimg=0.1),
        dict(precision="float16", d_clip=0.05, update_rule="joint-simultaneous"),
        dict(update_rule="joint", r1=1.0, penalty_every=2, devices="cpu:2"),
    ],
    ids=["average", "scale", "penalties"],
)
def test_several_buffers_train_as_one_does(tiny, monkeypatch, given):
    """Compares the variables after some steps, bit for bit."""
    config = tiny(recipe="mlp-small", **given)
    found = []
    for size in (128, 2**30):
        monkeypatch.setattr(state, "BUFFER_SIZE", size)
        _, trained = trajectory(config, 3)
        found.append([variable.numpy() for variable in trained.all_variables()])
        assert (len(trained.g.weights.each) > 1) == (size == 128)
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_networks_on_gpus_or_with_spectral_norms_have_one_buffer(tiny, monkeypatch):
    monkeypatch.setattr(state, "BUFFER_SIZE", 128)
    shape = ImageShape.square(28, 1, 10)
    on_gpus = state.create_state(tiny(recipe="mlp-small"), shape, "float32", on_gpus=True)
    assert [len(updater.weights.each) for updater in (on_gpus.g, on_gpus.d)] == [1, 1]
    config = tiny(recipe="mlp-small", d_weights="spectral")
    normed = state.create_state(config, shape, "float32")
    assert len(normed.g.weights.each) > 1
    assert len(normed.d.weights.each) == 1
