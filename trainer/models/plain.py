"""Networks of Keras's own layers alone, to be loaded where this package is not."""

import keras

from trainer.models import kernels


def plain(network: keras.Model) -> keras.Model:
    """A copy that gives the same outputs in inference mode, without this package's layers.

    Normalised kernels stand in it as they are applied.
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
