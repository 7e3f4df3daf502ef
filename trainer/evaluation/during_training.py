"""Evaluations while a run trains: at their pace, recorded, and the best one kept."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping

import keras

from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.errors import StoppedError, UsageError, one_of
from trainer.evaluation import evaluator
from trainer.evaluation.evaluator import Evaluator
from trainer.generation.sampler import Sampler
from trainer.machine.replicas import Replicas
from trainer.metrics.registry import METRICS
from trainer.run_dir import evaluation_history
from trainer.run_dir.checkpoints import Checkpoints
from trainer.run_dir.directory import RunDir
from trainer.run_dir.evaluation_history import EvaluationHistory

log = logging.getLogger(__name__)

KEEP = 10**6  # checkpoints of which EvaluationHistory decides itself
Record = Callable[[Mapping[str, float], int], None]


class _BrokenOff(Exception):
    """A stop was requested in the middle of an evaluation."""


@dataclasses.dataclass(eq=False)
class Quality:
    """The evaluations of a run that trains.

    Attributes:
      config, run_dir: the run.
      every_images: how often to evaluate; 0 for never.
      evaluator, sampler, checkpoints: what that takes; None where it never happens.
      stop: whether to stop now.
      record: told the values and the step of each evaluation.
      best: what was found so far.
      secs: taken by the evaluations of this process.
    """

    config: Config
    run_dir: RunDir
    every_images: int
    stop: Callable[[], bool]
    evaluator: Evaluator | None = None
    sampler: Sampler | None = None
    checkpoints: Checkpoints | None = None
    record: Record = lambda values, step: None
    best: EvaluationHistory | None = None
    secs: float = 0.0

    def begin(self, done: int) -> None:
        """Takes up what was found in the steps that are done."""
        if self.evaluator is None or self.checkpoints is None:
            evaluation_history.discard_after(self.run_dir, done)
            return
        ruler = self.evaluator.describe()
        self.best = EvaluationHistory(
            self.run_dir, self.checkpoints, self.config.best_metric, ruler, done=done
        )

    def resume(self, done: int, record: Record) -> None:
        """Goes on from the steps that are done, with an evaluation that is still owed."""
        self.record = record
        self.begin(done)
        if self.evaluator is None:
            return
        images = done * self.config.batch_size
        before = images - self.config.batch_size
        if done and images // self.every_images > before // self.every_images:
            self.evaluate(done)

    def evaluate(self, done: int) -> bool:
        """Evaluates after so many steps, unless that was done.

        Returns:
          False if a stop was requested meanwhile: it is then owed.
        """
        if self.evaluator is None or self.sampler is None or self.best is None:
            return True
        if self.best.was_evaluated(done):
            return True
        started = time.monotonic()
        try:
            found = self.evaluator.evaluate(self.sampler, self._check)
        except _BrokenOff:
            log.info("The evaluation at step %d was broken off; it is made up for.", done)
            return False
        kimg = done * self.config.batch_size / 1000
        is_best = self.best.record(done, kimg, found.values)
        secs = time.monotonic() - started
        self.secs += secs
        self.record({**found.values, "evaluate_secs": secs, "evaluated_kimg": kimg}, done)
        log.info(
            "Evaluation at %.6g kimg: %s  (%d images, %s; %.1f s)%s",
            kimg,
            as_text(found.values),
            self.evaluator.num_samples,
            self.evaluator.network.name,
            secs,
            f"  best {self.config.best_metric} so far" if is_best else "",
        )
        return True

    @property
    def is_over(self) -> bool:
        """Whether --stop_after_no_gain_kimg has passed without improvement."""
        limit = self.config.stop_after_no_gain_kimg
        return bool(limit and self.best and self.best.kimg_without_improvement() >= limit)

    def sum_up(self) -> None:
        """Logs which checkpoint was the best."""
        if self.best is None or (line := self.best.best_line) is None:
            return
        metric = self.config.best_metric
        last = self.best.last_line or line
        log.info(
            "Best %s: %.4g at %.6g kimg, kept in %s (last: %.4g at %.6g kimg)",
            metric,
            line[metric],
            line["kimg"],
            self.run_dir.best_checkpoints,
            last[metric],
            last["kimg"],
        )

    def _check(self) -> None:
        if self.stop():
            raise _BrokenOff


def check(config: Config, data: ImageSet) -> None:
    """Raises a UsageError if the evaluations that the run asks for cannot be."""
    if not config.evaluate_every.value:
        return
    one_of("--best_metric", config.best_metric, METRICS)
    evaluator.check_features(config, data.shape, config.evaluate_features, config.inception_path)
    if config.best_metric == "conditional_accuracy" and not config.conditional:
        raise UsageError(
            "--best_metric=conditional_accuracy is for conditional runs: take another, such as fid."
        )


def prepare(
    config: Config,
    data: ImageSet,
    run_dir: RunDir,
    generator: keras.Model,
    checkpoint_items: Mapping[str, object],
    stop: Callable[[], bool],
    replicas: Replicas,
) -> Quality:
    """Gets ready to evaluate, if the run does and this is its chief; at first that takes a while.

    Raises:
      UsageError: if what it takes cannot be had.
      StoppedError: if a stop is requested meanwhile.
    """
    every = config.evaluate_every.images(config.batch_size, len(data)) if replicas.is_chief else 0
    quality = Quality(config, run_dir, every, stop)
    if not every:
        return quality

    def go_on() -> None:
        if stop():
            raise StoppedError("Stopped while evaluation was made ready. Start it again.")

    quality.evaluator = evaluator.prepare(
        config,
        data,
        features=config.evaluate_features,
        inception_path=config.inception_path,
        num_samples=config.evaluate_samples,
        seed=config.seed,
        check=go_on,
    )
    quality.sampler = Sampler(config, generator, replicas)
    quality.checkpoints = Checkpoints(
        run_dir.best_checkpoints, checkpoint_items, keep=KEEP, spare=0
    )
    return quality


def as_text(values: Mapping[str, float]) -> str:
    """The metrics in one line."""
    spreads = {"kid": "kid_std"}
    parts = []
    for name, value in values.items():
        if name.endswith("_std"):
            continue
        spread = f" +- {values[spreads[name]]:.2g}" if name in spreads else ""
        parts.append(f"{name} {value:.4g}{spread}")
    return "  ".join(parts)
