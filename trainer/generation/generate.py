"""Draws images from a run and writes them."""

import itertools
import logging
import math
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from trainer.config import Config
from trainer.errors import UsageError
from trainer.generation.sampler import Sampler, grid
from trainer.machine import replicas
from trainer.recipes import files
from trainer.recipes.networks import build_networks
from trainer.run_dir import selection
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)


def generate(
    run_dir: RunDir,
    config: Config,
    *,
    count: int,
    classes: list[int] | None,
    seed: int,
    out: Path,
    which: str = "",
) -> None:
    """Draws `count` images from a checkpoint of the run into `out`.

    Args:
      run_dir: the run.
      config: its configuration, with the devices to draw on.
      count: number of images.
      classes: to cycle through, if the run is conditional.
      seed: of the latents.
      out: FILE.png (one grid), FILE.npz, or a folder (one picture per image).
      which: the checkpoint, as of `selection.load`.

    Raises:
      TrainerError: if the run has no checkpoint, or `out` cannot be written.
    """
    replicas.create_replicas(config)
    generator, source = load_drawing(run_dir, config, which)
    labels = None
    if classes is not None:
        labels = np.fromiter(itertools.cycle(classes), np.int32, count)
    images = np.concatenate(list(Sampler(config, generator).draw(count, seed, labels)))
    try:
        write(out, images, labels, columns=_columns(count, classes))
    except OSError as error:
        raise UsageError(f"--out={out} cannot be written ({error.strerror}).") from None
    log.info("Drew %d images from %s into %s", count, source, out)


def load_drawing(run_dir: RunDir, config: Config, which: str = "") -> tuple[keras.Model, Path]:
    """The generator that a run draws from, and the checkpoint that it comes from.

    Args:
      run_dir: the run.
      config: its configuration.
      which: the checkpoint, as of `selection.load`.

    Raises:
      TrainerError: if the run has no checkpoint that holds it.
    """
    generator, name = build_drawing(run_dir, config)
    return generator, selection.load(run_dir, which, {name: generator})


def build_drawing(run_dir: RunDir, config: Config) -> tuple[keras.Model, str]:
    """The generator to read a run's into, and its name in checkpoints.

    It is the average where the run keeps one.
    """
    files.load_copies(run_dir.recipes, config)
    generator, _ = build_networks(config, run_dir.read_dataset().shape)
    return generator, "average" if config.ema_half_life_kimg else "generator"


def write(out: Path, images: np.ndarray, labels: np.ndarray | None, columns: int) -> None:
    """Writes uint8 [N, H, W, C] as one grid, as arrays or as a folder of pictures."""
    if out.suffix == ".npz":
        out.parent.mkdir(parents=True, exist_ok=True)
        if labels is None:
            np.savez_compressed(out, images=images)
        else:
            np.savez_compressed(out, images=images, labels=labels)
    elif out.suffix == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        grid(images, columns).save(out)
    else:
        out.mkdir(parents=True, exist_ok=True)
        digits = len(str(len(images) - 1))
        for number, image in enumerate(images):
            label = "" if labels is None else f"-class{labels[number]}"
            picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            picture.save(out / f"{number:0{digits}}{label}.png")


def _columns(count: int, classes: list[int] | None) -> int:
    """Columns of the grid: one per class where they fit, else a square."""
    if classes is not None and 1 < len(classes) <= 20 and count > len(classes):
        return len(classes)
    return math.ceil(math.sqrt(count))
