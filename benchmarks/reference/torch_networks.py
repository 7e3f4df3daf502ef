"""The recipes' networks in PyTorch, with as many weights in each layer.

Padding differs from TensorFlow's "same" where that is asymmetric; all layers' sizes are equal.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from trainer.config import Config

Layers = list[tuple[int, int, int]]  # filters, kernel size and stride of each layer


class ConditionalNorm(nn.Module):
    """Batch normalization with a scale and a shift for each class."""

    def __init__(self, config: Config, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, 1e-3, 1 - config.bn_momentum, affine=False)
        self.scale, self.shift = nn.Embedding(classes, channels), nn.Embedding(classes, channels)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Normalizes images [N, C, H, W] with labels [N]."""
        scale, shift = (e(labels).to(x.dtype)[:, :, None, None] for e in (self.scale, self.shift))
        return torch.addcmul(shift, self.norm(x), scale)


class Generator(nn.Module):
    """Maps latents [N, Z] and labels [N] to images [N, C, H, W] in the image range.

    `first` is the channels-first shape to which the output of the dense layer is reshaped.
    In multi-layer perceptrons it is a vector, and the last layer makes images.
    """

    def __init__(
        self, config: Config, classes: int, first: Sequence[int], layers: Sequence[nn.Module]
    ) -> None:
        super().__init__()
        self.config, self.classes, self.first = config, classes, first
        inputs = config.latent_dim
        if config.conditional and config.g_conditioning == "multiply":
            self.embedding = nn.Embedding(classes, inputs)
            nn.init.normal_(self.embedding.weight, 1, 0.5)
        elif config.conditional:
            inputs += classes
        units = torch.Size(first).numel()
        self.dense = nn.Linear(inputs, units, bias=config.networks != "dcgan")
        self.layers = nn.ModuleList(layers)

    def forward(self, latents: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns generated images."""
        if self.config.conditional and self.config.g_conditioning == "multiply":
            latents = latents * self.embedding(labels)
        elif self.config.conditional:
            onehot = nn.functional.one_hot(labels, self.classes).to(latents.dtype)
            latents = torch.cat([latents, onehot], 1)
        x = self.dense(latents).unflatten(1, self.first)
        for layer in self.layers:
            x = layer(x, labels) if isinstance(layer, ConditionalNorm) else layer(x)
        return x.tanh() if self.config.image_range == "tanh" else x.sigmoid()


class Discriminator(nn.Module):
    """Maps images [N, C, H, W] and labels [N] to logits [N] float32."""

    def __init__(
        self,
        config: Config,
        classes: int,
        image: Sequence[int],
        layers: Sequence[nn.Module],
        features: int,
    ) -> None:
        super().__init__()
        self.config, self.image = config, image
        self.layers = nn.Sequential(*layers)
        self.logit = _normalized(config, nn.Linear(features, 1))
        if config.conditional and config.d_conditioning == "multiply":
            self.embedding = nn.Embedding(classes, torch.Size(image).numel())
            nn.init.normal_(self.embedding.weight, 1, 0.5)
        elif config.conditional:
            self.embedding = _normalized(config, nn.Embedding(classes, features))

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images."""
        if self.config.conditional and self.config.d_conditioning == "multiply":
            images = images * self.embedding(labels).unflatten(1, self.image)
        features = self.layers(images)
        verdict = self.logit(features).squeeze(1).float()
        if self.config.conditional and self.config.d_conditioning == "projection":
            verdict = verdict + (features.float() * self.embedding(labels)).sum(1)
        return verdict


class PixelSum(nn.Module):
    """Maps [N, C, H, W] to its sums over the pixels, [N, C]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the sums."""
        return x.sum((2, 3))


def build(
    config: Config, side: int, channels: int, classes: int
) -> tuple[Generator, Discriminator]:
    """Returns the generator and the discriminator of `config.networks`."""
    make = {"mlp": _mlp, "mlp-small": _mlp}.get(config.networks, _convolutional)
    networks = make(config, side, channels, classes)
    if config.initializer == "normal":
        for network in networks:
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                    nn.init.normal_(layer.weight, 0, 0.02)
    return networks


def _mlp(config: Config, side: int, channels: int, classes: int) -> tuple[Generator, Discriminator]:
    small, image = config.networks == "mlp-small", (channels, side, side)
    g = [nn.LeakyReLU(0.2, inplace=True)]
    g += [nn.BatchNorm1d(256, 1e-3, 1 - config.bn_momentum)] if small else []
    for before, after in ((256, 512), (512, 1024)):
        norm = nn.BatchNorm1d(after, 1e-3, 1 - config.bn_momentum)
        # An activation may work in place on a norm's output, but a norm needs its input later.
        then = [nn.LeakyReLU(0.2, inplace=True), norm] if small else [norm, nn.LeakyReLU(0.2, True)]
        g += [nn.Linear(before, after), *then]
    pixels = torch.Size(image).numel()
    g += [nn.Linear(1024, pixels), nn.Unflatten(1, image)]
    units = (pixels, 512, 256) if small else (pixels, 1024, 512, 256)
    d = [nn.Flatten()]
    for before, after in itertools.pairwise(units):
        d += [nn.Linear(before, after), nn.LeakyReLU(0.2, inplace=True)]
    return Generator(config, classes, [256], g), Discriminator(config, classes, image, d, 256)


def _convolutional(
    config: Config, side: int, channels: int, classes: int
) -> tuple[Generator, Discriminator]:
    first, up, down = _layers_of(config, side, channels)
    g = _generator_layers(config, classes, first[0], up)
    d, features = _discriminator_layers(config, side, channels, down)
    return (
        Generator(config, classes, first, g),
        Discriminator(config, classes, (channels, side, side), d, features),
    )


def _layers_of(
    config: Config, side: int, channels: int
) -> tuple[tuple[int, int, int], Layers, Layers]:
    """Returns G's first shape, G's layers and D's layers."""
    quarter = side // 4
    if config.networks == "dcgan-sigmoid":
        up = [(128, 5, 2), (64, 5, 2), (32, 5, 1), (channels, 5, 1)]
        down = [(32, 5, 2), (64, 5, 2), (128, 5, 2), (256, 5, 1)]
        return (128, quarter, quarter), up, down
    if config.networks == "dcgan-kstep":
        up = [(256, 3, 2), (128, 3, 2), (channels, 3, 1)]
        return (256, quarter, quarter), up, [(256, 3, 2), (128, 3, 2)]
    if config.networks == "cgan":
        up = [(128, 3, 2), (64, 3, 1), (channels, 3, 2)]
        return (256, quarter, quarter), up, [(32, 3, 2), (64, 3, 2), (128, 3, 2)]
    if config.networks == "dcgan-studiogan":
        up = [(256, 4, 2), (128, 4, 2), (64, 4, 2), (channels, 3, 1)]
        down = [(count, *kind) for count in (64, 128, 256) for kind in ((3, 1), (4, 2))]
        return (512, 4, 4), up, [*down, (512, 3, 1)]
    ups = 0
    while (side >> ups) % 2 == 0 and side >> ups >= 8:
        ups += 1
    filters = [min(512, 32 << k) for k in range(ups, 0, -1)]
    up = [(count, 4, 2) for count in [*filters[1:], channels]]
    size, down = side, []
    while size > 4:
        down.append((32 << len(down), 4, 2))
        size = -(-size // 2)
    return (filters[0], side >> ups, side >> ups), up, down


def _generator_layers(config: Config, classes: int, inputs: int, up: Layers) -> list[nn.Module]:
    layers: list[nn.Module] = []
    by_class = config.conditional and config.g_conditioning == "batchnorm"
    slope = {"cgan": 0.01, "dcgan-kstep": 0.3}.get(config.networks, 0.0)

    def norm_and_activation(count: int) -> None:
        if by_class:
            layers.append(ConditionalNorm(config, count, classes))
        elif config.g_norm == "batch":
            layers.append(nn.BatchNorm2d(count, 1e-3, 1 - config.bn_momentum))
        layers.append(nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU(inplace=True))

    # Norms come before each layer, or after each layer but the last.
    before = config.networks in ("dcgan-sigmoid", "dcgan")
    for k, (count, kernel, stride) in enumerate(up):
        last = k == len(up) - 1
        if before:
            norm_and_activation(inputs)
        if config.networks == "dcgan-studiogan" and last:
            layers.append(nn.Conv2d(inputs, count, kernel, padding="same"))
        else:
            pad = (kernel - stride + 1) // 2
            extra = 2 * pad + stride - kernel
            bias = last or config.networks != "dcgan"
            layers.append(nn.ConvTranspose2d(inputs, count, kernel, stride, pad, extra, bias=bias))
        if not before and not last:
            norm_and_activation(count)
        inputs = count
    return layers


def _discriminator_layers(
    config: Config, side: int, inputs: int, down: Layers
) -> tuple[list[nn.Module], int]:
    layers: list[nn.Module] = []
    studiogan = config.networks == "dcgan-studiogan"

    def activation(inplace: bool = True) -> nn.Module:
        if config.d_activation == "relu":
            return nn.ReLU(inplace)
        return nn.LeakyReLU(config.d_slope, inplace)

    for k, (count, kernel, stride) in enumerate(down):
        if config.networks == "dcgan-sigmoid":
            layers.append(activation(inplace=k > 0))  # must not change the input image
        after = -(-side // stride)
        pad = next(p for p in range(kernel) if (side + 2 * p - kernel) // stride + 1 == after)
        layers.append(_normalized(config, nn.Conv2d(inputs, count, kernel, stride, pad)))
        if config.networks != "dcgan-sigmoid":
            if config.d_norm == "batch" and (k or studiogan):
                layers.append(nn.BatchNorm2d(count, 1e-3, 1 - config.bn_momentum))
            layers.append(activation())
        inputs, side = count, after
    if studiogan:
        return [*layers, PixelSum()], inputs
    layers.append(nn.Flatten())
    if config.networks == "dcgan-kstep":
        layers += [nn.Linear(inputs * side * side, 64), activation(), nn.Dropout(0.2)]
        return layers, 64
    return layers, inputs * side * side


def _normalized(config: Config, layer: nn.Module) -> nn.Module:
    return spectral_norm(layer) if config.d_weights == "spectral" else layer
