"""The real images that generated ones are held against, as a network sees them."""

import dataclasses
import logging
from collections.abc import Callable

import numpy as np

from trainer.data.images import ImageSet
from trainer.evaluation.features import FeatureNetwork, Features, extract, in_batches
from trainer.files import array_cache
from trainer.metrics.moments import Moments
from trainer.metrics.registry import Comparison

log = logging.getLogger(__name__)

VERSION = 1
MAX_IMAGES = 100_000  # of larger sets so many are taken, at random


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """Real images, in an order that is random and always the same.

    Attributes:
      split: what part of the data set they are.
      fingerprint: of that part.
      rows: [N] int64, their places in it.
      labels: [N] int32, their classes.
      features: [N, D] float32.
      moments: of all the features.
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
        interrupt: Callable[[], None] = lambda: None,
    ) -> Comparison:
        """Returns these reals beside generated images; arguments as of `Comparison`."""
        return Comparison(
            real_features=self.features,
            real_moments=self.moments,
            features=generated.features,
            logits=generated.logits,
            labels=labels,
            classifier_logits=classifier_logits,
            interrupt=interrupt,
        )


def load(
    data: ImageSet,
    split: str,
    network: FeatureNetwork,
    check: Callable[[], None] = lambda: None,
) -> Reference:
    """The features of real images, from the cache or made now.

    Args:
      data: the images.
      split: what part of its data set that is.
      network: what sees them.
      check: called now and then; raises to break off.
    """
    rows = np.random.default_rng(0).permutation(len(data))[:MAX_IMAGES]
    parts = (VERSION, data.fingerprint, split, data.shape.size, network.name, network.digest)
    name = array_cache.key("reference", (*parts, len(rows)))
    labels = data.labels[rows]
    if entry := array_cache.read(name):
        arrays, about = entry
        moments = Moments(arrays["features"].shape[1])
        moments.count = about["images"]
        moments.mean, moments.scatter = arrays["mean"], arrays["scatter"]
        return Reference(split, data.fingerprint, rows, labels, arrays["features"], moments)
    log.info(
        "Features of %s real images of the %s split, once (kept in the cache)",
        f"{len(rows):,}",
        split,
    )
    features = extract(network, in_batches(data.images[rows]), check).features
    moments = Moments.of(features)
    arrays = {"features": features, "mean": moments.mean, "scatter": moments.scatter}
    array_cache.write(name, arrays, {"images": len(rows), "split": split, "network": network.name})
    return Reference(split, data.fingerprint, rows, labels, features, moments)
