"""Copies of networks for exported files, which work without this package."""

import keras

from trainer.models import kernels
from trainer.models.filtering import Upsample
from trainer.models.grouped_convolution import GroupedConv2D
from trainer.models.resize_convolution import ResizeConv2D


def plain(network: keras.Model, *, keras_only: bool = True) -> keras.Model:
    """Returns a copy with the same outputs in inference mode, for use without this package.

    The copy contains normalized kernels in their normalized form.

    Args:
      network: the network.
      keras_only: whether to use Keras layers only.  A graph needs no layers; without this, grouped
        convolutions stay as they are, because those of Keras need a program that has XLA and
        round differently.
    """
    copy = keras.models.clone_model(
        network,
        clone_function=lambda layer: _plain_layer(layer, keras_only),
    )
    for layer, new in zip(network.layers, copy.layers, strict=True):
        new.set_weights(
            layer.plain_weights()
            if isinstance(layer, (kernels.NormalizedKernel, ResizeConv2D))
            else layer.get_weights()
        )
    return copy


def _plain_layer(layer: keras.layers.Layer, keras_only: bool) -> keras.layers.Layer:
    if isinstance(layer, (kernels.NormalizedKernel, ResizeConv2D, Upsample)):
        return layer.plain()
    if isinstance(layer, GroupedConv2D) and not keras_only:
        return type(layer).from_config(layer.get_config())
    return getattr(layer, "plain_kind", type(layer)).from_config(layer.get_config())
