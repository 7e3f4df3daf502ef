"""The features of the real images that generated images are compared with."""

import dataclasses
import logging

import numpy as np

from trainer.config.image_size import size_of
from trainer.data.images import ImageSet
from trainer.evaluation.features import (
    CheckInterrupt,
    FeatureNetwork,
    Features,
    extract,
    in_batches,
    never_interrupt,
)
from trainer.files import array_cache
from trainer.metrics.moments import Moments
from trainer.metrics.registry import Comparison

log = logging.getLogger(__name__)

VERSION = 1
MAX_IMAGES = 100_000  # number of images taken at random from larger sets


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Real images in a random order that is always the same, and their features.

    Attributes:
      split: name of the split that the images belong to.
      fingerprint: hash of the images of that split.
      rows: [N] int64, indices of the images in the split.
      labels: [N] int32, classes of the images.
      features: [N, D] float32.
      moments: mean and covariance of all features.
    """

    split: str
    fingerprint: str
    rows: np.ndarray
    labels: np.ndarray
    features: np.ndarray
    moments: Moments

    def __len__(self) -> int:
        return len(self.features)

    def compare(
        self,
        generated: Features,
        labels: np.ndarray | None,
        classifier_logits: np.ndarray | None,
        check_interrupt: CheckInterrupt = never_interrupt,
    ) -> Comparison:
        """Returns these real images and generated ones; see `Comparison` for the arguments."""
        return Comparison(
            real_features=self.features,
            real_moments=self.moments,
            features=generated.features,
            logits=generated.logits,
            labels=labels,
            classifier_logits=classifier_logits,
            check_interrupt=check_interrupt,
        )


def load(
    data: ImageSet,
    split: str,
    network: FeatureNetwork,
    check_interrupt: CheckInterrupt = never_interrupt,
) -> Reference:
    """Returns the features of real images, from the cache or computed now.

    Args:
      data: the images.
      split: name of the split that the images belong to.
      network: the network that computes the features.
      check_interrupt: called before each batch; raises an exception to interrupt.
    """
    rows = np.random.default_rng(0).permutation(len(data))[:MAX_IMAGES]
    size = size_of(*data.shape.sides)
    parts = (VERSION, data.fingerprint, split, size, network.name, network.digest)
    name = array_cache.key("reference", (*parts, len(rows)))
    labels = data.labels[rows]
    if entry := array_cache.read(name):
        arrays, description = entry
        moments = Moments(arrays["features"].shape[1])
        moments.count = description["images"]
        moments.mean, moments.scatter = arrays["mean"], arrays["scatter"]
        return Reference(split, data.fingerprint, rows, labels, arrays["features"], moments)
    log.info(
        "Computing the features of %s real images of the %s split (cached for later evaluations)",
        f"{len(rows):,}",
        split,
    )
    features = extract(network, in_batches(data.images, rows), check_interrupt).features
    moments = Moments.of(features)
    arrays = {"features": features, "mean": moments.mean, "scatter": moments.scatter}
    array_cache.write(name, arrays, {"images": len(rows), "split": split, "network": network.name})
    return Reference(split, data.fingerprint, rows, labels, features, moments)
