"""All metrics of a set of images against the reals."""

from collections.abc import Callable

import numpy as np

from trainer.evaluation.reference import Reference
from trainer.metrics import distances, neighbours
from trainer.metrics.features import Features
from trainer.metrics.moments import Moments

LESS_IS_BETTER = ("fid", "kid")
SPLITS = 10  # of the Inception Score, where each has its thousand images


def measure(
    reference: Reference,
    found: Features,
    asked: np.ndarray | None,
    judged: np.ndarray | None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """The metrics of generated images by their names, with the spreads of some.

    FID is against all reals of the reference; KID and what goes by neighbours takes as
    many images as reals, for it depends on how close images lie.

    Args:
      reference: the reals.
      found: what the same network says of the images.
      asked: [N] the classes asked for, of a conditional generator.
      judged: [N, classes] a classifier's logits of the images, if there is one.
      check: called now and then; raises to break off.
    """
    count = min(len(found), len(reference))
    reals, fakes = reference.features[:count], found.features[:count]
    check()
    values = {"fid": distances.fid(reference.moments, Moments.of(found.features))}
    check()
    values["kid"], values["kid_std"] = distances.kid(reals, fakes, check=check)
    splits = SPLITS if len(found) >= 1000 * SPLITS else 1
    values["inception_score"], spread = distances.inception_score(found.logits, splits)
    if splits > 1:
        values["inception_score_std"] = spread
    values.update(vars(neighbours.manifold(reals, fakes, check=check)))
    if asked is not None and judged is not None:
        values["conditional_accuracy"] = distances.conditional_accuracy(judged, asked)
    return values


def better(metric: str, value: float, other: float) -> bool:
    """Whether a value of a metric is better than another one."""
    return value < other if metric in LESS_IS_BETTER else value > other
