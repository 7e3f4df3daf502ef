"""Adversarial losses per image, as functions of the discriminator's logits on reals and fakes.

D denotes the discriminator's logit.  A positive logit means "real" unless the loss is on pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

from trainer.models.lazy import tf

Loss = Callable[["tf.Tensor"], "tf.Tensor"]


@dataclasses.dataclass(frozen=True)
class Sum:
    """A loss on reals plus a loss on fakes: functions from logits [N] to losses [N].

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
    on_pairs: ClassVar[bool] = False

    def d_loss(self, real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
        """Returns the losses of D, [N]."""
        return self.d_real(real_logits) + self.d_fake(fake_logits)

    def g_loss(self, real_logits: tf.Tensor | None, fake_logits: tf.Tensor) -> tf.Tensor:
        """Returns the losses of G, [N], which do not depend on the reals."""
        return self.g_fake(fake_logits)

    def margins(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns numbers that are positive where D judges real, [2, N]: the logits."""
        return logits

    def with_targets(self, real: tf.Tensor | float, fake: tf.Tensor | float) -> Sum:
        """Returns the objective whose D has other targets: 1 for real, 0 for fake.

        With the cross-entropies D's loss is the cross-entropy with the target as the label, which
        makes label smoothing (Salimans et al., arXiv:1606.03498, section 3.4) and flipped labels
        the same thing for every loss.
        """

        def towards(target: tf.Tensor | float) -> Loss:
            return lambda logits: (
                target * self.d_real(logits) + (1.0 - target) * self.d_fake(logits)
            )

        return dataclasses.replace(self, d_real=towards(real), d_fake=towards(fake))


@dataclasses.dataclass(frozen=True)
class OnPairs:
    """A loss on the margin between a real and a fake that are paired.

    Both networks need reals and fakes together.

    Attributes:
      loss: function from margins [N] to losses [N].  The margin is D(x) - D(G(z)) in D's loss and
        D(G(z)) - D(x) in G's.
    """

    loss: Loss
    # The sign of a single logit has no meaning: the loss does not change if a constant is added.
    classifies: ClassVar[bool] = False
    on_pairs: ClassVar[bool] = True

    def d_loss(self, real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
        """Returns the losses of D, [N]."""
        return self.loss(real_logits - fake_logits)

    def g_loss(self, real_logits: tf.Tensor, fake_logits: tf.Tensor) -> tf.Tensor:
        """Returns the losses of G, [N]."""
        return self.loss(fake_logits - real_logits)

    def margins(self, logits: tf.Tensor) -> tf.Tensor:
        """Returns numbers that are positive where D judges real, [2, N].

        D judges an image real if its logit exceeds that of the image with which it is paired.
        """
        return logits - tf.reverse(logits, [0])


Objective = Sum | OnPairs

OBJECTIVES: dict[str, Objective] = {
    # -log sigmoid(D(x)); -log(1 - sigmoid(D(G(z)))); -log sigmoid(D(G(z))).
    # Goodfellow et al., arXiv:1406.2661, section 3.
    "nonsaturating": Sum(
        d_real=lambda logits: tf.nn.softplus(-logits),
        d_fake=lambda logits: tf.nn.softplus(logits),
        g_fake=lambda logits: tf.nn.softplus(-logits),
    ),
    # As above, but G minimises log(1 - sigmoid(D(G(z)))), which saturates while D wins.
    # Goodfellow et al., arXiv:1406.2661, equation 1.
    "minimax": Sum(
        d_real=lambda logits: tf.nn.softplus(-logits),
        d_fake=lambda logits: tf.nn.softplus(logits),
        g_fake=lambda logits: -tf.nn.softplus(logits),
    ),
    # -D(x); D(G(z)); -D(G(z)), for a D held 1-Lipschitz by a penalty or by clipping.
    # Arjovsky et al., arXiv:1701.07875, algorithm 1.
    "wasserstein": Sum(
        d_real=lambda logits: -logits,
        d_fake=lambda logits: logits,
        g_fake=lambda logits: -logits,
        classifies=False,
    ),
    # max(0, 1 - D(x)); max(0, 1 + D(G(z))); -D(G(z)).
    # Lim and Ye, arXiv:1705.02894; Miyato et al., arXiv:1802.05957, equations 16 and 17.
    "hinge": Sum(
        d_real=lambda logits: tf.nn.relu(1.0 - logits),
        d_fake=lambda logits: tf.nn.relu(1.0 + logits),
        g_fake=lambda logits: -logits,
    ),
    # (D(x) - b)^2 / 2; (D(G(z)) - a)^2 / 2; (D(G(z)) - c)^2 / 2 with a = -1, b = c = 1:
    # the paper's 0-1 coding moved so that the sign of a logit tells real from fake.
    # Mao et al., arXiv:1611.04076, section 3.2.
    "least_squares": Sum(
        d_real=lambda logits: 0.5 * tf.square(logits - 1.0),
        d_fake=lambda logits: 0.5 * tf.square(logits + 1.0),
        g_fake=lambda logits: 0.5 * tf.square(logits - 1.0),
    ),
    # -log sigmoid(D(x) - D(G(z))); -log sigmoid(D(G(z)) - D(x)), for x and G(z) that are paired.
    # Jolicoeur-Martineau, arXiv:1807.00734, section 4.1;
    # Huang et al., arXiv:2501.05441, equation 2.
    "relativistic": OnPairs(lambda margins: tf.nn.softplus(-margins)),
}


def verdicts(margins: tf.Tensor) -> tf.Tensor:
    """Returns 1 for each image that is judged real, -1 if it is judged fake, 0 if undecided.

    Args:
      margins: numbers that are positive where D judges real; see `Objective.margins`.
    """
    return tf.sign(margins)
