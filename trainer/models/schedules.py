"""Evaluates schedules in TensorFlow."""

import tensorflow as tf

from trainer.config.schedules import Schedule, Value
from trainer.machine.devices import on_host


def current(value: Value, images: tf.Tensor | int) -> tf.Tensor:
    """Returns the value of a setting after so many images, a float32 scalar.

    Args:
      value: a number or a schedule, whose span is known in kimg.
      images: number of images seen, an int64 scalar.
    """
    if not isinstance(value, Schedule):
        return tf.constant(value, tf.float32)
    with on_host():
        kimg = tf.cast(images, tf.float32) / 1000.0
        return value.at(kimg, sin=tf.sin, minimum=tf.minimum)
