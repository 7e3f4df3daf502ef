"""Buffers hold the values of many variables; sizes that are not aligned are padded."""

import keras
import numpy as np
import tensorflow as tf

from trainer.training.buffer import ALIGNMENT, Buffer


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
