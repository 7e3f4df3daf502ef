"""The form of a recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from trainer.config import Config, image_size
from trainer.config.dataset import ImageShape
from trainer.errors import UsageError

if TYPE_CHECKING:
    import keras

    Network = Callable[[Config, ImageShape], keras.Model]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The networks of a published system, and its settings that differ from the defaults.

    The file of a recipe assigns an instance to the name RECIPE, and defines the functions
    `generator(config, shape)` and `discriminator(config, shape)`, which build Keras models.

    Attributes:
      source: where the system was published.
      architecture: its networks, in a sentence.
      updates: its training loop, in a sentence.
      differences: how the recipe differs from its source and why, a sentence each.
      networks: settings that belong to its networks.
      loop: settings of the data, the objective, the updates and the intervals.
      by_dataset: further settings for the named data sets.
      by_size: further settings by the side of images in pixels: those of the largest size that does
        not exceed the shorter side.
      hyperparameters: names and defaults of its networks' own hyper-parameters, which are read
        as `config.hyperparameter_values[name]`.  Each is an int, a float, a bool or a str.  A
        hyper-parameter that is added later must default to what the networks did before.
      fully_connected: whether the networks have no convolutions.  Their operations are small
        and use half of the CPU cores each, because two of them run at a time.
      side_multiple: number of which the sides of its networks' images are multiples; 0 if the
        networks have as many stages as the shorter side can be halved. Images of other sizes are
        the middle of larger ones.
      image_sizes: the only sizes of squares in pixels that its networks support; empty for all.
      summary: a description in one line, the first one of the file's docstring; set when the
        file is loaded.
      generator: builds the generator; the file's function, set when the file is loaded.
      discriminator: builds the discriminator, likewise.
    """

    source: str
    architecture: str
    updates: str
    differences: tuple[str, ...] = ()
    networks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loop: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    by_dataset: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    by_size: Mapping[int, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fully_connected: bool = False
    side_multiple: int = 4
    image_sizes: tuple[int, ...] = ()
    summary: str = ""
    generator: Network | None = None
    discriminator: Network | None = None

    def with_networks(self, generator: Network, discriminator: Network) -> Recipe:
        """Returns a copy with the functions that build the networks."""
        return dataclasses.replace(self, generator=generator, discriminator=discriminator)

    def network_sides(self, config: Config, sides: tuple[int, int], name: str) -> tuple[int, int]:
        """Returns the height and width for which networks are built that make images of a size.

        Args:
          config: the configuration of the run.
          sides: height and width of the images in pixels.
          name: how messages name the recipe.

        Raises:
          UsageError: if the networks cannot make such images.
        """
        shown = image_size.size_of(*sides)
        if min(sides) < 8:
            raise UsageError(f"--image_size={shown}: the sides of images must be at least 8.")
        if self.image_sizes and shown not in self.image_sizes:
            sizes = " or ".join(str(known) for known in self.image_sizes)
            raise UsageError(
                f"--image_size={shown}: the networks of {name} make {sizes} pixels only. Use "
                f"--image_size={self.image_sizes[0]}, or --networks of another recipe."
            )
        if config.uneven_sides == "keep":
            if any(side % 4 for side in sides):
                raise UsageError(
                    f"--image_size={shown}: the image size must be a multiple of 4 with "
                    "--uneven_sides=keep."
                )
            return sides
        if self.side_multiple:
            return image_size.with_multiple(*sides, self.side_multiple)
        return image_size.with_stages(*sides)
