"""How far two sets of features lie apart, and what a classifier says of one.

All are pure functions of arrays, in float64; rows are images.
"""

from collections.abc import Callable

import numpy as np

from trainer.metrics.moments import Moments

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def fid(first: Moments, second: Moments) -> float:
    """The Frechet distance between the Gaussians of two sets' means and covariances.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): Heusel et al., arXiv:1706.08500,
    equation 6, after Dowson and Landau (1982).

    C1 C2 has the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), so the trace of its
    root is the sum of their roots: no root of a matrix that is not symmetric is taken, and
    covariances may be of any rank.

    Raises:
      ValueError: for sets of fewer than two features.
    """
    first_covariance, second_covariance = first.covariance, second.covariance
    root = _root(first_covariance)
    product = root @ second_covariance @ root
    eigenvalues = np.linalg.eigvalsh(0.5 * (product + product.T))
    overlap = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
    step = first.mean - second.mean
    traces = np.trace(first_covariance) + np.trace(second_covariance)
    return max(0.0, float(step @ step + traces - 2.0 * overlap))


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric root of a covariance [D, D]; rounding below zero counts as zero."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T


def kid(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int = 0,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    check: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """The squared maximum mean discrepancy by a cubic kernel, without bias.

    The mean over i != j of k(xi, xj), plus that of k(yi, yj), minus twice the mean of
    k(xi, yj), with k(x, y) = (x . y / D + 1)^3: Binkowski et al., arXiv:1801.01401,
    section 4.  As there it is taken on random subsets of 1,000 each, or of half the
    smaller set where that is less.

    Args:
      first, second: features [N, D] and [M, D].
      seed: of the choice of subsets.
      subsets: how many.
      subset_size: images of each set in one.
      check: called before each subset; raises to break off.

    Returns:
      The mean over the subsets and their standard deviation; the mean may be below zero.

    Raises:
      ValueError: for sets of fewer than four features.
    """
    size = min(subset_size, len(first) // 2, len(second) // 2)
    if size < 2:
        raise ValueError("KID needs 4 features or more of each set")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        check()
        x = first[generator.choice(len(first), size, replace=False)].astype(np.float64)
        y = second[generator.choice(len(second), size, replace=False)].astype(np.float64)
        values.append(_within(x) + _within(y) - 2.0 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cubic kernel of all pairs, [N, M]."""
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base


def _within(x: np.ndarray) -> float:
    """The mean of the kernel over all pairs of different rows."""
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """How sure a classifier is of each image, and how varied its answers are.

    exp of the mean of KL(p(y|x) || p(y)): Salimans et al., arXiv:1606.03498, section 4;
    between 1 and the number of classes.

    Args:
      logits: [N, K], in random order.
      splits: parts on which it is taken; published with 10 of 5,000.

    Returns:
      The mean over the parts and their standard deviation.

    Raises:
      ValueError: for fewer images than parts.
    """
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} images do not make {splits} parts")
    scores = []
    for part in np.array_split(logits, splits):
        log_p = log_softmax(part)
        p = np.exp(log_p)
        marginal = p.mean(0)
        # Where the marginal is 0 so is every p, whose share is then 0.
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities that logits [N, K] stand for."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def conditional_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that a classifier gives the class that was asked for.

    Args:
      logits: [N, K], the classifier's.
      labels: [N] int, the classes asked for.
    """
    return float(np.mean(np.argmax(logits, 1) == labels))


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often which class was asked for (row) and given by a classifier (column), [K, K]."""
    classes = logits.shape[1]
    pairs = labels.astype(np.int64) * classes + np.argmax(logits, 1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def class_fids(
    first: np.ndarray,
    first_labels: np.ndarray,
    second: np.ndarray,
    second_labels: np.ndarray,
    classes: int,
) -> dict[int, float]:
    """The FID of each class by itself; equation and source as for `fid`.

    Args:
      first, second: features [N, D] and [M, D].
      first_labels, second_labels: their classes, [N] and [M].
      classes: how many there are.

    Returns:
      FIDs by class, of those with at least 2 D images in both sets: with fewer, the number
      would say more of N than of the images.
    """
    found = {}
    for label in range(classes):
        ours, theirs = first[first_labels == label], second[second_labels == label]
        if min(len(ours), len(theirs)) >= max(2, 2 * first.shape[1]):
            found[label] = fid(Moments.of(ours), Moments.of(theirs))
    return found
