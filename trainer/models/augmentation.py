"""Augmentation of the images that the discriminator sees, reals and fakes alike."""

from collections.abc import Callable, Mapping

import tensorflow as tf

from trainer.config import Config, augment_policy
from trainer.models import ada, diffaugment
from trainer.models.randomness import Draws

AUGMENT: Mapping[str, Callable[..., tf.Tensor]] = {
    "diffaugment": diffaugment.augment,
    "ada": ada.augment,
}


def augment(
    config: Config, images: tf.Tensor, draws: Draws, strength: tf.Tensor | float
) -> tf.Tensor:
    """Returns augmented images; the images themselves if augmentation is disabled.

    The transformations are functions of the draws, whose seed, step, scope and rows determine
    them.  The result is differentiable in the images to every order.

    Args:
      config: the configuration of the run.
      images: [N, H, W, C] float32 in the image range; one or several batches of draws.rows.
      draws: random numbers of these images.
      strength: probability of each transformation before the factors of the policy, a scalar.
    """
    if config.augment == "none":
        return images
    factors = augment_policy.parse(config.augment, config.augment_policy)
    around_zero = config.image_range == "tanh"
    images = images if around_zero else 2.0 * images - 1.0
    images = AUGMENT[config.augment](images, factors, draws.within("augment"), strength)
    return images if around_zero else 0.5 * (images + 1.0)
