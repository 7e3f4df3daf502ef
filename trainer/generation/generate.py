"""Draws images from a checkpoint of a run and writes them."""

import dataclasses
import itertools
import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from trainer.config import Config
from trainer.data.form import picture_of, visible
from trainer.errors import UsageError
from trainer.generation.sampler import GRID_ROWS, Sampler, grid, grid_of_rows
from trainer.machine import replicas
from trainer.recipes import files
from trainer.recipes.networks import build_networks
from trainer.run_dir import selection
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

MAX_NAME = 40  # characters of the name of a class in a file name


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """The images to draw.

    Attributes:
      count: number of images.
      classes: classes to cycle through; None for an unconditional run.
      seed: seed of the latent vectors.
      truncation: largest absolute value of a latent; None for no limit.
    """

    count: int
    classes: list[int] | None
    seed: int
    truncation: float | None = None


def draw(
    run_dir: RunDir, config: Config, options: GenerationOptions, which: str = ""
) -> tuple[np.ndarray, np.ndarray | None, Path]:
    """Draws images from a checkpoint of a run.

    Args:
      run_dir: the run directory.
      config: the configuration of the run, with the device to draw on.
      options: the images to draw.
      which: the checkpoint, as for `selection.load`.

    Returns:
      The training images uint8 [N, H, W, C], their classes [N] int32 or None for an unconditional
      run, and the path of the checkpoint.

    Raises:
      TrainerError: if the checkpoint cannot be loaded, or the latents are not N(0, 1) and thus
        cannot be truncated.
    """
    if options.truncation is not None and config.latent_distribution != "normal":
        raise UsageError(
            f"--truncation={options.truncation:g} applies to latents from N(0, 1). This run has "
            f"--latent_distribution={config.latent_distribution}. Omit the flag."
        )
    replicas.create_replicas(config)
    generator, source = load_generator(run_dir, config, which)
    labels = None
    if options.classes is not None:
        labels = np.fromiter(itertools.cycle(options.classes), np.int32, options.count)
    sampler = Sampler(config, generator, truncation=options.truncation)
    batches = sampler.draw(options.count, options.seed, labels)
    return np.concatenate(list(batches)), labels, source


def draw_visible(
    run_dir: RunDir, config: Config, options: GenerationOptions, which: str = ""
) -> np.ndarray:
    """Draws images as `draw` does, uint8 [N, H, W, C], whose colours no alpha multiplies."""
    return visible(draw(run_dir, config, options, which)[0])


def generate(
    run_dir: RunDir, config: Config, options: GenerationOptions, out: Path, which: str = ""
) -> None:
    """Draws images from a checkpoint of a run and writes them to `out`.

    Args:
      run_dir: the run directory.
      config: the configuration of the run, with the device to draw on.
      options: the images to draw.
      out: FILE.png (one grid), FILE.npz, or a folder (one picture per image).
      which: the checkpoint, as for `selection.load`.

    Raises:
      TrainerError: if the checkpoint cannot be loaded, or `out` cannot be written.
    """
    images, labels, source = draw(run_dir, config, options, which)
    try:
        write_images(out, images, labels, options.classes, run_dir.read_dataset().class_names)
    except OSError as error:
        raise UsageError(
            f"--out={out} cannot be written ({error.strerror}). Choose another path."
        ) from None
    log.info("Drew %d images from %s and wrote them to %s", options.count, source, out)


def load_generator(run_dir: RunDir, config: Config, which: str = "") -> tuple[keras.Model, Path]:
    """Returns the generator that a run draws from, and the path of its checkpoint.

    Args:
      run_dir: the run directory.
      config: the configuration of the run.
      which: the checkpoint, as for `selection.load`.

    Raises:
      TrainerError: if the checkpoint cannot be loaded.
    """
    generator, name = build_generator(run_dir, config)
    return generator, selection.load(run_dir, which, {name: generator})


def build_generator(run_dir: RunDir, config: Config) -> tuple[keras.Model, str]:
    """Returns an untrained generator, and the name in checkpoints of the weights to load.

    The name is "average" if the run keeps an exponential moving average of the weights, and
    "generator" if it does not.
    """
    files.load_copies(run_dir.recipes, config)
    generator, _ = build_networks(config, run_dir.read_dataset().shape)
    return generator, "average" if config.ema_half_life_kimg else "generator"


def write_images(
    out: Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    classes: Sequence[int] | None,
    class_names: Sequence[str],
) -> None:
    """Writes images as one grid, as arrays or as a folder of pictures.

    Args:
      out: FILE.png, FILE.npz or a folder.
      images: training images uint8 [N, H, W, C], with alpha premultiplied if they have it.
      labels: [N] int32, class of each image; None for an unconditional run.
      classes: the classes that the labels cycle through, or None.
      class_names: names of all classes, which the names of pictures in a folder contain.

    Raises:
      OSError: if the output cannot be written.
    """
    if out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        if labels is None:
            np.savez_compressed(out, images=visible(images))
        else:
            np.savez_compressed(out, images=visible(images), labels=labels)
    elif out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        arrange(images, classes).save(out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        digits = len(str(len(images) - 1))
        for number, image in enumerate(images):
            label = "" if labels is None else f"-{_in_file_name(labels[number], class_names)}"
            picture_of(visible(image)).save(out / f"{number:0{digits}}{label}.png")


def _in_file_name(label: int, class_names: Sequence[str]) -> str:
    """Returns the name of a class as part of a file name; "class3" if it is a number or empty."""
    name = re.sub(r"[^\w.-]+", "_", class_names[label]).strip("_")[:MAX_NAME]
    return name if name and not name.isdecimal() else f"class{label}"


def arrange(images: np.ndarray, classes: Sequence[int] | None) -> Image.Image:
    """Tiles images whose labels cycle through `classes` into one picture.

    As in the grids of training, each class is a row.  The picture is square instead if there are
    fewer than two classes or more than GRID_ROWS, or no more images than classes.  Remaining tiles
    are black.

    Args:
      images: uint8 [N, H, W, C].
      classes: the class of each of the first images, or None.
    """
    rows = 1 if classes is None else len(classes)
    if 1 < rows <= GRID_ROWS and len(images) > rows:
        return grid_of_rows([images[k::rows] for k in range(rows)], -(-len(images) // rows))
    return grid(images, math.ceil(math.sqrt(len(images))))
