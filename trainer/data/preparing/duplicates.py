"""Finds equal and nearly equal pictures among many."""

import numpy as np

from trainer.data.preparing.rows import THUMB_SIDE

NEIGHBOURS = 4  # pictures after each one in a sorted order with which it is compared
MAX_MEAN, MAX_LARGEST = 3.0, 20  # differences of near duplicates, in gray levels of 255
PIECE = 1 << 16  # pairs that are compared at once


def exact(digests: np.ndarray) -> list[np.ndarray]:
    """Returns the groups of rows with equal digests [N, B] uint8, each group sorted."""
    if not len(digests):
        return []
    keys = np.ascontiguousarray(digests).view(f"V{digests.shape[1]}")[:, 0]
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.append(keys[order][1:] != keys[order][:-1], True)) + 1
    return [group for group in np.split(order, ends[:-1]) if len(group) > 1]


def near(thumbs: np.ndarray) -> list[np.ndarray]:
    """Returns the groups of rows whose gray images [N, THUMB_SIDE**2] uint8 are nearly equal.

    A perceptual hash has one bit for each pair of neighbouring pixels: whether the brightness
    rises. The rows are sorted by the hash, several times with different bits in front, and each is
    compared with a few that follow it. So a pair is found only if its hashes agree in some of the
    bits, and simple pictures, such as digits, may be reported although their details differ.
    """
    count = len(thumbs)
    if not count:
        return []
    bits = _hash(thumbs)
    parents = np.arange(count)
    for turn in range(4):
        turned = np.roll(bits, turn * bits.shape[1] // 4, axis=1)
        packed = np.packbits(turned, axis=1)
        order = np.argsort(np.ascontiguousarray(packed).view(f"V{packed.shape[1]}")[:, 0])
        for step in range(1, min(NEIGHBOURS + 1, count)):
            for start in range(0, count - step, PIECE):
                first = order[start : min(start + PIECE, count - step)]
                second = order[start + step : start + step + len(first)]
                is_near = _are_near(thumbs[first], thumbs[second])
                for a, b in zip(first[is_near].tolist(), second[is_near].tolist()):
                    _unite(parents, a, b)
    roots = np.array([_root(parents, n) for n in range(count)], np.int64)
    return exact(roots[:, None].view(np.uint8))


def _hash(thumbs: np.ndarray) -> np.ndarray:
    """Returns the bits [N, B] bool of the hash."""
    images = thumbs.reshape(-1, THUMB_SIDE, THUMB_SIDE)
    across = images[:, :, 1:] > images[:, :, :-1]
    down = images[:, 1:] > images[:, :-1]
    return np.concatenate([across.reshape(len(images), -1), down.reshape(len(images), -1)], 1)


def _are_near(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    differences = np.abs(first.astype(np.int16) - second)
    return (differences.mean(1) <= MAX_MEAN) & (differences.max(1) <= MAX_LARGEST)


def _root(parents: np.ndarray, row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]  # halves the path
        row = int(parents[row])
    return row


def _unite(parents: np.ndarray, first: int, second: int) -> None:
    a, b = _root(parents, first), _root(parents, second)
    parents[max(a, b)] = min(a, b)
