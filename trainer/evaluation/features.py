"""Networks that turn images into features, and the features of a set of images."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
      about: what else there is to say of it, such as its test accuracy.
    """

    name: str
    digest: str
    judge: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
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
    """The features of images that come in batches; arguments as of `extract_each`."""
    return extract_each([network], batches, check)[0]


def extract_each(
    networks: Sequence[FeatureNetwork],
    batches: Iterable[np.ndarray],
    check: Callable[[], None] = lambda: None,
) -> list[Features]:
    """Returns the features and logits of batched images by each network.

    Args:
      networks: networks to apply.
      batches: uint8 [B, H, W, C] with B <= BATCH.
      check: called before each batch; raises to cancel.
    """
    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in networks]
    for images in batches:
        check()
        padded = images
        if len(images) < BATCH:
            rest = np.zeros((BATCH - len(images), *images.shape[1:]), np.uint8)
            padded = np.concatenate([images, rest])
        for parts, network in zip(found, networks, strict=True):
            answer = network.judge(tf.constant(padded))
            parts.append(tuple(part.numpy()[: len(images)] for part in answer))
    return [Features(*(np.concatenate(part) for part in zip(*parts))) for parts in found]


def in_batches(images: np.ndarray) -> Iterator[np.ndarray]:
    """Images [N, H, W, C] in parts of BATCH."""
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
