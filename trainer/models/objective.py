"""Adversarial losses per image, as functions of the discriminator's logits.

D denotes the discriminator's logit.  A positive logit means "real".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from trainer.models.lazy import tf

Loss = Callable[["tf.Tensor"], "tf.Tensor"]


@dataclasses.dataclass(frozen=True)
class Objective:
    """An adversarial loss: functions from logits [N] to losses [N].

    Attributes:
      d_real: loss of D on reals.
      d_fake: loss of D on fakes.
      g_fake: loss of G on fakes.
      classifies: whether the sign of a logit tells real from fake, so that D has an accuracy.
    """

    d_real: Loss
    d_fake: Loss
    g_fake: Loss
    classifies: bool = True


OBJECTIVES = {
    # -log sigmoid(D(x)); -log(1 - sigmoid(D(G(z)))); -log sigmoid(D(G(z))).
    # Goodfellow et al., arXiv:1406.2661, section 3.
    "nonsaturating": Objective(
        d_real=lambda logits: tf.nn.softplus(-logits),
        d_fake=lambda logits: tf.nn.softplus(logits),
        g_fake=lambda logits: tf.nn.softplus(-logits),
    ),
    # As above, but G minimises log(1 - sigmoid(D(G(z)))), which saturates while D wins.
    # Goodfellow et al., arXiv:1406.2661, equation 1.
    "minimax": Objective(
        d_real=lambda logits: tf.nn.softplus(-logits),
        d_fake=lambda logits: tf.nn.softplus(logits),
        g_fake=lambda logits: -tf.nn.softplus(logits),
    ),
    # -D(x); D(G(z)); -D(G(z)), for a D held 1-Lipschitz by a penalty or by clipping.
    # Arjovsky et al., arXiv:1701.07875, algorithm 1.
    "wasserstein": Objective(
        d_real=lambda logits: -logits,
        d_fake=lambda logits: logits,
        g_fake=lambda logits: -logits,
        classifies=False,
    ),
    # max(0, 1 - D(x)); max(0, 1 + D(G(z))); -D(G(z)).
    # Lim and Ye, arXiv:1705.02894; Miyato et al., arXiv:1802.05957, equations 16 and 17.
    "hinge": Objective(
        d_real=lambda logits: tf.nn.relu(1.0 - logits),
        d_fake=lambda logits: tf.nn.relu(1.0 + logits),
        g_fake=lambda logits: -logits,
    ),
    # (D(x) - b)^2 / 2; (D(G(z)) - a)^2 / 2; (D(G(z)) - c)^2 / 2 with a = -1, b = c = 1:
    # the paper's 0-1 coding moved so that the sign of a logit tells real from fake.
    # Mao et al., arXiv:1611.04076, section 3.2.
    "least_squares": Objective(
        d_real=lambda logits: 0.5 * tf.square(logits - 1.0),
        d_fake=lambda logits: 0.5 * tf.square(logits + 1.0),
        g_fake=lambda logits: 0.5 * tf.square(logits - 1.0),
    ),
}


def towards(target: tf.Tensor | float, as_real: Loss, as_fake: Loss) -> Loss:
    """Returns D's loss for images whose target is `target`: 1 for real, 0 for fake.

    With the cross-entropies this is the cross-entropy with the label `target`, which
    makes label smoothing (Salimans et al., arXiv:1606.03498, section 3.4) and flipped
    labels the same thing for every loss.
    """
    return lambda logits: target * as_real(logits) + (1.0 - target) * as_fake(logits)


def gradient_penalty(gradients: tf.Tensor) -> tf.Tensor:
    """Returns (|gradient| - 1)^2 of each image's gradient [N, H, W, C], [N] float32.

    Gulrajani et al., arXiv:1704.00028, equation 3.
    """
    squares = tf.reduce_sum(tf.square(tf.cast(gradients, tf.float32)), [1, 2, 3])
    # The square root has no gradient at zero.
    return tf.square(tf.sqrt(squares + 1e-12) - 1.0)


def share_real(logits: tf.Tensor) -> tf.Tensor:
    """Returns 1 for each logit that means real and 0 otherwise, [N] float32."""
    return tf.cast(logits > 0, tf.float32)
