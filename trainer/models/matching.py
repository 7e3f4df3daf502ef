"""Matches the layers of two networks, and copies the weights of matching layers.

Layers match if they are of the same kind and the weights that both have are of equal shapes.
Rows of a weight that belong to classes are not compared.  The order of the layers is kept: of
all matches in order the one that takes over the most weights is chosen, and of equal ones the
one nearest to the image.  So the layers that work at the same distance from the image match
when the image size differs.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from trainer.models.graph import main_path

Pairs = dict[int, int]  # from the index of a layer in the new network to that in the old one


@dataclasses.dataclass(frozen=True, eq=False)
class WeightLayer:
    """A layer that has weights.

    Attributes:
      layer: the layer.
      weights: its weights by name.
      class_rows: number of rows that belong to classes, by the names of the weights that have
        such rows; they are the last rows.  None for a weight that depends on the number of
        classes in another way.
      on_path: whether it depends on more than the labels.
    """

    layer: keras.layers.Layer
    weights: Mapping[str, keras.Variable]
    class_rows: Mapping[str, int | None]
    on_path: bool

    @property
    def size(self) -> int:
        """Number of scalar weights."""
        return sum(int(np.prod(weight.shape)) for weight in self.weights.values())

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Returns the shape of a weight without class rows; None if it cannot be compared."""
        rows = self.class_rows.get(name, 0)
        if rows is None:
            return None
        shape = tuple(self.weights[name].shape)
        return (shape[0] - rows, *shape[1:]) if rows else shape

    def matches(self, other: "WeightLayer") -> bool:
        """Returns whether weights of the other layer can be taken over."""
        common = self.weights.keys() & other.weights.keys()
        return (
            type(self.layer) is type(other.layer)
            and self.on_path == other.on_path
            and bool(common)
            and all(None is not self.shape(name) == other.shape(name) for name in common)
        )


def weight_layers(
    network: keras.Model, classes: int = 0, with_more_classes: keras.Model | None = None
) -> list[WeightLayer]:
    """Returns the layers of a network that have weights, in the order of computation.

    Args:
      network: the network.
      classes: its number of classes.
      with_more_classes: the same network for one class more, from which the rows that belong to
        classes are found; None if they need not be told apart.
    """
    path = {id(layer) for layer in main_path(network)}
    others = network.layers if with_more_classes is None else with_more_classes.layers
    found = []
    for layer, other in zip(network.layers, others, strict=True):
        if layer.weights:
            weights, more = _by_name(layer), _by_name(other)
            rows = {
                name: classes if _has_one_row_more(weight, more[name]) else None
                for name, weight in weights.items()
                if weight.shape != more[name].shape
            }
            found.append(WeightLayer(layer, weights, rows, id(layer) in path))
    return found


def match(old: Sequence[WeightLayer], new: Sequence[WeightLayer], *, image_first: bool) -> Pairs:
    """Matches the layers of two networks.

    Args:
      old: layers of the network to copy from.
      new: layers of the network to copy to.
      image_first: whether the networks begin at the image, as discriminators do, rather than
        end there.

    Returns:
      The index of the matching old layer by the index of the new layer.
    """
    pairs = {}
    for on_path in (True, False):
        sides = [
            [index for index, layer in enumerate(layers) if layer.on_path == on_path]
            for layers in (old, new)
        ]
        if not image_first:
            sides = [side[::-1] for side in sides]
        pairs.update(_best_in_order(old, new, *sides))
    return pairs


def _best_in_order(
    old: Sequence[WeightLayer],
    new: Sequence[WeightLayer],
    old_indices: Sequence[int],
    new_indices: Sequence[int],
) -> Pairs:
    """Returns the heaviest common subsequence, by dynamic programming from the far end."""
    rows, columns = len(old_indices), len(new_indices)
    gain = np.zeros([rows, columns], np.int64)
    best = np.zeros([rows + 1, columns + 1], np.int64)  # of what follows a position
    for i in reversed(range(rows)):
        for j in reversed(range(columns)):
            one, other = old[old_indices[i]], new[new_indices[j]]
            gain[i, j] = min(one.size, other.size) if one.matches(other) else 0
            paired = gain[i, j] + best[i + 1, j + 1] if gain[i, j] else 0
            best[i, j] = max(paired, best[i + 1, j], best[i, j + 1])
    pairs, i, j = {}, 0, 0
    while i < rows and j < columns:
        if gain[i, j] and best[i, j] == gain[i, j] + best[i + 1, j + 1]:
            pairs[new_indices[j]] = old_indices[i]
            i, j = i + 1, j + 1
        elif best[i, j] == best[i + 1, j]:
            i += 1
        else:
            j += 1
    return pairs


def taken_over(
    old: WeightLayer, new: WeightLayer, old_classes: Mapping[int, int]
) -> dict[str, tuple[np.ndarray, int]]:
    """Returns the weights that a layer takes over from a matching one.

    Args:
      old: the layer to copy from.
      new: the layer to copy to.
      old_classes: the old class of each new class that has one.

    Returns:
      By name, the new values and how many of them are from the old layer.  It is empty if a
      weight consists of class rows alone and no class is taken over: the vector of a power
      iteration, for example, belongs to these rows.
    """
    values = {}
    for name in sorted(old.weights.keys() & new.weights.keys()):
        before, after = (layer.weights[name].value.numpy() for layer in (old, new))
        rows = [old.class_rows.get(name, 0), new.class_rows.get(name, 0)]
        if rows == [0, 0]:
            values[name] = (before, before.size)
            continue
        fixed = len(after) - (rows[1] or 0)
        after[:fixed] = before[:fixed]
        copied = fixed
        if all(rows):
            for new_class, old_class in old_classes.items():
                after[fixed + new_class] = before[fixed + old_class]
            copied += len(old_classes)
        if not copied:
            return {}
        values[name] = (after, copied * after[0].size)
    return values


def _by_name(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Returns the weights of a layer by name, with a number where a name occurs again."""
    weights: dict[str, keras.Variable] = {}
    for weight in layer.weights:
        again = sum(name.partition("/")[0] == weight.name for name in weights)
        weights[f"{weight.name}/{again}" if again else weight.name] = weight
    return weights


def _has_one_row_more(weight: keras.Variable, other: keras.Variable) -> bool:
    return tuple(other.shape) == (weight.shape[0] + 1, *weight.shape[1:])
