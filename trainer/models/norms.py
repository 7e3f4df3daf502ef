"""Batch (across replicas, optionally conditional), instance and layer normalization."""

from typing import Any, TypeAlias

import keras
import tensorflow as tf

from trainer.config import Config
from trainer.config.model_settings import CONDITIONAL_NORM
from trainer.machine.replicas import gather_from_replicas, num_replicas
from trainer.models.convolutions import register

Tensor: TypeAlias = Any  # a symbolic keras.KerasTensor


def norm(x: Tensor, config: Config, kind: str, onehot: Tensor | None = None) -> Tensor:
    """Applies the norm `kind` to x [N, ..., C]: batch (over all replicas), instance, layer or none.

    With `onehot` [N, classes] and g_conditioning=batchnorm or batchnorm_alone, the batch norm has
    a scale and a shift for each class (de Vries et al., arXiv:1707.00683).
    """
    if kind == "none":
        return x
    if kind == "layer":
        return keras.layers.GroupNormalization(1)(x)  # statistics over the whole image
    if kind == "instance":
        # Statistics of each image and channel. Without pixels this is the layer norm.
        groups = x.shape[-1] if len(x.shape) == 4 else 1
        return keras.layers.GroupNormalization(groups)(x)
    by_class = onehot is not None and config.g_conditioning in CONDITIONAL_NORM
    x = BatchNorm(momentum=config.bn_momentum, center=not by_class, scale=not by_class)(x)
    if not by_class:
        return x
    channels = x.shape[-1]
    per_channel = [1] * (len(x.shape) - 2) + [channels]
    scale = keras.layers.Dense(channels, use_bias=False, kernel_initializer="ones")(onehot)
    shift = keras.layers.Dense(channels, use_bias=False, kernel_initializer="zeros")(onehot)
    x = keras.layers.Multiply()([x, keras.layers.Reshape(per_channel)(scale)])
    return keras.layers.Add()([x, keras.layers.Reshape(per_channel)(shift)])


@register
class BatchNorm(keras.layers.BatchNormalization):
    """Batch norm whose statistics are those of the global batch, as one fused operation.

    The Keras layer takes three times as long on one replica. With several replicas, their merged
    statistics replace the fused operation; they cost one all-reduce per layer.
    """

    plain_kind = keras.layers.BatchNormalization

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Normalizes [N, ..., C]; training uses and accumulates the batch statistics."""
        if not training:
            return super().call(inputs, training=False)
        channels = inputs.shape[-1]
        # cuDNN supports few rows of many pixels, but not many rows of one pixel.
        images = len(inputs.shape) == 4
        rows = inputs if images else tf.reshape(inputs, [-1, 1, 1, channels])
        scale = tf.ones([channels]) if self.gamma is None else tf.convert_to_tensor(self.gamma)
        shift = tf.zeros([channels]) if self.beta is None else tf.convert_to_tensor(self.beta)
        replicas = num_replicas()
        if replicas == 1:
            outputs, mean, variance = self._by_one_replica(rows, scale, shift)
        else:
            outputs, mean, variance = self._by_all_replicas(rows, scale, shift, replicas)
            rest = 1.0 - self.momentum
            mean = self.moving_mean * self.momentum + mean * rest
            variance = self.moving_variance * self.momentum + variance * rest
        self.moving_mean.assign(mean)
        self.moving_variance.assign(variance)
        return tf.reshape(outputs, tf.shape(inputs))

    def _by_one_replica(
        self, rows: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the outputs and the new moving averages."""
        # The operation averages unbiased variances; Keras stores biased ones.
        count = rows.shape.num_elements() // rows.shape[-1]
        unbiased = count / (count - 1.0) if count > 1 else 1.0
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=rows,
            scale=scale,
            offset=shift,
            mean=self.moving_mean,
            variance=self.moving_variance * unbiased,
            epsilon=self.epsilon,
            exponential_avg_factor=1.0 - self.momentum,
        )
        return outputs, mean, variance / unbiased

    def _by_all_replicas(
        self, rows: tf.Tensor, scale: tf.Tensor, shift: tf.Tensor, replicas: int
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Merges the mean and the centred sum of squares of every replica.

        The difference of the mean square and the squared mean would lose all digits where the
        mean is large against the standard deviation. Here each replica subtracts its own mean
        first (the parallel algorithm of Chan, Golub and LeVeque, 1983), and corrects the rounding
        of that mean by the mean of what remains.
        """
        values = tf.cast(rows, tf.float32)  # squares of half precision overflow
        # Any pivot gives the same statistics, so no gradient flows through it.
        pivot = tf.stop_gradient(tf.reduce_mean(values, [0, 1, 2]))
        centred = values - pivot
        rest = tf.reduce_mean(centred, [0, 1, 2])
        spread = tf.reduce_mean(tf.square(centred), [0, 1, 2]) - tf.square(rest)
        gathered = gather_from_replicas(tf.concat([pivot, rest, spread], 0))
        pivots, rests, spreads = tf.split(gathered, 3, axis=1)  # each [replicas, C]
        means = pivots - pivots[0] + rests  # relative to the first pivot, hence small and exact
        mean = tf.reduce_mean(means, 0)
        variance = tf.reduce_mean(spreads + tf.square(means - mean), 0)
        factor = scale * tf.math.rsqrt(variance + self.epsilon)
        outputs = (centred - (pivots[0] - pivot + mean)) * factor + shift
        return tf.cast(outputs, rows.dtype), pivots[0] + mean, variance
