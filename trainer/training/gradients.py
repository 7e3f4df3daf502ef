"""The gradients of one micro-batch on one replica, with its share of the metrics.

Losses are sums over the rows of the micro-batch divided by the global batch size.  Summed
over micro-batches and replicas, as gradients are, they are means over the global batch.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from trainer.config import Config
from trainer.machine.devices import on_host
from trainer.models.objective import OBJECTIVES, Loss, Objective, Sum, verdicts
from trainer.models.randomness import Draws
from trainer.training import penalties
from trainer.training.forward import Forward, Logits
from trainer.training.penalties import Penalty
from trainer.training.updates import TracedNetwork

Gradients: TypeAlias = list[tf.Tensor]  # [size] float32 in the layout of each buffer of weights
LossAndJudgement = tuple[tf.Tensor, tf.Tensor]  # the first two fields of `step.Sums`


class Penalties(NamedTuple):
    """These rows' share of the penalties: their weighted sum, and each without its weight."""

    total: tf.Tensor
    each: list[tf.Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class MicroBatch:
    """Computes losses, gradients and metrics of the rows that a replica processes at once.

    Attributes:
      config: the configuration of the run.
      g, d: the generator and the discriminator.
      forward: their forward passes.
      classes: number of classes of the data set.
    """

    config: Config
    g: TracedNetwork
    d: TracedNetwork
    forward: Forward
    classes: int

    def discriminator(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        fakes: tf.Tensor | None = None,
        *,
        draws: Draws,
    ) -> tuple[Gradients, LossAndJudgement]:
        """Returns the gradients and metrics of the discriminator on reals and fakes.

        Args:
          images: [N, H, W, C] uint8.
          labels: [N] int32.
          fakes: [N, H, W, C] float32; None to generate them.
          draws: random numbers of these rows.
        """
        reals = self.forward.to_reals(images, draws)
        fakes = self.forward.generate(labels, draws) if fakes is None else fakes
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self.d.watch(tape)
            logits, found = self._judge(reals, fakes, labels, draws, self._penalties)
            loss = self._d_loss(logits, draws) + found.total
        gradients, loss, found = self._with_lazy_penalties(
            (self.d.gradients(tape, loss), loss, found), reals, fakes, labels, draws
        )
        return gradients, (loss, self._d_judgement(logits, found))

    def discriminator_on_reals(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        fakes: tf.Tensor | None = None,
        *,
        draws: Draws,
    ) -> tuple[Gradients, LossAndJudgement]:
        """Returns the gradients and metrics of the discriminator on reals alone."""
        gradients, loss, logits = self._d_gradients_on(
            self.forward.to_reals(images, draws),
            labels,
            self._sum(draws).d_real,
            draws.within("reals"),
        )
        return gradients, (0.5 * loss, tf.stack([_verdicts(logits), 0.0]))

    def discriminator_on_fakes(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        fakes: tf.Tensor | None = None,
        *,
        draws: Draws,
    ) -> tuple[Gradients, LossAndJudgement]:
        """Returns the gradients and metrics of the discriminator on fakes alone."""
        fakes = self.forward.generate(labels, draws) if fakes is None else fakes
        gradients, loss, logits = self._d_gradients_on(
            fakes, labels, self._sum(draws).d_fake, draws.within("fakes")
        )
        return gradients, (0.5 * loss, tf.stack([0.0, _verdicts(logits)]))

    def generator(
        self, images: tf.Tensor | None = None, labels: tf.Tensor | None = None, *, draws: Draws
    ) -> tuple[Gradients, LossAndJudgement]:
        """Returns the gradients and metrics of the generator on new latents.

        Args:
          images: reals [N, H, W, C] uint8, if the loss is on pairs.
          labels: their labels [N] int32, which the fakes share; otherwise they are random.
          draws: random numbers of these rows.
        """
        if labels is None and self.config.conditional:
            labels = draws.integers("labels", self.classes)
        return self._g_gradients_on(images, labels, draws, draws)

    def generator_on_same_fakes(
        self, images: tf.Tensor, labels: tf.Tensor, *, draws: Draws
    ) -> tuple[Gradients, LossAndJudgement]:
        """Returns those of the generator on the fakes that `discriminator` generated."""
        return self._g_gradients_on(images, labels, draws, draws.within("g"))

    def both(
        self, images: tf.Tensor, labels: tf.Tensor, *, draws: Draws
    ) -> tuple[Gradients, Gradients, LossAndJudgement, LossAndJudgement]:
        """Returns the gradients and metrics of both networks from the same fakes."""
        reals = self.forward.to_reals(images, draws)
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            self.g.watch(tape)
            self.d.watch(tape)
            fakes = self.forward.generate(labels, draws)
            logits, found = self._judge(reals, fakes, labels, draws, self._penalties)
            g_sums = self.g_sums(logits if self._objective.on_pairs else logits.fakes)
            d_loss = self._d_loss(logits, draws) + found.total
        d_gradients, d_loss, found = self._with_lazy_penalties(
            (self.d.gradients(tape, d_loss), d_loss, found), reals, fakes, labels, draws
        )
        g_gradients = self.g.gradients(tape, g_sums[0])
        return d_gradients, g_gradients, (d_loss, self._d_judgement(logits, found)), g_sums

    def judge_for_g(
        self,
        images: tf.Tensor | None,
        fakes: tf.Tensor,
        labels: tf.Tensor | None,
        draws: Draws,
        d_draws: Draws,
    ) -> tf.Tensor | Logits:
        """Returns the logits that the generator's loss needs.

        Args:
          images: reals [N, H, W, C] uint8, if the loss is on pairs.
          fakes: [N, H, W, C] float32.
          labels: those of reals and fakes, [N] int32.
          draws: random numbers with which reals are read.
          d_draws: random numbers of the discriminator.

        Returns:
          The logits of reals and fakes if the loss is on pairs, otherwise of fakes alone, [N].
        """
        if not self._objective.on_pairs:
            return self.forward.discriminate(fakes, labels, d_draws)
        return self.forward.discriminate_both(
            self.forward.to_reals(images, draws), fakes, labels, d_draws
        )

    def g_sums(self, logits: tf.Tensor | Logits) -> LossAndJudgement:
        """Returns the generator's loss and the verdicts on its fakes, two scalars.

        Args:
          logits: what `judge_for_g` returns.
        """
        objective = self._objective
        if isinstance(logits, Logits):
            loss = self._mean(objective.g_loss(logits.reals, logits.fakes))
            return loss, _verdicts(objective.margins(logits.both)[1])
        return self._mean(objective.g_loss(None, logits)), _verdicts(objective.margins(logits))

    def _g_gradients_on(
        self, images: tf.Tensor | None, labels: tf.Tensor | None, draws: Draws, d_draws: Draws
    ) -> tuple[Gradients, LossAndJudgement]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self.g.watch(tape)
            fakes = self.forward.generate(labels, draws)
            sums = self.g_sums(self.judge_for_g(images, fakes, labels, draws, d_draws))
        return self.g.gradients(tape, sums[0]), sums

    def _d_gradients_on(
        self, images: tf.Tensor, labels: tf.Tensor, loss_of: Loss, draws: Draws
    ) -> tuple[Gradients, tf.Tensor, tf.Tensor]:
        """Returns the gradients, the loss and the logits of the discriminator on images."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            self.d.watch(tape)
            logits = self.forward.discriminate(images, labels, draws)
            loss = self._mean(loss_of(logits))
        return self.d.gradients(tape, loss), loss, logits

    @property
    def _objective(self) -> Objective:
        return OBJECTIVES[self.config.loss]

    def _sum(self, draws: Draws) -> Sum:
        """Returns a loss that is no loss on pairs, with smoothed and flipped labels."""
        objective = self._objective
        if not isinstance(objective, Sum):
            raise TypeError(f"{self.config.loss} is a loss on pairs")
        targets = [1.0 - self.config.smooth_real, self.config.smooth_fake]
        if targets == [1.0, 0.0] and not self.config.flip_labels:
            return objective
        for k, name in enumerate(("reals", "fakes")):
            if self.config.flip_labels:
                flipped = draws.uniform(f"flip_{name}", ()) < self.config.flip_labels
                targets[k] = tf.where(flipped, 1.0 - targets[k], targets[k])
        return objective.with_targets(*targets)

    def _d_loss(self, logits: Logits, draws: Draws) -> tf.Tensor:
        """Returns the mean over one joint batch or over pairs, or the sum of two batches' means."""
        pairs = self._objective.on_pairs
        objective = self._objective if pairs else self._sum(draws)
        share = 0.5 if self.config.updates.batches == "joint" and not pairs else 1.0
        return self._mean(objective.d_loss(logits.reals, logits.fakes), share)

    def _d_judgement(self, logits: Logits, found: Penalties) -> tf.Tensor:
        """Returns the verdicts on reals and on fakes, and each penalty, [2 + penalties] float32."""
        judged = _verdicts(self._objective.margins(logits.both))
        return tf.concat([judged, tf.stack(found.each)], 0) if found.each else judged

    @property
    def _penalties(self) -> tuple[Penalty, ...]:
        """The penalties of every step."""
        return penalties.active(self.config) if self.config.penalty_every == 1 else ()

    def _judge(
        self,
        reals: tf.Tensor,
        fakes: tf.Tensor,
        labels: tf.Tensor,
        draws: Draws,
        chosen: Sequence[Penalty],
    ) -> tuple[Logits, Penalties]:
        """Returns the logits of reals and fakes, and the penalties."""
        batches = {"reals": reals, "fakes": fakes}
        at_batches = [penalty for penalty in chosen if penalty.images in batches]
        logits, gradients = penalties.judge(
            lambda: self.forward.discriminate_both(reals, fakes, labels, draws),
            [batches[penalty.images] for penalty in at_batches],
            half=self._in_half_precision,
        )
        at = dict(zip(at_batches, gradients, strict=True))
        total, each = tf.constant(0.0), []
        for penalty in chosen:
            if penalty not in at:
                at[penalty] = self._gradients_between(reals, fakes, labels, draws)
            # A penalty that only every n-th step has counts n times there (Karras et al.,
            # arXiv:1912.04958, section 3.1).
            value = self._mean(penalty.of(at[penalty]), float(self.config.penalty_every))
            total += penalties.weight(self.config, penalty, draws.images) * value
            each.append(value)
        return logits, Penalties(total, each)

    def _gradients_between(
        self, reals: tf.Tensor, fakes: tf.Tensor, labels: tf.Tensor, draws: Draws
    ) -> tf.Tensor:
        """Returns D's gradients at points between reals and fakes, [N, H, W, C] float32."""
        share = draws.uniform("between", (1, 1, 1))
        images = share * reals + (1.0 - share) * tf.stop_gradient(fakes)
        _, (gradients,) = penalties.judge(
            lambda: self.forward.discriminate(images, labels, draws.within("between")),
            [images],
            half=self._in_half_precision,
        )
        return gradients

    @property
    def _in_half_precision(self) -> bool:
        return self.d.compute_dtype != "float32"

    def _with_lazy_penalties(
        self,
        without: tuple[Gradients, tf.Tensor, Penalties],
        reals: tf.Tensor,
        fakes: tf.Tensor,
        labels: tf.Tensor,
        draws: Draws,
    ) -> tuple[Gradients, tf.Tensor, Penalties]:
        """Adds to D's gradients, loss and penalties those that only some steps compute.

        The gradients are computed inside of the branch: through a branch, TensorFlow would pass
        what they need in a form that XLA cannot compile.
        """
        chosen = penalties.active(self.config)
        if not chosen or self.config.penalty_every == 1:
            return without

        gradients, loss, _ = without

        def with_penalties() -> tuple[Gradients, tf.Tensor, Penalties]:
            with self.d.in_branch(), tf.GradientTape(watch_accessed_variables=False) as tape:
                self.d.watch(tape)
                _, found = self._judge(reals, fakes, labels, draws, chosen)
            added = self.d.gradients(tape, found.total)
            total = [a + b for a, b in zip(gradients, added, strict=True)]
            return total, loss + found.total, found

        with on_host():
            due = penalties.is_due(self.config, draws.images)
        none = Penalties(tf.constant(0.0), [tf.constant(0.0)] * len(chosen))
        return tf.cond(due, with_penalties, lambda: (gradients, loss, none))

    def _mean(self, values: tf.Tensor, weight: float = 1.0) -> tf.Tensor:
        """Returns these rows' share of the weighted mean over the global batch, a scalar."""
        return tf.reduce_sum(values) * (weight / self.config.batch_size)


def _verdicts(margins: tf.Tensor) -> tf.Tensor:
    """Returns how many more of the margins [..., N] mean real than fake, [...] float32."""
    return tf.reduce_sum(verdicts(margins), -1)
