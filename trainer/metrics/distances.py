"""Distances between two sets of features, and scores of a classifier's logits.

All functions are pure functions of arrays and compute in float64.  Each row is an image.
"""

from collections.abc import Callable

import numpy as np

from trainer.metrics.moments import Moments

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000


def fid(first: Moments, second: Moments) -> float:
    """Returns the Frechet inception distance between two sets of features.

    It is the Frechet distance between two Gaussians with the means m and covariances C of
    the sets, |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)): Heusel et al., arXiv:1706.08500,
    equation 6, after Dowson and Landau (1982).  It is 0 or more.

    C1 C2 has the same eigenvalues as the symmetric matrix C1^(1/2) C2 C1^(1/2), so the trace
    of its square root is the sum of their square roots.  Therefore no square root of an
    asymmetric matrix is computed, and the covariances may have any rank.

    Raises:
      ValueError: if a set has fewer than two features.
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
    """Returns the symmetric square root of a covariance [D, D].

    Eigenvalues that are negative because of rounding count as zero.
    """
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T


def kid(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int = 0,
    subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    check_interrupt: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Returns the kernel inception distance between two sets of features.

    It is the unbiased estimate of the squared maximum mean discrepancy with a cubic kernel:
    the mean of k(xi, xj) over i != j, plus that of k(yi, yj), minus twice the mean of
    k(xi, yj), with k(x, y) = (x . y / D + 1)^3: Binkowski et al., arXiv:1801.01401,
    section 4.  As in the source, it is computed on random subsets of 1,000 images.  If half
    the smaller set has fewer images than that, the subsets have that size.

    Args:
      first, second: features [N, D] and [M, D].
      seed: seed of the random subsets.
      subsets: number of subsets.
      subset_size: number of images of each set in a subset.
      check_interrupt: called before each subset; raises an exception to interrupt.

    Returns:
      The mean over the subsets and their standard deviation.  The mean may be negative.

    Raises:
      ValueError: if a set has fewer than four features.
    """
    size = min(subset_size, len(first) // 2, len(second) // 2)
    if size < 2:
        raise ValueError("KID needs 4 or more features in each set")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        check_interrupt()
        x = first[generator.choice(len(first), size, replace=False)].astype(np.float64)
        y = second[generator.choice(len(second), size, replace=False)].astype(np.float64)
        values.append(_within(x) + _within(y) - 2.0 * _kernel(x, y).mean())
    return float(np.mean(values)), float(np.std(values))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the cubic kernel of all pairs of rows of x [N, D] and y [M, D], [N, M]."""
    base = x @ y.T / x.shape[1] + 1.0
    return base * base * base


def _within(x: np.ndarray) -> float:
    """Returns the mean of the kernel over all pairs of different rows of x [N, D]."""
    kernel = _kernel(x, x)
    return float((kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1)))


def inception_score(logits: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Returns the Inception Score of images from the logits of a classifier.

    It is exp of the mean of KL(p(y|x) || p(y)): Salimans et al., arXiv:1606.03498, section
    4.  It lies between 1 and the number of classes.  It is high if the classifier assigns
    each image to one class with certainty, and all classes equally often.

    Args:
      logits: [N, K], in random order.
      splits: number of parts to score separately; published scores use 10 parts of 5,000
        images.

    Returns:
      The mean over the parts and their standard deviation.

    Raises:
      ValueError: if there are fewer images than parts.
    """
    if len(logits) < splits:
        raise ValueError(f"{len(logits)} images cannot be split into {splits} parts")
    scores = []
    for part in np.array_split(logits, splits):
        log_p = log_softmax(part)
        p = np.exp(log_p)
        marginal = p.mean(0)
        # Where the marginal is 0, every p is 0, and the term contributes 0 to the sum.
        log_marginal = np.log(np.where(marginal > 0, marginal, 1.0))
        scores.append(np.exp((p * (log_p - log_marginal)).sum(1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the logarithm of the softmax of logits [N, K], in float64."""
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def conditional_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the share of images that a classifier assigns to the requested class.

    Args:
      logits: [N, K], logits of the classifier.
      labels: [N] int, requested classes.
    """
    return float(np.mean(np.argmax(logits, 1) == labels))


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the confusion matrix: images by requested class (row) and predicted class (column).

    Args:
      logits: [N, K], logits of the classifier.
      labels: [N] int, requested classes.

    Returns:
      [K, K] int.
    """
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
    """Returns the FID of each class; see `fid` for the equation and its source.

    Args:
      first, second: features [N, D] and [M, D].
      first_labels, second_labels: classes of the features, [N] and [M].
      classes: number of classes.

    Returns:
      FIDs by class, for classes with at least 2 D images in both sets.  With fewer images,
      the FID would depend more on their number than on their content.
    """
    fids = {}
    for label in range(classes):
        first_part, second_part = first[first_labels == label], second[second_labels == label]
        if min(len(first_part), len(second_part)) >= max(2, 2 * first.shape[1]):
            fids[label] = fid(Moments.of(first_part), Moments.of(second_part))
    return fids
