"""Images drawn from a generator, grids of them, and the GIF of a run's grids."""

import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from trainer import randomness
from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.files.atomic import replacing
from trainer.machine.replicas import Replicas
from trainer.randomness import Draws

log = logging.getLogger(__name__)

BATCH = 100
GRID_ROWS = 100  # classes shown at most
GIF_FRAMES = 200  # grids in a GIF at most
GIF_SECS = 12.0


class Sampler:
    """Draws images from a generator, which may train on meanwhile."""

    def __init__(
        self, config: Config, generator: keras.Model, replicas: Replicas | None = None
    ) -> None:
        """Draws from a generator.

        Args:
          config: of its run.
          generator: the generator.
          devices: whose replicas, which must have the generator, draw a batch each at a
            time; None for one device.
        """
        self._conditional = config.conditional
        self._at_once = BATCH * (replicas.num_local_replicas if replicas else 1)

        @tf.function(autograph=False)
        def images(seed: tf.Tensor, start: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            def batch(number: tf.Tensor | int) -> tf.Tensor:
                first = tf.cast(number * BATCH, tf.int64)
                ours = latents(config, seed, start + first)
                return draw_bytes(config, generator, ours, labels[first : first + BATCH])

            return tf.concat(replicas.run_on_local_replicas(batch), 0) if replicas else batch(0)

        self._images = images

    def draw(self, count: int, seed: int, labels: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Draws `count` images in batches.

        Args:
          count: number of images.
          seed: image i is a function of the seed, i and its label.
          labels: [count] int, the class of each image, if the run is conditional.

        Yields:
          uint8 [B, H, W, C], `count` in all.
        """
        if self._conditional != (labels is not None):
            raise ValueError("labels are for conditional generators, and those need them")
        padded = np.zeros(-(-count // self._at_once) * self._at_once, np.int32)
        if labels is not None:
            padded[:count] = labels
        for start in range(0, count, self._at_once):
            asked = padded[start : start + self._at_once]
            key = tf.constant(seed, tf.int64)
            images = self._images(key, tf.constant(start, tf.int64), tf.constant(asked))
            images = images.numpy()[: count - start]
            for first in range(0, len(images), BATCH):
                yield images[first : first + BATCH]


def latents(config: Config, seed: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """The latents of a batch of samples, [BATCH, latent_dim] float32.

    Args:
      config: the run.
      seed: of the samples, int64.
      start: number of the first one, a multiple of BATCH, int64.
    """
    return randomness.latents(config, Draws(seed, start, BATCH, scope="samples"))


def draw_bytes(
    config: Config, generator: keras.Model, latents: tf.Tensor, labels: tf.Tensor | None
) -> tf.Tensor:
    """Images uint8 [N, H, W, C] of latents [N, latent_dim] and, if conditional, labels [N]."""
    inputs = [latents, labels] if config.conditional else latents
    return to_bytes(generator(inputs, training=False), config.image_range)


def to_bytes(images: tf.Tensor, image_range: str) -> tf.Tensor:
    """Images in [-1, 1] ("tanh") or [0, 1] ("sigmoid") to uint8."""
    unit = (images + 1.0) / 2.0 if image_range == "tanh" else images
    return tf.cast(tf.round(tf.clip_by_value(unit, 0.0, 1.0) * 255.0), tf.uint8)


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """Tiles [N, H, W, C] uint8 row by row into one picture."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = images
    sheet = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


@dataclasses.dataclass(frozen=True)
class SampleSheet:
    """A run's grid of samples: the same latents every time, a row per class if conditional."""

    config: Config
    classes: int

    @property
    def rows(self) -> int:
        """Rows of the grid."""
        if not self.config.conditional:
            return self.config.sample_grid
        return min(self.classes, GRID_ROWS)

    def labels(self) -> np.ndarray:
        """The class of each image of the grid, [N] int32."""
        return np.repeat(np.arange(self.rows, dtype=np.int32), self.config.sample_grid)

    def fakes(self, sampler: Sampler) -> Image.Image:
        """The grid as the generator draws it now."""
        count = self.rows * self.config.sample_grid
        labels = self.labels() if self.config.conditional else None
        batches = sampler.draw(count, self.config.seed, labels)
        return grid(np.concatenate(list(batches)), self.config.sample_grid)

    def reals(self, data: ImageSet) -> Image.Image:
        """A grid of the same form from the data."""
        columns = self.config.sample_grid
        if not self.config.conditional:
            count = self.rows * columns
            spread = max(1, len(data) // count)  # a set may be sorted by class
            return grid(data.images[::spread][:count], columns)
        empty = np.zeros_like(data.images[:columns])
        rows = []
        for label in range(self.rows):
            chosen = data.images[data.labels == label][:columns]
            rows.append(np.concatenate([chosen, empty[len(chosen) :]]))
        return grid(np.concatenate(rows), columns)

    def diversity(self, picture: Image.Image) -> float:
        """How much the images of a grid differ: their standard deviation over a pixel's values.

        It is taken among images of a class if the run is conditional (and the grid shows
        more than one), and averaged over classes and pixels; in bytes.
        """
        columns = self.config.sample_grid
        pixels = np.asarray(picture, np.float32)
        side = picture.width // columns
        tiles = pixels.reshape(self.rows, side, columns, side, -1)
        among = (2,) if self.config.conditional and columns > 1 else (0, 2)
        return float(tiles.std(axis=among).mean())


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture whole, or says that the disk does not take it."""
    try:
        with replacing(path) as scratch:
            picture.save(scratch, "PNG")
    except OSError as error:
        log.warning("%s cannot be written (%s).", path, error.strerror)


def sheet_path(folder: Path, kimg: float) -> Path:
    """Where the grid drawn after so many images goes."""
    return folder / f"fakes-{kimg:09.3f}.png"


def last_sheet(folder: Path, kimg: float) -> Path | None:
    """The newest grid in a folder drawn after no more than so many images, if there is one."""
    limit = sheet_path(folder, kimg).name
    return max((path for path in folder.glob("fakes-*.png") if path.name <= limit), default=None)


def frames(folder: Path) -> list[Path]:
    """The grids in a folder that make the GIF, in order.

    Of more than GIF_FRAMES every second, third, ... is taken, and the last.
    """
    paths = sorted(p for p in folder.glob("fakes-*.png") if re.search(r"-[\d.]+\.png$", p.name))
    stride = -(-len(paths) // GIF_FRAMES)
    return [*paths[:-1:stride], paths[-1]]


def write_gif(folder: Path, target: Path) -> None:
    """Makes a GIF of the grids in a folder; the last frame stays for two seconds."""
    palette = Image.Palette.ADAPTIVE
    pictures = [Image.open(path).convert("P", palette=palette) for path in frames(folder)]
    pause = int(np.clip(1000 * GIF_SECS / len(pictures), 40, 500))
    durations = [pause] * (len(pictures) - 1) + [2000]
    with replacing(target) as scratch:
        pictures[0].save(
            scratch, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0,
            optimize=False,
        )  # fmt: skip
