"""Draws images from a generator, and makes grids of them and the GIF of a run."""

import dataclasses
import functools
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.config import Config
from trainer.data.file_stores import printable
from trainer.data.form import convert, visible
from trainer.data.images import ImageSet
from trainer.files.atomic import replacing
from trainer.machine.replicas import Replicas
from trainer.models import randomness
from trainer.models.randomness import Draws

log = logging.getLogger(__name__)

BATCH = 100
GRID_ROWS = 100  # maximum number of classes in a grid
NAMED_CLASSES = 5  # maximum number of small classes that a warning names
GIF_FRAMES = 200  # maximum number of grids in a GIF
GIF_SECS = 12.0


class Sampler:
    """Draws images from a generator, which may be training meanwhile."""

    def __init__(
        self,
        config: Config,
        generator: keras.Model,
        replicas: Replicas | None = None,
        truncation: float | None = None,
    ) -> None:
        """Creates a sampler.

        Args:
          config: the configuration of the run.
          generator: the generator.
          replicas: the replicas on which the generator was created, which draw one batch
            each at a time; None to draw on one device.
          truncation: largest absolute value of a latent, for N(0, 1) alone; None for no limit.
        """
        self._conditional = config.conditional
        self._num_parallel = BATCH * (replicas.num_local_replicas if replicas else 1)

        def images(seed: tf.Tensor, start: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
            """Returns the images from number `start` on, a batch for each replica."""

            def batch(number: tf.Tensor | int) -> tf.Tensor:
                first = tf.cast(number * BATCH, tf.int64)
                batch_latents = latents(config, seed, start + first)
                if truncation is not None:
                    batch_latents = truncated(batch_latents, truncation)
                batch_labels = labels[first : first + BATCH]
                return draw_bytes(config, generator, batch_latents, batch_labels)

            return tf.concat(replicas.run_on_local_replicas(batch), 0) if replicas else batch(0)

        # A partial, because TensorFlow counts the traces of a function by its code, and would warn
        # of retracing when a program has several samplers.
        self._images = tf.function(functools.partial(images), autograph=False)

    def draw(self, count: int, seed: int, labels: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Draws `count` images in batches.

        Args:
          count: number of images.
          seed: seed of the latent vectors; image i depends only on the seed, i and its label.
          labels: [count] int, class of each image; None for an unconditional run.

        Yields:
          uint8 [B, H, W, C] with B <= BATCH, `count` images in total.

        Raises:
          ValueError: if labels are missing, or are given for an unconditional run.
        """
        if self._conditional != (labels is not None):
            raise ValueError("conditional generators need labels, and others take none")
        padded = np.zeros(-(-count // self._num_parallel) * self._num_parallel, np.int32)
        if labels is not None:
            padded[:count] = labels
        for start in range(0, count, self._num_parallel):
            batch_labels = padded[start : start + self._num_parallel]
            key = tf.constant(seed, tf.int64)
            images = self._images(key, tf.constant(start, tf.int64), tf.constant(batch_labels))
            images = images.numpy()[: count - start]
            for first in range(0, len(images), BATCH):
                yield images[first : first + BATCH]


def latents(config: Config, seed: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Returns the latent vectors of a batch of samples, [BATCH, latent_dim] float32.

    Args:
      config: the configuration of the run.
      seed: seed of the latent vectors, int64.
      start: index of the first sample, a multiple of BATCH, int64.
    """
    return randomness.latents(config, Draws(seed, start, BATCH, scope="samples"))


def truncated(latents: tf.Tensor, limit: float) -> tf.Tensor:
    """Maps values of N(0, 1) to N(0, 1) truncated to [-limit, limit], and keeps their order.

    Values nearer to 0 draw more typical images, which differ less (Brock et al., arXiv:1809.11096,
    section 3.1).  The map equates the distribution functions, so a seed draws similar images at
    every limit.
    """
    share = math.erf(limit / math.sqrt(2.0))
    mapped = math.sqrt(2.0) * tf.math.erfinv(share * tf.math.erf(latents / math.sqrt(2.0)))
    return tf.clip_by_value(mapped, -limit, limit)


def draw_bytes(
    config: Config, generator: keras.Model, latents: tf.Tensor, labels: tf.Tensor | None
) -> tf.Tensor:
    """Draws images uint8 [N, H, W, C].

    Args:
      config: the configuration of the run.
      generator: the generator.
      latents: latent vectors [N, latent_dim].
      labels: [N] int32, class of each image; not used by an unconditional run.
    """
    inputs = [latents, labels] if config.conditional else latents
    return to_bytes(generator(inputs, training=False), config.image_range)


def to_bytes(images: tf.Tensor, image_range: str) -> tf.Tensor:
    """Converts images in [-1, 1] ("tanh") or [0, 1] ("sigmoid") to uint8."""
    unit = (images + 1.0) / 2.0 if image_range == "tanh" else images
    return tf.cast(tf.round(tf.clip_by_value(unit, 0.0, 1.0) * 255.0), tf.uint8)


def grid(images: np.ndarray, columns: int) -> Image.Image:
    """Tiles training images [N, H, W, C] uint8 row by row into one picture."""
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = visible(images)
    sheet = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    return Image.fromarray(sheet[..., 0] if channels == 1 else sheet)


def grid_of_rows(rows: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Tiles each of `rows`, images [N <= columns, H, W, C] uint8, into one row of a picture.

    The remaining tiles of a row are black, or transparent if the images may be.
    """
    tiles = np.zeros((len(rows), columns, *rows[0].shape[1:]), np.uint8)
    for row, images in zip(tiles, rows, strict=True):
        row[: len(images)] = images
    return grid(tiles.reshape(-1, *tiles.shape[2:]), columns)


@dataclasses.dataclass(frozen=True)
class SampleSheet:
    """The sample grid of a run, with one row for each class if the run is conditional.

    Every grid uses the same latent vectors, so that grids show how training proceeds.

    Attributes:
      config: the configuration of the run.
      classes: number of classes of its data set.
    """

    config: Config
    classes: int

    @property
    def rows(self) -> int:
        """Number of rows in the grid."""
        if not self.config.conditional:
            return self.config.sample_grid
        return min(self.classes, GRID_ROWS)

    def labels(self) -> np.ndarray:
        """Returns the class of each image of the grid, [N] int32."""
        return np.repeat(np.arange(self.rows, dtype=np.int32), self.config.sample_grid)

    def fakes(self, sampler: Sampler) -> Image.Image:
        """Draws the grid with the current weights of the generator."""
        count = self.rows * self.config.sample_grid
        labels = self.labels() if self.config.conditional else None
        batches = sampler.draw(count, self.config.seed, labels)
        return grid(np.concatenate(list(batches)), self.config.sample_grid)

    def reals(self, data: ImageSet) -> Image.Image:
        """Returns a grid of real images with the same layout.

        Tiles for which there is no image, as in the row of a class with fewer images than
        columns, are black.
        """
        columns = self.config.sample_grid
        if not self.config.conditional:
            count = self.rows * columns
            spread = max(1, len(data) // count)  # data sets may be sorted by class
            chosen = data.images[: count * spread : spread]
            rows = [chosen[first : first + columns] for first in range(0, count, columns)]
            return grid_of_rows(rows, columns)
        found = (np.flatnonzero(data.labels == label)[:columns] for label in range(self.rows))
        return grid_of_rows([data.images[rows] for rows in found], columns)

    def warn_of_missing_reals(self, data: ImageSet, path: Path) -> None:
        """Logs a warning if the grid of real images, written to `path`, has black tiles."""
        columns = self.config.sample_grid
        if not self.config.conditional:
            tiles = self.rows * columns
            if len(data) < tiles:
                log.warning(
                    "The data set has %d images, fewer than the %d tiles of %s: the last tiles are "
                    "black.",
                    len(data),
                    tiles,
                    path,
                )
            return
        counts = np.bincount(data.labels, minlength=self.rows)[: self.rows]
        small = np.flatnonzero(counts < columns)
        if len(small):
            named = [
                f"{printable(data.class_names[k])} has {counts[k]}" for k in small[:NAMED_CLASSES]
            ]
            more = [f"{len(small) - NAMED_CLASSES} more"] if len(small) > NAMED_CLASSES else []
            log.warning(
                "Classes with fewer images than the %d columns of %s (--sample_grid): %s. The rest "
                "of their rows is black.",
                columns,
                path,
                ", ".join([*named, *more]),
            )

    def diversity(self, picture: Image.Image) -> float:
        """Returns how much the images of a grid differ, in levels of uint8.

        This is the standard deviation of a pixel over the images, averaged over all pixels.
        If the run is conditional and the grid shows several images of a class, it is computed
        within each class and averaged over the classes.
        """
        columns = self.config.sample_grid
        pixels = np.asarray(picture, np.float32)
        height, width = picture.height // self.rows, picture.width // columns
        tiles = pixels.reshape(self.rows, height, columns, width, -1)
        axes = (2,) if self.config.conditional and columns > 1 else (0, 2)
        return float(tiles.std(axis=axes).mean())


def save_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture atomically as PNG; logs a warning if it cannot be written."""
    try:
        with replacing(path) as scratch:
            picture.save(scratch, "PNG")
    except OSError as error:
        log.warning("%s cannot be written (%s).", path, error.strerror)


def sheet_path(folder: Path, kimg: float) -> Path:
    """Returns the path of the sample grid that was drawn after `kimg` thousand images."""
    return folder / f"fakes-{kimg:09.3f}.png"


def last_sheet(folder: Path, kimg: float) -> Path | None:
    """Returns the newest sample grid up to `kimg` thousand images; None if there is none."""
    limit = sheet_path(folder, kimg).name
    return max((path for path in folder.glob("fakes-*.png") if path.name <= limit), default=None)


def frames(folder: Path) -> list[Path]:
    """Returns the sample grids in a folder that the GIF shows, in order.

    If there are more than GIF_FRAMES, every second, third, ... and the last are selected.
    """
    paths = sorted(p for p in folder.glob("fakes-*.png") if re.search(r"-[\d.]+\.png$", p.name))
    stride = -(-len(paths) // GIF_FRAMES)
    return [*paths[:-1:stride], paths[-1]]


def write_gif(folder: Path, target: Path) -> None:
    """Writes a GIF of the sample grids in a folder; the last frame lasts two seconds.

    Transparent pixels become white, because those of a GIF are either transparent or not.
    """
    palette = Image.Palette.ADAPTIVE
    opened = (Image.open(path) for path in frames(folder))
    pictures = [
        (convert(picture, 3) if picture.mode == "RGBA" else picture).convert("P", palette=palette)
        for picture in opened
    ]
    if not pictures:  # none could be written
        return
    pause = int(np.clip(1000 * GIF_SECS / len(pictures), 40, 500))
    durations = [pause] * (len(pictures) - 1) + [2000]
    with replacing(target) as scratch:
        pictures[0].save(
            scratch, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0,
            optimize=False,
        )  # fmt: skip
