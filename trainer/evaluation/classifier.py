"""A small classifier of the data set, trained at first use and cached.

Its features distinguish the classes of this data set and are cheap to compute.  Results with the
same classifier are comparable between runs on one data set, but not with published results.
"""

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.data import sources
from trainer.data.images import ImageSet
from trainer.errors import DataError, UsageError
from trainer.evaluation.features import (
    CheckInterrupt,
    FeatureNetwork,
    extract,
    in_batches,
    never_interrupt,
)
from trainer.files import array_cache
from trainer.files.shards import MappedImages

log = logging.getLogger(__name__)

VERSION = 1  # to be increased when the same images would result in another classifier
FEATURES = 128
IMAGES = {1: 240_000, 3: 400_000, 4: 400_000}  # number of images to train on, by channels
MAX_EPOCHS = 25
BATCH = 128
LEARNING_RATE = 2e-3
MAX_SHIFT = 2  # pixels by which training images are shifted at most
MAX_SIDE = 64  # the longer side to which larger images are resized
HELD_OUT = 10  # without a test split, every 10th training image is held out for the test
# Below these a warning says that FIDs mean little.  A classifier that errs on 3 of 10 images does
# not separate the classes; the standard error of an accuracy on 100 images is up to 0.05.
MIN_TEST_ACCURACY = 0.7
MIN_TEST_IMAGES = 100


def load(
    config: Config, data: ImageSet, check_interrupt: CheckInterrupt = never_interrupt
) -> FeatureNetwork:
    """Returns the classifier of the data set of a run, from the cache or trained now.

    Args:
      config: the configuration of the run.
      data: the images of config.split.
      check_interrupt: called before each training step; raises an exception to interrupt.

    Raises:
      UsageError: if the data set has no classes.
    """
    check_labels(config, data.shape)
    training = data if config.split == "train" else _split(config, "train") or data
    budget = min(IMAGES[training.shape.channels], MAX_EPOCHS * len(training))
    name = array_cache.key("classifier", (VERSION, training.fingerprint, budget))
    network = build(training.shape)
    entry = array_cache.read(name)
    if entry is not None and _fits(network, entry[0]):
        weights, details = entry
        network.set_weights([weights[str(n)] for n in range(len(weights))])
    else:
        details = _train_and_test(network, config, training, budget, check_interrupt)
        array_cache.write(name, {str(n): w for n, w in enumerate(network.get_weights())}, details)
    warn_if_weak(config.dataset, details)
    return create_feature_network(network, details)


def warn_if_weak(dataset: str, details: Mapping[str, Any]) -> None:
    """Logs a warning if a classifier is too weak, or hardly tested, to judge images by.

    Args:
      dataset: the data set of the classifier, for the message.
      details: its `test_accuracy` in [0, 1] and its number of `test_images`.
    """
    accuracy, images = details["test_accuracy"], details["test_images"]
    if accuracy >= MIN_TEST_ACCURACY and images >= MIN_TEST_IMAGES:
        return
    log.warning(
        "The classifier of --dataset=%s is right on %.0f%% of %d test images. Below %.0f%%, or on "
        "fewer than %d images, what is measured by it, such as FID, means little. Add images to "
        "each class, or compare by the features of Inception, with --inception_path.",
        dataset,
        100 * accuracy,
        images,
        100 * MIN_TEST_ACCURACY,
        MIN_TEST_IMAGES,
    )


def check_labels(config: Config, shape: ImageShape) -> None:
    """Raises a UsageError if the data set has fewer than two classes."""
    if shape.classes < 2:
        raise UsageError(
            f"--dataset={config.dataset} has no classes, so no classifier can be trained on it. "
            "Use the features of Inception instead, with --inception_path."
        )


