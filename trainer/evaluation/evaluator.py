"""Draws images from a generator and measures their quality."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.data import form
from trainer.data.images import ImageSet
from trainer.errors import DataError, UsageError
from trainer.evaluation import classifier, inception, reference
from trainer.evaluation.features import (
    CheckInterrupt,
    FeatureNetwork,
    Features,
    extract_each,
    never_interrupt,
    on_background,
)
from trainer.evaluation.reference import Reference
from trainer.generation.sampler import Sampler
from trainer.metrics import registry
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

MIN_REALS = 6  # density and coverage need the fifth nearest neighbour of each image


@dataclasses.dataclass(frozen=True)
class EvaluationOptions:
    """The options of an evaluation.

    Attributes:
      features: "classifier", "inception", or "auto": inception if `inception_path` is given.
      inception_path: file of the Inception network, also in a bucket; "" for none.
      num_samples: number of images to draw.
      seed: seed of their latent vectors.
      inception_sha256: SHA-256 that the graph of the network must have; "" for any.
    """

    features: str
    inception_path: str
    num_samples: int
    seed: int
    inception_sha256: str = ""


@contextlib.contextmanager
def in_full_precision() -> Iterator[None]:
    """Disables TensorFloat-32, so that results on different devices are comparable."""
    was_enabled = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(was_enabled)


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationResult:
    """The result of an evaluation.

    Attributes:
      values: metrics by name, and the standard deviations of some as NAME_std.
      features: features of the generated images, in the order in which they were drawn.
      classifier_logits: [N, classes] float32, logits of the data set's classifier for the
        generated images; None without a classifier.
      secs: duration in seconds.
    """

    values: dict[str, float]
    features: Features
    classifier_logits: np.ndarray | None
    secs: float


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates generators of one run under the same conditions.

    Attributes:
      network: the network whose features are compared.
      classifier: the classifier of the data set that predicts the classes of images; None
        if it is not needed.
      reals: the real images to compare with.
      num_samples: number of images to draw.
      seed: seed of their latent vectors.
      labels: [num_samples] int32, the classes to request, which are as frequent as among
        the real images; None for an unconditional run.
      on_black: the network that sees transparent images on black, and the real images; None
        unless `network` sees them on white.
    """

    network: FeatureNetwork
    classifier: FeatureNetwork | None
    reals: Reference
    num_samples: int
    seed: int
    labels: np.ndarray | None
    on_black: tuple[FeatureNetwork, Reference] | None = None

    @in_full_precision()
    def evaluate(
        self, sampler: Sampler, check_interrupt: CheckInterrupt = never_interrupt
    ) -> EvaluationResult:
        """Draws images and computes their metrics.

        Args:
          sampler: draws the images.
          check_interrupt: called regularly; raises an exception to interrupt.
        """
        started = time.monotonic()
        batches = sampler.draw(self.num_samples, self.seed, self.labels)
        networks = [self.network, *(self.on_black or ())[:1]]
        if self.classifier is not None and self.classifier is not self.network:
            networks.append(self.classifier)
        outputs = extract_each(networks, batches, check_interrupt)
        logits = None if self.classifier is None else outputs[-1].logits
        comparison = self.reals.compare(outputs[0], self.labels, logits, check_interrupt)
        if self.on_black is not None:
            black = self.on_black[1].compare(outputs[1], None, None, check_interrupt)
            comparison = dataclasses.replace(comparison, on_black=black)
        values = registry.measure(comparison)
        return EvaluationResult(values, outputs[0], logits, time.monotonic() - started)

    def describe(self) -> dict[str, Any]:
        """Returns the conditions of the evaluation.

        Results are comparable only if their conditions are equal.
        """
        conditions = {
            "num_samples": self.num_samples,
            "reference_split": self.reals.split,
            "reference_images": len(self.reals),
            "reference_fingerprint": self.reals.fingerprint,
            "feature_network": self.network.name,
            "feature_hash": self.network.digest,
            "seed": self.seed,
        }
        if self.classifier is not None:
            conditions["classifier_hash"] = self.classifier.digest
            conditions["classifier_test_accuracy"] = self.classifier.details["test_accuracy"]
        return conditions


def check_features(config: Config, shape: ImageShape, features: str, inception_path: str) -> bool:
    """Returns whether to use Inception; see `EvaluationOptions` for the last two arguments.

    Raises:
      UsageError: if the requested features are not available.
    """
    if features == "inception" and not inception_path:
        raise UsageError(
            f"The features of Inception need --inception_path: the path of {inception.GRAPH}, or "
            f"of {inception.ARCHIVE} from {inception.ORIGIN}."
        )
    uses_inception = features == "inception" or (features == "auto" and bool(inception_path))
    if not uses_inception:
        classifier.check_labels(config, shape)
    return uses_inception


@in_full_precision()
def create_evaluator(
    config: Config,
    data: ImageSet,
    options: EvaluationOptions,
    check_interrupt: CheckInterrupt = never_interrupt,
) -> Evaluator:
    """Loads or trains the networks and computes the features of the real images.

    This takes a while at first use. Later calls use the cache.

    Args:
      config: the configuration of the run, with the split to compare with.
      data: the images of that split.
      options: what to draw and which features to compare.
      check_interrupt: called regularly; raises an exception to interrupt.

    Raises:
      UsageError: if the requested features are not available.
      DataError: if there are too few real images.
    """
    path = options.inception_path
    network = None
    if check_features(config, data.shape, options.features, path):
        network = inception.load(_local(path), path, options.inception_sha256)
    class_network = None
    if network is None or (config.conditional and data.shape.classes > 1):
        class_network = classifier.load(config, data, check_interrupt)
    network = network or class_network
    if network is None:
        raise RuntimeError("neither Inception nor a classifier was loaded")
    if len(data) < MIN_REALS:
        raise DataError(
            f"--split={config.split}: this split of {config.dataset} has {len(data)} images, but "
            f"an evaluation needs {MIN_REALS} or more. Use another split."
        )
    on_black = None
    if data.shape.channels == 4 and network is not class_network:
        black = on_background(network, 0, "black")
        on_black = (black, reference.load(data, config.split, black, check_interrupt))
        network = on_background(network, form.OPAQUE, "white")
    reals = reference.load(data, config.split, network, check_interrupt)
    labels = np.resize(reals.labels, options.num_samples) if config.conditional else None
    return Evaluator(
        network, class_network, reals, options.num_samples, options.seed, labels, on_black
    )


def _local(inception_path: str) -> str:
    """Returns the path on this machine; a file in a bucket is downloaded once."""
    if not is_bucket(inception_path):
        return inception_path
    # Imported late, because only buckets need its library.
    from trainer.storage import dataset_download

    folder = cache_folder("data")
    return str(
        dataset_download.fetch(inception_path, "inception_path", folder, lambda share, what: None)
    )
