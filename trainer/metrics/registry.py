"""The metrics of generated images, with one entry for each metric.

To add a metric, add an entry to METRICS.  Evaluations, the log, TensorBoard, the `status`
command and `--best_metric` all read this table.  This module does not import TensorFlow.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainer.metrics import distances, neighbours
from trainer.metrics.moments import Moments

INCEPTION_SCORE_SPLITS = 10  # as in published scores; one split below 1,000 images each


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
      check_interrupt: called between steps; raises an exception to interrupt the evaluation.
      on_black: the same images on a black background, if they are transparent and the network
        sees them on white; None otherwise.
    """

    real_features: np.ndarray
    real_moments: Moments
    features: np.ndarray
    logits: np.ndarray
    labels: np.ndarray | None = None
    classifier_logits: np.ndarray | None = None
    check_interrupt: Callable[[], None] = lambda: None
    on_black: "Comparison | None" = None

    @functools.cached_property
    def equal_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Equally many real and generated features, for metrics that depend on their number."""
        count = min(len(self.features), len(self.real_features))
        return self.real_features[:count], self.features[:count]

    @functools.cached_property
    def manifold(self) -> neighbours.Manifold:
        """Precision, recall, density and coverage, which use the same distances."""
        real, fake = self.equal_counts
        return neighbours.manifold(real, fake, check_interrupt=self.check_interrupt)


Value = float | tuple[float, float] | None


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric of generated images.

    Attributes:
      compute: returns the value, or the value and its standard deviation, or None if the
        metric does not apply.
      lower_is_better: the direction of improvement.
      has_spread: whether `compute` may return a standard deviation, named NAME_std.
      needs_labels: whether the metric applies to conditional generators only.
      needs_alpha: whether the metric applies to images with alpha, and Inception, only.
    """

    compute: Callable[[Comparison], Value]
    lower_is_better: bool = False
    has_spread: bool = False
    needs_labels: bool = False
    needs_alpha: bool = False

    def is_better(self, value: float, other: float) -> bool:
        """Returns whether `value` is better than `other`."""
        return value < other if self.lower_is_better else value > other


def _fid(images: Comparison) -> Value:
    return distances.fid(images.real_moments, Moments.of(images.features))


def _kid(images: Comparison) -> Value:
    return distances.kid(*images.equal_counts, check_interrupt=images.check_interrupt)


def _inception_score(images: Comparison) -> Value:
    splits = INCEPTION_SCORE_SPLITS if len(images.logits) >= 1000 * INCEPTION_SCORE_SPLITS else 1
    score, spread = distances.inception_score(images.logits, splits)
    return (score, spread) if splits > 1 else score


def _conditional_accuracy(images: Comparison) -> Value:
    if images.labels is None or images.classifier_logits is None:
        return None
    return distances.conditional_accuracy(images.classifier_logits, images.labels)


def _on_black(compute: Callable[[Comparison], Value]) -> Callable[[Comparison], Value]:
    """Returns the metric of images on black, which applies to images with alpha only."""
    return lambda images: compute(images.on_black) if images.on_black is not None else None


METRICS = {
    "fid": Metric(_fid, lower_is_better=True),
    "kid": Metric(_kid, lower_is_better=True, has_spread=True),
    "inception_score": Metric(_inception_score, has_spread=True),
    "precision": Metric(lambda images: images.manifold.precision),
    "recall": Metric(lambda images: images.manifold.recall),
    "density": Metric(lambda images: images.manifold.density),
    "coverage": Metric(lambda images: images.manifold.coverage),
    "conditional_accuracy": Metric(_conditional_accuracy, needs_labels=True),
    # Inception sees transparent images on white, and for these metrics on black.
    "fid_on_black": Metric(_on_black(_fid), lower_is_better=True, needs_alpha=True),
    "kid_on_black": Metric(
        _on_black(_kid), lower_is_better=True, has_spread=True, needs_alpha=True
    ),
}


def measure(images: Comparison) -> dict[str, float]:
    """Returns all applicable metrics by name, and their standard deviations as NAME_std."""
    values = {}
    for name, metric in METRICS.items():
        images.check_interrupt()
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


def format_value(name: str, values: Mapping[str, float]) -> str:
    """Returns the value of a metric as text, with its standard deviation if there is one."""
    spread = values.get(f"{name}_std") if METRICS[name].has_spread else None
    return f"{values[name]:.4g}" + ("" if spread is None else f" +- {spread:.2g}")


def format_metrics(values: Mapping[str, float]) -> str:
    """Returns the metrics that `measure` returned as one line of text."""
    return "  ".join(f"{name} {format_value(name, values)}" for name in METRICS if name in values)
