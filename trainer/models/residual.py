"""Residual blocks with batch norm and spectral norm.

Miyato et al., arXiv:1802.05957, appendix B, and Miyato and Koyama, arXiv:1802.05637, after
Gulrajani et al., arXiv:1704.00028.  The 1x1 convolution of a shortcut and its resampling are
both linear, so they are applied in the order that costs less; the results are equal.
"""

from typing import Any, TypeAlias

import keras

from trainer.config import Config
from trainer.config.model_settings import CONDITIONAL_NORM
from trainer.models import convolutions, kernels, layers, norms, randomness
from trainer.models.filtering import Upsample
from trainer.models.spectral import SpectralConv2D

Tensor: TypeAlias = Any  # a symbolic keras.KerasTensor

GAIN = 2.0**0.5  # of the initial values of the two 3x3 convolutions of a block
EPSILON = 1e-5  # added to the variance by the batch norms


def up_block(x: Tensor, config: Config, onehot: Tensor | None, filters: int, name: str) -> Tensor:
    """Applies a block of the generator, [N, H, W, C] to [N, 2 H, 2 W, filters]."""
    shortcut = conv(x, config, config.g_weights, filters, 1, f"{name}_shortcut")
    shortcut = Upsample("edge", name=f"{name}_shortcut_up")(shortcut)
    x = norm_relu(x, config, onehot, f"{name}_norm1")
    x = Upsample("edge", name=f"{name}_up")(x)
    x = conv(x, config, config.g_weights, filters, 3, f"{name}_conv1")
    x = norm_relu(x, config, onehot, f"{name}_norm2")
    x = conv(x, config, config.g_weights, filters, 3, f"{name}_conv2")
    return keras.layers.Add(name=f"{name}_sum")([x, shortcut])


def down_block(
    x: Tensor, config: Config, filters: int, name: str, *, halve: bool, first: bool = False
) -> Tensor:
    """Applies a block of the discriminator to x [N, H, W, C].

    The first 3x3 convolution keeps the number of channels, except in the first block of the
    network, which also has no activation before it.

    Args:
      x: the features.
      config: the configuration of the run.
      filters: channels of the result.
      name: start of the names of the layers.
      halve: whether to halve the sides, by averages over 2x2 pixels.
      first: whether x is the image.
    """
    channels, shortcut = x.shape[-1], x
    if halve:
        shortcut = keras.layers.AveragePooling2D(2, name=f"{name}_shortcut_pool")(shortcut)
    if halve or filters != channels:
        shortcut = conv(shortcut, config, config.d_weights, filters, 1, f"{name}_shortcut")
    if not first:
        x = layers.d_norm_activation(x, config)
        x = layers.noise(x, config, f"{name}_noise1")
    hidden = filters if first else channels
    x = conv(x, config, config.d_weights, hidden, 3, f"{name}_conv1")
    x = layers.d_norm_activation(x, config, first=first)
    x = layers.noise(x, config, f"{name}_noise2")
    x = conv(x, config, config.d_weights, filters, 3, f"{name}_conv2")
    if halve:
        x = keras.layers.AveragePooling2D(2, name=f"{name}_pool")(x)
    return keras.layers.Add(name=f"{name}_sum")([x, shortcut])


def norm_relu(x: Tensor, config: Config, onehot: Tensor | None, name: str) -> Tensor:
    """Applies the generator's norm and ReLU to x [N, H, W, C].

    A batch norm has a scale and a shift for each class if `onehot` [N, classes] is given and
    --g_conditioning says so (de Vries et al., arXiv:1707.00683).
    """
    if config.g_norm != "batch":
        return keras.layers.ReLU()(norms.norm(x, config, config.g_norm))
    by_class = onehot is not None and config.g_conditioning in CONDITIONAL_NORM
    options: dict[str, Any] = dict(center=not by_class, scale=not by_class)
    x = norms.BatchNorm(momentum=config.bn_momentum, epsilon=EPSILON, name=name, **options)(x)
    if by_class:
        scales = keras.initializers.RandomNormal(1.0, 0.02, seed=randomness.initial_seed())
        for kind, start in (("scale", scales), ("shift", "zeros")):
            channels = x.shape[-1]
            rows = keras.layers.Dense(
                channels, use_bias=False, kernel_initializer=start, name=f"{name}_{kind}"
            )
            row = keras.layers.Reshape([1, 1, channels])(rows(onehot))
            x = (keras.layers.Multiply if kind == "scale" else keras.layers.Add)()([x, row])
    return keras.layers.ReLU()(x)


def conv(x: Tensor, config: Config, weights: str, filters: int, size: int, name: str) -> Tensor:
    """Applies a convolution of a block, 'same' padding.

    Args:
      x: the features [N, H, W, C].
      config: the configuration of the run.
      weights: normalisation of the kernel: plain, spectral or weight.
      filters: channels of the result.
      size: height and width of the kernel.
      name: name of the layer.
    """
    start = layers.initializer(config, GAIN if size == 3 else 1.0)
    options: dict[str, Any] = dict(kernel_initializer=start, name=name)
    if weights == "spectral":
        return SpectralConv2D(filters, size, norm=weights, **options)(x)
    if weights == "weight":
        return kernels.NormalizedConv2D(filters, size, norm=weights, **options)(x)
    return convolutions.Conv2D(filters, size, padding="same", **options)(x)
