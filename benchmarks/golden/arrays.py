"""The arrays of a golden file, and their comparison with ours.

Golden files store what a published PyTorch implementation computed: feature maps [N, C, H, W],
convolution kernels [out, in / groups, height, width] and dense weights [out, in].
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Convert = Callable[[Any], Any]
OUTPUT, GRADIENT = 1e-5, 1e-4  # bounds of differences, in parts of an array's largest value


class ShapeError(Exception):
    """An array has a shape that does not fit the other arrays."""

    def __init__(self, name: str, shape: Sequence[int], needed: str) -> None:
        super().__init__(f"{name} has shape {_shown(shape)}, but the other arrays need {needed}")


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far an array of ours is from a golden one.

    Attributes:
      name: name of the golden array.
      value: largest difference in parts of the golden array's largest absolute value; infinite
        if the shapes differ.
      bound: largest difference that counts as equal.
      shapes: both shapes, for the user, if they differ.
    """

    name: str
    value: float
    bound: float
    shapes: str = ""

    @property
    def is_within(self) -> bool:
        """Whether the arrays count as equal; a difference that is not a number does not."""
        return self.value <= self.bound


class Golden:
    """The arrays below a prefix of a golden file.

    Attributes:
      differences: the comparisons made.
      used: full names of the arrays that were read or compared.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], prefix: str = "") -> None:
        self._arrays, self._prefix = arrays, prefix
        self.differences: list[Difference] = []
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._arrays

    def __getitem__(self, name: str) -> np.ndarray:
        self.used.add(self._prefix + name)
        return self._arrays[self._prefix + name]

    def names(self, start: str) -> list[str]:
        """Returns the names of the arrays that begin with `start`, without it."""
        whole = self._prefix + start
        return [name.removeprefix(whole) for name in self._arrays if name.startswith(whole)]

    def shaped(self, name: str, axes: str) -> np.ndarray:
        """Returns an array.

        Args:
          name: its name.
          axes: a name for each of its axes, such as "N, C".

        Raises:
          ShapeError: if it has another number of axes.
        """
        array = self[name]
        if array.ndim != len(axes.split(",")):
            raise ShapeError(self._prefix + name, array.shape, f"[{axes}]")
        return array

    def images(self, name: str) -> tf.Tensor:
        """Returns feature maps as [N, H, W, C]."""
        return tf.constant(self.shaped(name, "N, C, H, W").transpose(0, 2, 3, 1))

    def assign(self, name: str, variable: keras.Variable, to_ours: Convert, back: Convert) -> None:
        """Assigns an array to a variable.

        Args:
          name: name of the array.
          variable: the variable.
          to_ours, back: convert arrays to the layout of the variable, and back.

        Raises:
          ShapeError: if the shape does not fit.
        """
        given = self[name]
        try:
            ours = np.asarray(to_ours(given))
        except (ValueError, IndexError):
            ours = np.empty([0])
        if ours.shape != tuple(variable.shape):
            needed = np.shape(back(np.zeros(variable.shape, np.float32)))
            raise ShapeError(self._prefix + name, given.shape, _shown(needed))
        variable.assign(ours)

    def compare(self, name: str, ours: Any, bound: float = OUTPUT) -> None:
        """Compares an array of ours, in the layout of the file, unless the file lacks it."""
        if name not in self:
            return
        golden, ours = self[name], np.asarray(ours)
        value, shapes = math.inf, f"has shape {_shown(golden.shape)}, ours {_shown(ours.shape)}"
        if ours.shape == golden.shape:
            shapes = ""
            value, largest = float(np.abs(ours - golden).max()), float(np.abs(golden).max())
            value = value / largest if largest else value
        self.differences.append(Difference(self._prefix + name, value, bound, shapes))

    def compare_images(self, name: str, ours: Any, bound: float = OUTPUT) -> None:
        """Compares feature maps [N, H, W, C] of ours; the file may have those of fewer images."""
        if name in self:
            count = len(self[name])
            self.compare(name, np.asarray(ours)[:count].transpose(0, 3, 1, 2), bound)


def _shown(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def to_keras(weight: np.ndarray, *, transposed: bool = True) -> np.ndarray:
    """Returns a golden weight in the layout of Keras.

    Args:
      weight: a bias, a dense weight [out, in] or a kernel [out, in, height, width].
      transposed: whether to transpose a dense weight; that of an embedding is not.
    """
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)
    return weight.T if transposed else weight


def from_keras(weight: Any, *, transposed: bool = True) -> np.ndarray:
    """Returns a weight of Keras, or its gradient, in the layout of golden files."""
    weight = np.asarray(weight)
    if weight.ndim == 4:
        return weight.transpose(3, 2, 0, 1)
    return weight.T if transposed else weight


def zeros_for_none(gradients: Iterable[Any], variables: Iterable[keras.Variable]) -> list[Any]:
    """Returns gradients with zeros where a loss does not depend on a variable."""
    pairs = zip(gradients, variables, strict=True)
    return [np.zeros(v.shape, np.float32) if g is None else g for g, v in pairs]
