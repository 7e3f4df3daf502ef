"""Copies of networks that use only Keras layers, loadable without this package."""

import keras

from trainer.models import kernels


def plain(network: keras.Model) -> keras.Model:
    """Returns a copy made of Keras layers only, with the same outputs in inference mode.

    The copy contains normalized kernels in their normalized form.
    """
    copy = keras.models.clone_model(network, clone_function=_plain_layer)
    for layer, new in zip(network.layers, copy.layers, strict=True):
        new.set_weights(
            layer.plain_weights()
            if isinstance(layer, kernels.NormalizedKernel)
            else layer.get_weights()
        )
    return copy


def _plain_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    if isinstance(layer, kernels.NormalizedKernel):
        return layer.plain()
    return getattr(layer, "plain_kind", type(layer)).from_config(layer.get_config())
