"""The metrics of generated images, one entry each.

To add a metric, add an entry to METRICS.  Evaluations, the record of a run, TensorBoard, the
status command and `--best_metric` all read this table.  No TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from trainer.metrics import distances, neighbours
from trainer.metrics.moments import Moments

INCEPTION_SCORE_SPLITS = 10  # as published, where each split has 1,000 images


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """Generated images and the real images that they are compared with.

    Attributes:
      real_features: [M, D] float32.
      real_moments: mean and covariance of the features of all real images.
      features: [N, D] float32, of the generated images by the same network.
      logits: [N, K] float32, of the generated images by the same network.
      labels: [N] int, the requested classes; None for an unconditional generator.
      classifier_logits: [N, classes] float32, by a classifier of the data set; None without one.
      interrupt: called between steps; raises an exception to interrupt the evaluation.
    """

    real_features: np.ndarray
    real_moments: Moments
    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray | None = None
    classifier_logits: np.ndarray | None = None
    interrupt: Callable[[], None] = lambda: None

    @functools.cached_property
    def equal_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """As many real as generated features, for metrics that depend on their density."""
        count = min(len(self.features), len(self.real_features))
        return self.real_features[:count], self.features[:count]

    @functools.cached_property
    def manifold(self) -> neighbours.Manifold:
        """Precision, recall, density and coverage, which share their distances."""
        real, fake = self.equal_counts
        return neighbours.manifold(real, fake, check=self.interrupt)


Value = float | tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of generated images.

    Attributes:
      compute: returns the value, or the value and its standard deviation, or None if the
        metric does not apply.
      lower_is_better: the direction of improvement.
      has_spread: whether `compute` may return a standard deviation, named NAME_std.
    """

    compute: Callable[[Comparison], Value]
    lower_is_better: bool = False
    has_spread: bool = False

    def is_better(self, value: float, other: float) -> bool:
        """Returns whether `value` is better than `other`."""
        return value < other if self.lower_is_better else value > other


def _fid(images: Comparison) -> Value:
    return distances.fid(images.real_moments, Moments.of(images.features))


def _kid(images: Comparison) -> Value:
    return distances.kid(*images.equal_counts, check=images.interrupt)


def _inception_score(images: Comparison) -> Value:
    splits = INCEPTION_SCORE_SPLITS if len(images.logits) >= 1000 * INCEPTION_SCORE_SPLITS else 1
    score, spread = distances.inception_score(images.logits, splits)
    return (score, spread) if splits > 1 else score


def _conditional_accuracy(images: Comparison) -> Value:
    if images.labels is None or images.classifier_logits is None:
        return None
    return distances.conditional_accuracy(images.classifier_logits, images.labels)


METRICS = {
    "fid": Metric(_fid, lower_is_better=True),
    "kid": Metric(_kid, lower_is_better=True, has_spread=True),
    "inception_score": Metric(_inception_score, has_spread=True),
    "precision": Metric(lambda images: images.manifold.precision),
    "recall": Metric(lambda images: images.manifold.recall),
    "density": Metric(lambda images: images.manifold.density),
    "coverage": Metric(lambda images: images.manifold.coverage),
    "conditional_accuracy": Metric(_conditional_accuracy),
}


def measure(images: Comparison) -> dict[str, float]:
    """Returns every metric that applies by its name, and its standard deviation as NAME_std."""
    values = {}
    for name, metric in METRICS.items():
        images.interrupt()
        value = metric.compute(images)
        if isinstance(value, tuple):
            values[name], values[f"{name}_std"] = value
        elif value is not None:
            values[name] = value
    return values


def column_names() -> Sequence[str]:
    """Returns the names of all values that `measure` may return."""
    spreads = [f"{name}_std" for name, metric in METRICS.items() if metric.has_spread]
    return [*METRICS, *spreads]
