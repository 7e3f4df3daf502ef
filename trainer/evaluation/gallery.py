"""The pictures of an evaluation: does it memorise, mix classes up, jump between images?"""

import logging

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.evaluation import pictures
from trainer.evaluation.evaluator import Evaluator, Findings
from trainer.generation import sampler
from trainer.generation.sampler import Sampler, save_picture
from trainer.metrics import distances, neighbours
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

SAMPLES = 10  # with their neighbours
NEIGHBOURS = 7
STRIPS = 10
STEPS = 10  # images of a strip, its ends included


def draw(
    run_dir: RunDir,
    config: Config,
    data: ImageSet,
    generator: keras.Model,
    ready: Evaluator,
    found: Findings,
) -> None:
    """Draws what there is to see of an evaluation into RUN_DIR/evaluation/.

    Args:
      run_dir: the run.
      config: its configuration.
      data: the reals.
      generator: what was evaluated.
      ready: how.
      found: what was found.
    """
    folder = run_dir.evaluation_pictures
    folder.mkdir(exist_ok=True)
    sampler = Sampler(config, generator)
    sheets = {"nearest.png": nearest(sampler, data, ready, found)}
    if ready.labels is not None and found.judged is not None:
        counts = distances.confusion(found.judged, ready.labels)
        sheets["confusion.png"] = pictures.confusion(counts, data.class_names)
    sheets["interpolation.png"] = interpolation(config, data, generator, ready.seed)
    for name, picture in sheets.items():
        save_picture(picture, folder / name)
        log.info("Drawn: %s", folder / name)


def nearest(sampler: Sampler, data: ImageSet, ready: Evaluator, found: Findings) -> Image.Image:
    """The first samples, each with the reals whose features are nearest to its own."""
    labels = None if ready.labels is None else ready.labels[:SAMPLES]
    drawn = np.concatenate(list(sampler.draw(SAMPLES, ready.seed, labels)))
    count = min(NEIGHBOURS, len(ready.reals))
    rows = neighbours.nearest(found.features.features[:SAMPLES], ready.reals.features, count)
    return pictures.neighbours(drawn, data.images[ready.reals.rows[rows]])


def interpolation(config: Config, data: ImageSet, generator: keras.Model, seed: int) -> Image.Image:
    """Strips from one latent to another, of one class each if the run is conditional."""
    first = tf.constant(0, tf.int64)
    ends = sampler.latents(config, tf.constant(seed, tf.int64), first).numpy()[: 2 * STRIPS]
    between = np.linspace(0.0, 1.0, STEPS, dtype=np.float32)
    turned = config.latent_distribution != "uniform"
    path = np.stack([_between(ends[:STRIPS], ends[STRIPS:], t, turned) for t in between], 1)
    labels = None
    if config.conditional:
        labels = np.repeat(np.arange(STRIPS) % data.shape.classes, STEPS)
        labels = tf.constant(labels, tf.int32)
    latents = tf.constant(path.reshape(-1, config.latent_dim), tf.float32)
    images = sampler.draw_bytes(config, generator, latents, labels).numpy()
    return pictures.enlarge(sampler.grid(images, STEPS))


def _between(start: np.ndarray, end: np.ndarray, t: float, turned: bool) -> np.ndarray:
    """Latents [N, Z] a share `t` of the way from one to another.

    Of normal latents along the arc, where all have the length that the generator knows;
    of uniform ones along the line.
    """
    if not turned:
        return (1 - t) * start + t * end
    lengths = np.linalg.norm(start, axis=1) * np.linalg.norm(end, axis=1)
    angle = np.arccos(np.clip((start * end).sum(1) / lengths, -1.0, 1.0))[:, None]
    angle = np.maximum(angle, 1e-4)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
