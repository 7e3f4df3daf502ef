"""Draws images from a generator and measures how good they are."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.data.images import ImageSet
from trainer.errors import DataError, UsageError
from trainer.evaluation import classifier, inception, reference
from trainer.evaluation.features import FeatureNetwork, Features, extract_each
from trainer.evaluation.reference import Reference
from trainer.generation.sampler import Sampler
from trainer.metrics import registry
from trainer.storage.address import is_bucket
from trainer.storage.location import cache_folder

Check = Callable[[], None]
MIN_REALS = 6  # metrics go by an image's fifth neighbour


@contextlib.contextmanager
def in_full_precision() -> Iterator[None]:
    """Products of float32 in float32, also on GPUs that would round them: numbers compare."""
    rounded = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(rounded)


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """What an evaluation found.

    Attributes:
      values: the metrics by name, with the spreads of some.
      features: of the images drawn, in their order.
      judged: a classifier's logits of them, [N, classes], if there is one.
      secs: how long it took.
    """

    values: dict[str, float]
    features: Features
    judged: np.ndarray | None
    secs: float


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Everything that evaluations of one run have in common.

    Attributes:
      network: by whose features images are compared.
      judge: the classifier that says what images show, if the data have classes.
      reals: what generated images are held against.
      num_samples: images to draw.
      seed: of their latents.
      labels: [num_samples] int32, the classes to ask for, if the run is conditional; as
        frequent as among the reals.
    """

    network: FeatureNetwork
    judge: FeatureNetwork | None
    reals: Reference
    num_samples: int
    seed: int
    labels: np.ndarray | None

    @in_full_precision()
    def evaluate(self, sampler: Sampler, check: Check = lambda: None) -> Findings:
        """Draws the images and measures them; `check` raises to break off."""
        started = time.monotonic()
        batches = sampler.draw(self.num_samples, self.seed, self.labels)
        networks = [self.network]
        if self.judge is not None and self.judge is not self.network:
            networks.append(self.judge)
        found = extract_each(networks, batches, check)
        judged = None if self.judge is None else found[-1].logits
        values = registry.measure(self.reals.compare(found[0], self.labels, judged, check))
        return Findings(values, found[0], judged, time.monotonic() - started)

    def describe(self) -> dict[str, Any]:
        """What numbers depend on, besides the generator: only equals compare."""
        described = {
            "num_samples": self.num_samples,
            "reference_split": self.reals.split,
            "reference_images": len(self.reals),
            "reference_fingerprint": self.reals.fingerprint,
            "feature_network": self.network.name,
            "feature_hash": self.network.digest,
            "seed": self.seed,
        }
        if self.judge is not None:
            described["classifier_hash"] = self.judge.digest
            described["classifier_test_accuracy"] = self.judge.about["test_accuracy"]
        return described


def check_features(config: Config, shape: ImageShape, features: str, inception_path: str) -> bool:
    """Whether to go by inception; arguments as of `prepare`.

    Raises:
      UsageError: if the features asked for cannot be had.
    """
    if features == "inception" and not inception_path:
        raise UsageError(
            f"The features of inception need --inception_path: {inception.GRAPH}, or "
            f"{inception.ARCHIVE} from {inception.ORIGIN}."
        )
    by_inception = features == "inception" or (features == "auto" and bool(inception_path))
    if not by_inception:
        classifier.check_labels(config, shape)
    return by_inception


@in_full_precision()
def prepare(
    config: Config,
    data: ImageSet,
    *,
    features: str,
    inception_path: str,
    num_samples: int,
    seed: int,
    check: Check,
) -> Evaluator:
    """Gets the networks and the reals ready, which at first use takes a while.

    Args:
      config: the run, with the split that is the reference.
      data: the images of that split.
      features: "classifier", "inception", or "auto": inception where its file is given.
      inception_path: the file of inception; "" for none.
      num_samples: images to draw.
      seed: of their latents.
      check: called now and then; raises to break off.

    Raises:
      UsageError: if the features cannot be had.
    """
    by_inception = check_features(config, data.shape, features, inception_path)
    network = None
    if by_inception:
        network = inception.load(_local(inception_path), shown=inception_path)
    judge = None
    if network is None or (config.conditional and data.shape.classes > 1):
        judge = classifier.load(config, data, check)
    network = network or judge
    if network is None:
        raise RuntimeError("neither inception nor a classifier is there")
    if len(data) < MIN_REALS:
        raise DataError(
            f"--split={config.split}: {config.dataset} has {len(data)} images there, and quality "
            f"is measured against {MIN_REALS} or more."
        )
    reals = reference.load(data, config.split, network, check)
    labels = np.resize(reals.labels, num_samples) if config.conditional else None
    return Evaluator(network, judge, reals, num_samples, seed, labels)


def _local(inception_path: str) -> str:
    """The file of inception on this machine; one in a bucket is downloaded once."""
    if not is_bucket(inception_path):
        return inception_path
    from trainer.storage import (
        dataset_download,  # late, as the library is: only where there is a bucket
    )

    folder = cache_folder("data")
    return str(
        dataset_download.fetch(inception_path, "inception_path", folder, lambda share, what: None)
    )
