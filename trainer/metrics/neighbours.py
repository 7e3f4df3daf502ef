"""Metrics based on nearest neighbours: precision, recall, density and coverage."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
CHUNK_BYTES = 2**28  # bytes of distances in memory at once
EXACT_PRODUCTS = 10**12  # above this number of multiplications, distances use float32


@dataclasses.dataclass(frozen=True)
class Manifold:
    """Nearest-neighbour metrics of generated images compared with real ones.

    Attributes:
      precision: share of generated images within the manifold of the real images.
      recall: share of real images within the manifold of the generated images.
      density: mean number of real images whose ball contains a generated image, divided by
        k; may exceed 1.
      coverage: share of real images whose ball contains a generated image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def manifold(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    k: int = PRECISION_NEIGHBOURS,
    dense_k: int = DENSITY_NEIGHBOURS,
    check_interrupt: Callable[[], None] = lambda: None,
) -> Manifold:
    """Compares generated images with real ones by the balls around their features.

    B_k(x) is the ball around x whose radius is the distance to the k-th nearest other image
    of the same set.  Precision is the share of generated y in B_k(x) of any real x, and
    recall is the share of real x in B_k(y) of any generated y: Kynkaanniemi et al.,
    arXiv:1904.06991, equations 1 and 2, with k = 3.  Density is the mean over y of the number
    of real x whose B_k(x) contains y, divided by k.  Coverage is the share of real x whose
    B_k(x) contains any y: Naeem et al., arXiv:2002.09797, equations 3 and 4, with k = 5.

    Args:
      real, fake: features [N, D] and [M, D].  N and M should be equal, because all four
        metrics depend on how densely the features of a set lie.
      k: number of neighbours for precision and recall.
      dense_k: number of neighbours for density and coverage.
      check_interrupt: called before each block of distances; raises an exception to
        interrupt.

    Raises:
      ValueError: if an image of a set has fewer neighbours than requested.
    """
    real, fake = _centred(real, fake)
    real_radii = radii(real, (k, dense_k), check_interrupt)
    fake_radii = radii(fake, (k, dense_k), check_interrupt)[0]
    precise = balls = 0
    recalled = np.zeros(len(real), bool)
    nearest = np.full(len(real), np.inf)
    for start, squares in _blocks_of_squares(fake, real):
        check_interrupt()
        rows = slice(start, start + len(squares))
        precise += int((squares <= real_radii[0]).any(1).sum())
        balls += int((squares <= real_radii[1]).sum())
        recalled |= (squares <= fake_radii[rows, None]).any(0)
        nearest = np.minimum(nearest, squares.min(0))
    return Manifold(
        precision=precise / len(fake),
        recall=float(recalled.mean()),
        density=balls / (dense_k * len(fake)),
        coverage=float((nearest <= real_radii[1]).mean()),
    )


def radii(
    features: np.ndarray,
    ks: tuple[int, ...],
    check_interrupt: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Returns the squared distance of each image to its k-th nearest other image.

    Args:
      features: [N, D].
      ks: numbers of neighbours.
      check_interrupt: called before each block of distances; raises an exception to
        interrupt.

    Returns:
      [len(ks), N].

    Raises:
      ValueError: if an image has fewer neighbours than requested.
    """
    if len(features) <= max(ks):
        raise ValueError(f"{len(features)} images do not have {max(ks)} neighbours each")
    distances = np.empty((len(ks), len(features)))
    for start, squares in _blocks_of_squares(features, features):
        check_interrupt()
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf  # an image is not its own neighbour
        squares.partition([k - 1 for k in ks], axis=1)
        for row, k in enumerate(ks):
            distances[row, start : start + len(squares)] = squares[:, k - 1]
    return distances


def nearest(queries: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """Returns the indices of the features nearest to each query.

    Args:
      queries: [Q, D].
      features: [N, D].
      count: number of neighbours, at most N.

    Returns:
      [Q, count] int, nearest first.
    """
    queries, features = _centred(queries, features)
    indices = [
        np.argsort(squares, axis=1, kind="stable")[:, :count]
        for _, squares in _blocks_of_squares(queries, features)
    ]
    return np.concatenate(indices)


def _centred(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both sets with the mean of both subtracted, so that distances lose few digits."""
    work = max(len(first), len(second)) ** 2 * first.shape[1]
    dtype = np.float64 if work <= EXACT_PRODUCTS else np.float32
    means = [part.mean(0, dtype=np.float64) for part in (first, second)]
    middle = 0.5 * (means[0] + means[1])

    def centre(part: np.ndarray) -> np.ndarray:
        # Avoids a copy in float64, which would be the largest array in memory.
        return np.subtract(part, middle, out=np.empty(part.shape, dtype), casting="same_kind")

    return centre(first), centre(second)


def _blocks_of_squares(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the squared distances in blocks of rows of `first`.

    All blocks share one array, so a block is valid only until the next is requested.

    Args:
      first: [N, D].
      second: [M, D].

    Yields:
      The index of the first row of a block, and its squared distances [B, M].
    """
    lengths = np.einsum("nd,nd->n", second, second)
    rows = min(len(first), max(1, CHUNK_BYTES // (8 * len(second))))
    block = np.empty((rows, len(second)), second.dtype)  # allocated once, which saves time
    for start in range(0, len(first), rows):
        part = first[start : start + rows]
        squares = np.matmul(-2.0 * part, second.T, out=block[: len(part)])
        squares += np.einsum("nd,nd->n", part, part)[:, None]
        squares += lengths
        np.maximum(squares, 0.0, out=squares)
        yield start, squares
