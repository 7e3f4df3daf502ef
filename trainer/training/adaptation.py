"""Adapts the strength of the augmentation to the overfitting of the discriminator.

The more the discriminator overfits, the more of the reals it judges real.  The strength rises
while the mean sign of its logits on reals is above a target, and falls while it is below (Karras
et al., arXiv:2006.06676, section 3.1, heuristic r_t).
"""

import dataclasses

import tensorflow as tf

from trainer.config import Config
from trainer.models.schedules import current

EVERY = 4  # steps between adjustments, as published


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the strength is adapted.

    Attributes:
      target: mean sign of the logits on reals, -1 to 1, at which the strength stays.
      speed_kimg: kimg in which the strength changes by 1.
      batch_size: images per step.
      reals_per_step: reals that the discriminator judges in a step.
    """

    target: float
    speed_kimg: float
    batch_size: int
    reals_per_step: int

    def after_step(
        self, strength: tf.Tensor, judged_real: tf.Tensor, share: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the strength, 0 to 1, and the number of reals judged real after a step.

        Args:
          strength: the strength before the step.
          judged_real: number of reals judged real since the last adjustment.
          share: share of the step's reals that are judged real, which is the mean of the signs
            plus 1, halved.
          step: number of steps done before this one, an integer scalar.
        """
        # A whole number, which float32 holds exactly.  So the rounding of the share, which
        # depends on the number of replicas, has no effect.
        judged_real += tf.round(share * self.reals_per_step)
        at_target = 0.5 * (1.0 + self.target) * self.reals_per_step * EVERY
        change = self.batch_size * EVERY / (1000.0 * self.speed_kimg)
        adjusted = strength + change * tf.sign(judged_real - at_target)
        is_due = tf.equal((step + 1) % EVERY, 0)
        return (
            tf.where(is_due, tf.clip_by_value(adjusted, 0.0, 1.0), strength),
            tf.where(is_due, 0.0, judged_real),
        )


def rule_of(config: Config) -> Rule:
    """Returns the rule that a configuration describes."""
    return Rule(
        target=config.augment_target,
        speed_kimg=config.augment_speed_kimg,
        batch_size=config.batch_size,
        reals_per_step=config.batch_size * config.d_steps,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveStrength:
    """The strength of the augmentation as state of the run.

    Attributes:
      rule: how it is adapted.
      value: the strength, a float32 scalar.
      judged_real: number of reals judged real since the last adjustment, a float32 scalar.
    """

    rule: Rule
    value: tf.Variable
    judged_real: tf.Variable

    @classmethod
    def create(cls, rule: Rule) -> "AdaptiveStrength":
        """Creates its variables, which begin at 0.  Call it inside the scope of the replicas."""
        return cls(rule, _scalar("augment_strength"), _scalar("augment_judged_real"))

    def observe(self, share: tf.Tensor, step: tf.Tensor) -> None:
        """Adapts the strength after a step.  Call it outside of the replicas.

        Args:
          share: share of the step's reals that are judged real, over all replicas.
          step: number of steps done before this one.
        """
        value, judged_real = self.rule.after_step(
            self.value.read_value(), self.judged_real.read_value(), share, step
        )
        self.value.assign(value)
        self.judged_real.assign(judged_real)


def strength(
    config: Config, adaptive: AdaptiveStrength | None, images: tf.Tensor | int
) -> tf.Tensor:
    """Returns the present strength of the augmentation, a float32 scalar.

    Args:
      config: the configuration of the run.
      adaptive: its adaptive strength, if it has one.
      images: number of images seen.
    """
    if adaptive is not None:
        return adaptive.value.read_value()
    value = config.augment_strength
    return current(0.0 if isinstance(value, str) else value, images)


def _scalar(name: str) -> tf.Variable:
    aggregation = tf.VariableAggregation.ONLY_FIRST_REPLICA
    return tf.Variable(0.0, trainable=False, aggregation=aggregation, name=name)
