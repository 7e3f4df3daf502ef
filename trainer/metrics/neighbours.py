"""Fidelity and variety by nearest neighbours: precision, recall, density, coverage."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

PRECISION_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
CHUNK_BYTES = 2**28  # of distances held at a time
EXACT_PRODUCTS = 10**12  # beyond so many multiplications distances are formed in float32


@dataclasses.dataclass(frozen=True)
class Manifold:
    """Scores of generated images against real ones.

    Attributes:
      precision: share of generated images within the reals' manifold.
      recall: share of reals within the generated images' manifold.
      density: how many reals' balls hold a generated image, over k; may exceed 1.
      coverage: share of reals whose ball holds a generated image.
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
    check: Callable[[], None] = lambda: None,
) -> Manifold:
    """Compares generated images with reals by balls that reach to a k-th neighbour.

    B_k(x) is the ball round x that reaches to the k-th nearest other image of its set.
    Precision is the share of generated y in B_k(x) of any real x, and recall the share of
    real x in B_k(y) of any generated y: Kynkaanniemi et al., arXiv:1904.06991, equations 1
    and 2, with k = 3.  Density is the mean over y of the number of reals x whose B_k(x)
    holds y, over k; coverage the share of reals x whose B_k(x) holds any y: Naeem et al.,
    arXiv:2002.09797, equations 3 and 4, with k = 5.

    Args:
      real, fake: features [N, D] and [M, D]; N and M should be alike, for all four depend
        on how close images of a set lie.
      k: for precision and recall.
      dense_k: for density and coverage.
      check: called before each band of distances; raises to break off.

    Raises:
      ValueError: for sets without so many neighbours.
    """
    real, fake = _prepared(real, fake)
    real_radii = radii(real, (k, dense_k), check)
    fake_radii = radii(fake, (k, dense_k), check)[0]
    precise = balls = 0
    recalled = np.zeros(len(real), bool)
    nearest = np.full(len(real), np.inf)
    for start, squares in _squares(fake, real):
        check()
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
    features: np.ndarray, ks: tuple[int, ...], check: Callable[[], None] = lambda: None
) -> np.ndarray:
    """The squared distances from each image [N, D] to its k-th nearest others, [len(ks), N].

    Raises:
      ValueError: for a set without so many neighbours.
    """
    if len(features) <= max(ks):
        raise ValueError(f"{len(features)} images have no {max(ks)} neighbours each")
    found = np.empty((len(ks), len(features)))
    for start, squares in _squares(features, features):
        check()
        rows = np.arange(len(squares))
        squares[rows, start + rows] = np.inf  # none is its own neighbour
        squares.partition([k - 1 for k in ks], axis=1)
        for row, k in enumerate(ks):
            found[row, start : start + len(squares)] = squares[:, k - 1]
    return found


def nearest(queries: np.ndarray, features: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the nearest `count` of features [N, D] to each query [Q, D].

    Returns:
      [Q, count] int, nearest first.
    """
    queries, features = _prepared(queries, features)
    found = [
        np.argsort(squares, axis=1, kind="stable")[:, :count]
        for _, squares in _squares(queries, features)
    ]
    return np.concatenate(found)


def _prepared(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets as floats round the mean of both, so that distances lose few digits."""
    work = max(len(first), len(second)) ** 2 * first.shape[1]
    kind = np.float64 if work <= EXACT_PRODUCTS else np.float32
    means = [part.mean(0, dtype=np.float64) for part in (first, second)]
    middle = 0.5 * (means[0] + means[1])

    def centred(part: np.ndarray) -> np.ndarray:
        # Without a copy in float64, which would be larger than all else.
        return np.subtract(part, middle, out=np.empty(part.shape, kind), casting="same_kind")

    return centred(first), centred(second)


def _squares(first: np.ndarray, second: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Squared distances, a band [B, M] of `first`'s rows at a time, with its first row.

    A band lies where the one before it did: use it before the next, or copy it.
    """
    lengths = np.einsum("nd,nd->n", second, second)
    rows = min(len(first), max(1, CHUNK_BYTES // (8 * len(second))))
    band = np.empty((rows, len(second)), second.dtype)  # memory that is new costs time
    for start in range(0, len(first), rows):
        part = first[start : start + rows]
        squares = np.matmul(-2.0 * part, second.T, out=band[: len(part)])
        squares += np.einsum("nd,nd->n", part, part)[:, None]
        squares += lengths
        np.maximum(squares, 0.0, out=squares)
        yield start, squares
