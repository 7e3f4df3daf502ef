"""Networks that turn images into features, and the features of a set of images."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.data import form
from trainer.files.shards import MappedImages

# Images in every call of a network.  The number is fixed, because the shape affects rounding.
BATCH = 100

# Called regularly during long work; raises an exception to interrupt it.
CheckInterrupt = Callable[[], None]


def never_interrupt() -> None:
    """Does nothing, so that the work is not interrupted."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
    """A network that computes the features by which images are compared.

    Attributes:
      name: "classifier" or "inception".
      digest: hash of the weights; results of networks with different hashes are not
        comparable.
      apply: maps images uint8 [BATCH, H, W, C] to features [BATCH, D] and logits
        [BATCH, K], float32.
      details: further facts about the network, such as its test accuracy.
    """

    name: str
    digest: str
    apply: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    details: Mapping[str, Any]


def on_background(network: FeatureNetwork, level: int, name: str) -> FeatureNetwork:
    """Returns a network of RGB images that sees RGBA images on a gray background.

    Args:
      network: the network.
      level: gray level of the background, 0 to 255.
      name: name of the background, which the hash of the network includes.
    """

    def apply(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return network.apply(tf.constant(form.on_background(images.numpy(), level)))

    return dataclasses.replace(network, digest=f"{network.digest}-{name}", apply=apply)


@dataclasses.dataclass(frozen=True)
class Features:
    """The outputs of a network for N images: features [N, D] and logits [N, K], float32."""

    features: np.ndarray
    logits: np.ndarray

    def __len__(self) -> int:
        return len(self.features)


def extract(
    network: FeatureNetwork,
    batches: Iterable[np.ndarray],
    check_interrupt: CheckInterrupt = never_interrupt,
) -> Features:
    """Returns the features and logits of batched images; see `extract_each` for arguments."""
    return extract_each([network], batches, check_interrupt)[0]


def extract_each(
    networks: Sequence[FeatureNetwork],
    batches: Iterable[np.ndarray],
    check_interrupt: CheckInterrupt = never_interrupt,
) -> list[Features]:
    """Returns the features and logits of batched images by each network.

    Args:
      networks: networks to apply.
      batches: uint8 [B, H, W, C] with B <= BATCH.
      check_interrupt: called before each batch; raises an exception to interrupt.
    """
    outputs: list[list[tuple[np.ndarray, ...]]] = [[] for _ in networks]
    for images in batches:
        check_interrupt()
        padded = images
        if len(images) < BATCH:
            padding = np.zeros((BATCH - len(images), *images.shape[1:]), np.uint8)
            padded = np.concatenate([images, padding])
        for parts, network in zip(outputs, networks, strict=True):
            batch = network.apply(tf.constant(padded))
            parts.append(tuple(part.numpy()[: len(images)] for part in batch))
    return [Features(*(np.concatenate(part) for part in zip(*parts))) for parts in outputs]


def in_batches(
    images: np.ndarray | MappedImages, rows: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Yields images [N, H, W, C], or those at `rows`, in batches of at most BATCH."""
    for start in range(0, len(images) if rows is None else len(rows), BATCH):
        chosen = slice(start, start + BATCH)
        yield images[chosen if rows is None else rows[chosen]]
