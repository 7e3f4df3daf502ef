"""Draws the pictures of an evaluation: nearest neighbours, confusion matrix, interpolations.

They show whether the generator memorizes images, confuses classes or changes abruptly between
latent vectors.
"""

import logging

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.evaluation import pictures
from trainer.evaluation.evaluator import EvaluationResult, Evaluator
from trainer.generation import sampler
from trainer.generation.sampler import Sampler, save_picture
from trainer.metrics import distances, neighbours
from trainer.run_dir.directory import RunDir

log = logging.getLogger(__name__)

SAMPLES = 10  # number of samples shown with their neighbours
NEIGHBOURS = 7
STRIPS = 10
STEPS = 10  # number of images in a strip, including both ends


def draw(
    results: RunDir,
    config: Config,
    data: ImageSet,
    generator: keras.Model,
    evaluator: Evaluator,
    result: EvaluationResult,
) -> None:
    """Draws the pictures of an evaluation into the folder evaluation/.

    Args:
      results: the run directory, or another folder for the results.
      config: the configuration of the run.
      data: the real images.
      generator: the generator that was evaluated.
      evaluator: the evaluator that was used.
      result: its result.
    """
    folder = results.evaluation_pictures
    folder.mkdir(exist_ok=True)
    sampler = Sampler(config, generator)
    sheets = {"nearest.png": nearest(sampler, data, evaluator, result)}
    if evaluator.labels is not None and result.classifier_logits is not None:
        counts = distances.confusion(result.classifier_logits, evaluator.labels)
        sheets["confusion.png"] = pictures.confusion(counts, data.class_names)
    sheets["interpolation.png"] = interpolation(config, data, generator, evaluator.seed)
    for name, picture in sheets.items():
        save_picture(picture, folder / name)
        log.info("Wrote %s", folder / name)


def nearest(
    sampler: Sampler, data: ImageSet, evaluator: Evaluator, result: EvaluationResult
) -> Image.Image:
    """Draws the first samples, each with the real images whose features are nearest to it."""
    labels = None if evaluator.labels is None else evaluator.labels[:SAMPLES]
    drawn = np.concatenate(list(sampler.draw(SAMPLES, evaluator.seed, labels)))
    count = min(NEIGHBOURS, len(evaluator.reals))
    rows = neighbours.nearest(result.features.features[:SAMPLES], evaluator.reals.features, count)
    return pictures.neighbours(drawn, data.images[evaluator.reals.rows[rows]])


def interpolation(config: Config, data: ImageSet, generator: keras.Model, seed: int) -> Image.Image:
    """Draws strips of images between two latent vectors, one class per strip if conditional."""
    first = tf.constant(0, tf.int64)
    ends = sampler.latents(config, tf.constant(seed, tf.int64), first).numpy()[: 2 * STRIPS]
    between = np.linspace(0.0, 1.0, STEPS, dtype=np.float32)
    spherical = config.latent_distribution != "uniform"
    path = np.stack([_between(ends[:STRIPS], ends[STRIPS:], t, spherical) for t in between], 1)
    labels = None
    if config.conditional:
        labels = np.repeat(np.arange(STRIPS) % data.shape.classes, STEPS)
        labels = tf.constant(labels, tf.int32)
    latents = tf.constant(path.reshape(-1, config.latent_dim), tf.float32)
    images = sampler.draw_bytes(config, generator, latents, labels).numpy()
    return pictures.enlarge(sampler.grid(images, STEPS))


def _between(start: np.ndarray, end: np.ndarray, t: float, spherical: bool) -> np.ndarray:
    """Returns the latent vectors [N, Z] at the fraction `t` of the way from `start` to `end`.

    Normal latent vectors are interpolated along the arc (`spherical`), which keeps the lengths
    that the generator was trained on.  Uniform ones are interpolated along the line.
    """
    if not spherical:
        return (1 - t) * start + t * end
    lengths = np.linalg.norm(start, axis=1) * np.linalg.norm(end, axis=1)
    angle = np.arccos(np.clip((start * end).sum(1) / lengths, -1.0, 1.0))[:, None]
    angle = np.maximum(angle, 1e-4)
    return (np.sin((1 - t) * angle) * start + np.sin(t * angle) * end) / np.sin(angle)
