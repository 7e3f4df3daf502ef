"""Networks that turn images into features, and the features of a set of images."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

BATCH = 100  # images that a network sees at once, always: the shape decides the rounding


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network whose features stand for images.

    Attributes:
      name: "classifier" or "inception".
      digest: a hash of its weights; numbers of different ones cannot be compared.
      judge: maps images uint8 [BATCH, H, W, C] to features [BATCH, D] and logits
        [BATCH, K], float32.
      knows_classes: whether its logits are of the data set's own classes.
      about: what else there is to say of it, such as its test accuracy.
    """

    name: str
    digest: str
    judge: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    knows_classes: bool
    about: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Features:
    """What a network says of N images: features [N, D] and logits [N, K], float32."""

    features: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


def extract(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    check: Callable[[], None] = lambda: None,
) -> Features:
    """The features of images that come in batches.

    Args:
      network: what looks at them.
      batches: uint8 [B, H, W, C] with B <= BATCH.
      check: called before each batch; raises to break off.
    """
    kept: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for images in batches:
        check()
        padded = images
        if len(images) < BATCH:
            rest = np.zeros((BATCH - len(images), *images.shape[1:]), np.uint8)
            padded = np.concatenate([images, rest])
        found = network.judge(tf.constant(padded))
        for parts, part in zip(kept, found, strict=True):
            parts.append(part.numpy()[: len(images)])
    return Features(np.concatenate(kept[0]), np.concatenate(kept[1]))


def in_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images [N, H, W, C] in parts of BATCH."""
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
