"""Residual blocks around a grouped convolution, without normalisation.

Huang et al., arXiv:2501.05441, section 3 and appendix.  The scale of the initial values, which
falls with the number of blocks, replaces the norms (Zhang et al., Fixup, arXiv:1901.09321).
"""

import dataclasses
from typing import Any, TypeAlias

import keras

from trainer.models import convolutions, randomness
from trainer.models.filtering import Downsample, Upsample
from trainer.models.grouped_convolution import GroupedConv2D

Tensor: TypeAlias = Any  # a symbolic keras.KerasTensor

SLOPE = 0.2
# Factor of the initial values that keeps the variance after a leaky ReLU of this slope.
GAIN = (2.0 / (1.0 + SLOPE**2)) ** 0.5


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of a network, one for each side, from the smallest to that of the images.

    The smallest stage computes in float32; the others follow the number format of the run.

    Attributes:
      sides: height and width of the smallest stage in pixels.
      widths: number of channels of each stage.
      blocks: residual blocks of each stage.
      expansion: channels inside a block per channel outside of it.
      group_size: channels of a group of the 3x3 convolutions.
    """

    sides: tuple[int, int]
    widths: tuple[int, ...]
    blocks: int = 2
    expansion: int = 2
    group_size: int = 16

    @property
    def pixels(self) -> int:
        """Number of pixels of the smallest stage."""
        return self.sides[0] * self.sides[1]

    @property
    def gain(self) -> float:
        """Factor of the initial values of the first two convolutions of each block."""
        return GAIN * (self.blocks * len(self.widths)) ** -0.25

    def dtype(self, stage: int) -> str | None:
        """Returns the data type policy of a stage; None for that of the run."""
        return None if stage else "float32"


def up_stage(x: Tensor, stages: Stages, stage: int) -> Tensor:
    """Applies a stage of the generator; all but the first one double the side."""
    width, dtype = stages.widths[stage], stages.dtype(stage)
    if stage:
        x = _to_width(x, width, f"stage{stage}_width", dtype)
        x = Upsample("zeros", name=f"stage{stage}_up", dtype=dtype)(x)
    return _blocks(x, stages, stage)


def down_stage(x: Tensor, stages: Stages, stage: int) -> Tensor:
    """Applies a stage of the discriminator; all but the last one, stage 0, halve the side."""
    x = _blocks(x, stages, stage)
    if stage:
        dtype = stages.dtype(stage)
        x = Downsample(name=f"stage{stage}_down", dtype=dtype)(x)
        x = _to_width(x, stages.widths[stage - 1], f"stage{stage}_width", dtype)
    return x


def pointwise(
    x: Tensor, filters: int, name: str, dtype: str | None = None, stddev: float | None = None
) -> Tensor:
    """Applies a 1x1 convolution without a bias.

    Args:
      x: the features [N, H, W, C].
      filters: channels of the result.
      name: name of the layer.
      dtype: data type policy; None for that of the run.
      stddev: standard deviation of the initial values; None for C^(-1/2).
    """
    stddev = x.shape[-1] ** -0.5 if stddev is None else stddev
    return convolutions.Conv2D(
        filters, 1, padding="same", use_bias=False, kernel_initializer=normal(stddev), name=name,
        dtype=dtype,
    )(x)  # fmt: skip


def normal(stddev: float) -> keras.initializers.Initializer:
    """Returns an initializer N(0, stddev^2) with its own seed; zeros if `stddev` is 0."""
    if not stddev:
        return keras.initializers.Zeros()
    return keras.initializers.RandomNormal(stddev=stddev, seed=randomness.initial_seed())


def _to_width(x: Tensor, width: int, name: str, dtype: str | None) -> Tensor:
    return x if x.shape[-1] == width else pointwise(x, width, name, dtype)


def _blocks(x: Tensor, stages: Stages, stage: int) -> Tensor:
    for k in range(stages.blocks):
        x = _block(x, stages, f"stage{stage}_block{k}", stages.dtype(stage))
    return x


def _block(x: Tensor, stages: Stages, name: str, dtype: str | None) -> Tensor:
    """Applies 1x1, grouped 3x3 and 1x1 convolutions and adds x [N, H, W, C]."""
    width = x.shape[-1]
    inner, group = width * stages.expansion, stages.group_size
    y = x
    for kind, size, groups, fan_in in (
        (convolutions.Conv2D, 1, 1, width),
        (GroupedConv2D, 3, inner // group, 9 * group),
    ):
        y = kind(
            inner, size, padding="same", groups=groups, name=f"{name}_conv{size}",
            kernel_initializer=normal(stages.gain * fan_in**-0.5), dtype=dtype,
        )(y)  # fmt: skip
        y = keras.layers.LeakyReLU(SLOPE, dtype=dtype, name=f"{name}_activation{size}")(y)
    y = pointwise(y, width, f"{name}_out", dtype, stddev=0.0)
    return keras.layers.Add(dtype=dtype, name=f"{name}_sum")([x, y])
