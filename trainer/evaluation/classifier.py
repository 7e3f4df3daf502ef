"""A small classifier of the data set itself, trained at first use and kept in the cache.

Its features tell apart what matters in this data set, and cost little.  Numbers by one
classifier compare runs on one data set; with published numbers they do not compare.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.data import sources
from trainer.data.images import ImageSet
from trainer.errors import DataError, UsageError
from trainer.evaluation.features import FeatureNetwork, extract, in_batches
from trainer.files import array_cache

log = logging.getLogger(__name__)

VERSION = 1  # raise it when the same images would give another classifier
FEATURES = 128
IMAGES = {1: 240_000, 3: 400_000}  # to train on in all, by channels
MAX_EPOCHS = 25
BATCH = 128
LEARNING_RATE = 2e-3
MAX_SHIFT = 2  # pixels by which training images are moved about
MAX_SIDE = 64  # larger images are made smaller first
HELD_OUT = 10  # where there are no test images, every so many-th is kept to test on

Check = Callable[[], None]


def load(config: Config, data: ImageSet, check: Check = lambda: None) -> FeatureNetwork:
    """The classifier of a run's data set, from the cache or trained now.

    Args:
      config: the run.
      data: its images, of config.split.
      check: called now and then; raises to break off.

    Raises:
      UsageError: if the data have no classes.
    """
    check_labels(config, data.shape)
    training = data if config.split == "train" else _split(config, "train") or data
    budget = min(IMAGES[training.shape.channels], MAX_EPOCHS * len(training))
    name = array_cache.key("classifier", (VERSION, training.fingerprint, budget))
    network = build(training.shape)
    entry = array_cache.read(name)
    if entry is not None and _fits(network, entry[0]):
        weights, about = entry
        network.set_weights([weights[str(n)] for n in range(len(weights))])
    else:
        about = _train_and_test(network, config, training, budget, check)
        array_cache.write(name, {str(n): w for n, w in enumerate(network.get_weights())}, about)
    return _as_features(network, about)


def check_labels(config: Config, shape: ImageShape) -> None:
    """Raises a UsageError if the data have no classes."""
    if shape.classes < 2:
        raise UsageError(
            f"--dataset={config.dataset} has no classes for a classifier to learn: for images "
            "without labels there are the features of inception, with --inception_path."
        )


def build(shape: ImageShape) -> keras.Model:
    """Makes the network: images uint8 [N, H, W, C] -> features [N, FEATURES], logits [N, K].

    Its initial weights are the same each time, in float32 whatever the run trains in.
    """
    images = keras.Input([shape.size, shape.size, shape.channels], dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="unit")(images)
    side = shape.size
    if side > MAX_SIDE:
        side = MAX_SIDE
        x = keras.layers.Resizing(
            side, side, "bilinear", antialias=True, dtype="float32", name="smaller"
        )(x)
    filters, number = 32, 0
    while side > 8:
        x = _block(x, filters, number)
        side, filters, number = -(-side // 2), min(2 * filters, 128), number + 1
    if shape.channels == 3:  # colour comes with things harder to tell than digits
        x = _block(x, 128, number)
    x = keras.layers.Flatten(dtype="float32", name="classifier_flat")(x)
    x = keras.layers.Dense(
        FEATURES,
        use_bias=False,
        kernel_initializer=keras.initializers.HeNormal(seed=98),
        dtype="float32",
        name="classifier_dense",
    )(x)
    x = keras.layers.BatchNormalization(momentum=0.9, dtype="float32", name="classifier_norm")(x)
    features = keras.layers.ReLU(dtype="float32", name="features")(x)
    logits = keras.layers.Dense(
        shape.classes,
        kernel_initializer=keras.initializers.GlorotUniform(seed=99),
        dtype="float32",
        name="logits",
    )(features)
    return keras.Model(images, [features, logits], name="classifier")


def _block(x: Any, filters: int, number: int) -> Any:
    """A convolution, its norm and activation, at half the side."""
    x = keras.layers.Conv2D(
        filters,
        3,
        padding="same",
        use_bias=False,
        kernel_initializer=keras.initializers.HeNormal(seed=number),
        dtype="float32",
        name=f"classifier_conv_{number}",
    )(x)
    x = keras.layers.BatchNormalization(
        momentum=0.9, dtype="float32", name=f"classifier_norm_{number}"
    )(x)
    x = keras.layers.ReLU(dtype="float32", name=f"classifier_relu_{number}")(x)
    return keras.layers.MaxPooling2D(
        2, padding="same", dtype="float32", name=f"classifier_pool_{number}"
    )(x)


def train(network: keras.Model, data: ImageSet, budget: int, check: Check) -> None:
    """Trains on `budget` images, in an order and with shifts that are always the same."""
    steps = math.ceil(budget / BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.Adam(schedule, name="classifier_adam")
    optimizer.build(network.trainable_variables)
    with tf.device("CPU:0"):  # a GPU's memory is the run's
        images, labels = tf.constant(data.images), tf.constant(data.labels)
    side, reach = data.shape.size, min(MAX_SHIFT, data.shape.size // 8)

    @tf.function(autograph=False)
    def step(index: tf.Tensor, shift: tf.Tensor) -> None:
        """One update on the images of an index, all moved by one shift."""
        with tf.device("CPU:0"):
            batch, classes = tf.gather(images, index), tf.gather(labels, index)
        edges = [[0, 0], [reach, reach], [reach, reach], [0, 0]]
        batch = tf.pad(batch, edges, "SYMMETRIC")
        batch = batch[:, shift[0] : shift[0] + side, shift[1] : shift[1] + side]
        batch.set_shape([BATCH, side, side, data.shape.channels])
        with tf.GradientTape() as tape:
            _, logits = network(batch, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits))
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    generator = np.random.default_rng(0)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        check()
        while len(order) < BATCH:
            order = np.concatenate([order, generator.permutation(len(data))])
        index, order = order[:BATCH], order[BATCH:]
        step(tf.constant(index), tf.constant(generator.integers(0, 2 * reach + 1, 2)))


def _train_and_test(
    network: keras.Model, config: Config, training: ImageSet, budget: int, check: Check
) -> dict:
    """Trains the network; returns what there is to say of it."""
    tested = _split(config, "test")
    if tested is None or tested.shape != training.shape:
        rows = np.arange(len(training)) % HELD_OUT == HELD_OUT - 1
        rows[-1] = True  # one at least
        training, tested = _part(training, ~rows), _part(training, rows)
    log.info(
        "Training a classifier of %s for its features, once: %s images (kept in the cache)",
        config.dataset,
        f"{budget:,}",
    )
    started = time.monotonic()
    train(network, training, budget, check)
    found = extract(_as_features(network, {}), in_batches(tested.images), check)
    right = float(np.mean(np.argmax(found.logits, 1) == tested.labels))
    secs = time.monotonic() - started
    log.info(
        "It is right on %.2f%% of %d test images, after %.0f s", 100 * right, len(tested), secs
    )
    return {"test_accuracy": right, "test_images": len(tested), "trained_secs": round(secs, 1)}


def _split(config: Config, split: str) -> ImageSet | None:
    """Another split of the run's data set; None if it has no such."""
    try:
        return sources.load(config.replace(split=split, batch_size=1, devices="auto"))
    except DataError:
        return None


def _part(data: ImageSet, rows: np.ndarray) -> ImageSet:
    return ImageSet(data.images[rows], data.labels[rows], data.class_names)


def _fits(network: keras.Model, weights: dict[str, np.ndarray]) -> bool:
    shapes = [tuple(v.shape) for v in network.weights]
    return [weights[str(n)].shape for n in range(len(weights)) if str(n) in weights] == shapes


def _as_features(network: keras.Model, about: dict) -> FeatureNetwork:
    @tf.function(autograph=False)
    def judge(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features, logits = network(images, training=False)
        return features, logits

    return FeatureNetwork("classifier", digest(network.get_weights()), judge, about)


def digest(weights: Sequence[np.ndarray]) -> str:
    """A hash of weights, in their order."""
    total = hashlib.sha256()
    for array in weights:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]