def build(shape: ImageShape) -> keras.Model:
    """Builds the network: images uint8 [N, H, W, C] -> features [N, FEATURES], logits [N, K].

    Its initial weights are always the same.  It computes in float32, whatever the precision of
    the run.
    """
    images = keras.Input([*shape.sides, shape.channels], dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="unit")(images)
    side = max(shape.sides)
    if side > MAX_SIDE:
        height, width = (max(1, round(part * MAX_SIDE / side)) for part in shape.sides)
        side = MAX_SIDE
        x = keras.layers.Resizing(
            height, width, "bilinear", antialias=True, dtype="float32", name="smaller"
        )(x)
    filters, number = 32, 0
    while side > 8:
        x = _block(x, filters, number)
        side, filters, number = -(-side // 2), min(2 * filters, 128), number + 1
    if shape.channels > 1:  # RGB data sets are harder to classify than digits
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
    """Applies a convolution, batch norm and ReLU, and halves height and width."""
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


def train(
    network: keras.Model, data: ImageSet, budget: int, check_interrupt: CheckInterrupt
) -> None:
    """Trains on `budget` images, with an order and shifts that are always the same."""
    steps = math.ceil(budget / BATCH)
    schedule = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    optimizer = keras.optimizers.Adam(schedule, name="classifier_adam")
    optimizer.build(network.trainable_variables)
    with tf.device("CPU:0"):  # leaves the memory of the GPU to the run
        labels = tf.constant(data.labels)
        images = None if isinstance(data.images, MappedImages) else tf.constant(data.images)
    height, width = data.shape.sides
    max_shift = min(MAX_SHIFT, height // 8, width // 8)

    @tf.function(autograph=False)
    def step(index: tf.Tensor, shift: tf.Tensor) -> None:
        """Updates the network once, on the images at `index`, which share one random shift."""
        with tf.device("CPU:0"):
            if images is None:
                batch = tf.numpy_function(data.images.__getitem__, [index], tf.uint8)
                batch = tf.ensure_shape(batch, [BATCH, *data.images.shape[1:]])
            else:
                batch = tf.gather(images, index)
            classes = tf.gather(labels, index)
        edges = [[0, 0], [max_shift, max_shift], [max_shift, max_shift], [0, 0]]
        batch = tf.pad(batch, edges, "SYMMETRIC")
        batch = batch[:, shift[0] : shift[0] + height, shift[1] : shift[1] + width]
        batch.set_shape([BATCH, height, width, data.shape.channels])
        with tf.GradientTape() as tape:
            _, logits = network(batch, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits))
        weights = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    generator = np.random.default_rng(0)
    order = np.empty(0, np.int64)
    for _ in range(steps):
        check_interrupt()
        while len(order) < BATCH:
            order = np.concatenate([order, generator.permutation(len(data))])
        index, order = order[:BATCH], order[BATCH:]
        step(tf.constant(index), tf.constant(generator.integers(0, 2 * max_shift + 1, 2)))


def _train_and_test(
    network: keras.Model,
    config: Config,
    training: ImageSet,
    budget: int,
    check_interrupt: CheckInterrupt,
) -> dict[str, Any]:
    """Trains the network; returns its test accuracy and other details."""
    test, origin = _split(config, "test"), "of the test split"
    if test is None or test.shape != training.shape:
        rows = np.arange(len(training)) % HELD_OUT == HELD_OUT - 1
        rows[-1] = True  # holds out at least one image
        training, test = training.part(~rows), training.part(rows)
        origin = "held out from training, because the data set has no suitable test split"
    log.info(
        "Training a classifier of the classes of --dataset=%s, whose features compare images, on "
        "%s images, each seen about %d times (kept for later evaluations). It is tested on %s "
        "images %s.",
        config.dataset,
        f"{len(training):,}",
        round(budget / len(training)),
        f"{len(test):,}",
        origin,
    )
    started = time.monotonic()
    train(network, training, budget, check_interrupt)
    feature_network = create_feature_network(network, {})
    outputs = extract(feature_network, in_batches(test.images), check_interrupt)
    accuracy = float(np.mean(np.argmax(outputs.logits, 1) == test.labels))
    secs = time.monotonic() - started
    log.info(
        "Trained the classifier: %.2f%% accuracy on %d test images, in %.0f s",
        100 * accuracy,
        len(test),
        secs,
    )
    return {"test_accuracy": accuracy, "test_images": len(test), "trained_secs": round(secs, 1)}


def _split(config: Config, split: str) -> ImageSet | None:
    """Returns another split of the data set of the run; None if there is no such split."""
    try:
        return sources.load(config.replace(split=split, batch_size=1, devices="auto"))
    except DataError:
        return None


def _fits(network: keras.Model, weights: dict[str, np.ndarray]) -> bool:
    """Returns whether cached weights have the shapes of those of the network."""
    shapes = [tuple(v.shape) for v in network.weights]
    return [weights[str(n)].shape for n in range(len(weights)) if str(n) in weights] == shapes


def create_feature_network(network: keras.Model, details: dict[str, Any]) -> FeatureNetwork:
    """Returns the feature network that applies a classifier in inference mode."""

    @tf.function(autograph=False)
    def apply(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        features, logits = network(images, training=False)
        return features, logits

    return FeatureNetwork("classifier", digest(network.get_weights()), apply, details)


def digest(weights: Sequence[np.ndarray]) -> str:
    """Returns a hash of weights, which depends on their order."""
    total = hashlib.sha256()
    for array in weights:
        total.update(f"{array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:16]
