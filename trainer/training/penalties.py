"""Penalties on the gradient of the discriminator with respect to the images.

The gradient is that of the logit with respect to the image before its augmentation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import tensorflow as tf

from trainer.config import Config
from trainer.models.schedules import current
from trainer.training.forward import Logits

Judged = TypeVar("Judged", tf.Tensor, Logits)

# Half precision: the logits are multiplied by it before the inner gradient, which would underflow,
# and the gradient is divided by it in float32.
SCALE = 1024.0


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty on the gradient of each image.

    Attributes:
      setting: the setting that holds its weight, which may be a schedule.
      images: "reals", "fakes", or "between" for points between reals and fakes.
      of: the penalty [N], as a function of the gradients [N, H, W, C] float32.
    """

    setting: str
    images: str
    of: Callable[[tf.Tensor], tf.Tensor]


def _squared_norms(gradients: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.square(gradients), [1, 2, 3])


def _distance_from_one(gradients: tf.Tensor) -> tf.Tensor:
    # The square root has no gradient at zero.
    return tf.square(tf.sqrt(_squared_norms(gradients) + 1e-12) - 1.0)


PENALTIES = (
    # (|gradient| - 1)^2.  Gulrajani et al., arXiv:1704.00028, equation 3.
    Penalty("gradient_penalty", "between", _distance_from_one),
    # gamma / 2 |gradient|^2 at the reals, R1, and at the fakes, R2, where the setting is gamma.
    # Mescheder et al., arXiv:1801.04406, equations 9 and 10.
    Penalty("r1", "reals", lambda gradients: 0.5 * _squared_norms(gradients)),
    Penalty("r2", "fakes", lambda gradients: 0.5 * _squared_norms(gradients)),
)


def active(config: Config) -> tuple[Penalty, ...]:
    """Returns the penalties of a configuration."""
    return tuple(penalty for penalty in PENALTIES if getattr(config, penalty.setting))


def weight(config: Config, penalty: Penalty, images: tf.Tensor | int) -> tf.Tensor:
    """Returns the weight of a penalty, a float32 scalar.

    Args:
      config: the configuration of the run.
      penalty: one of PENALTIES.
      images: number of images seen, an integer scalar in host memory.
    """
    return current(getattr(config, penalty.setting), images)


def is_due(config: Config, images: tf.Tensor | int) -> tf.Tensor:
    """Returns whether the step after so many images has penalties, a bool scalar.

    Args:
      config: the configuration of the run.
      images: number of images seen, an integer scalar in host memory.
    """
    return tf.equal(images // config.batch_size % config.penalty_every, 0)


def judge(
    discriminate: Callable[[], Judged], images: Sequence[tf.Tensor], *, half: bool
) -> tuple[Judged, list[tf.Tensor]]:
    """Returns logits, and their gradients with respect to images.

    The gradients are differentiable in whatever the logits depend on.

    Args:
      discriminate: returns the logits of `images`, perhaps with those of other images, as one
        tensor or as `Logits`.  No logit may depend on more than one image.
      images: batches of images, [N, H, W, C] float32 each.
      half: whether the discriminator computes in half precision.

    Returns:
      The logits, and for each batch the gradients, [N, H, W, C] float32.
    """
    if not images:
        return discriminate(), []
    scale = SCALE if half else 1.0
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = discriminate()
        total = scale * tf.reduce_sum(logits.both if isinstance(logits, Logits) else logits)
    gradients = tape.gradient(total, images)
    return logits, [each / scale for each in gradients] if half else gradients
