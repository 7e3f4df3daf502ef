"""Evaluations during training: evaluates regularly, records results and keeps the best."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras

from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.errors import UsageError, one_of
from trainer.evaluation import evaluator
from trainer.evaluation.evaluator import EvaluationOptions, Evaluator
from trainer.generation.sampler import Sampler
from trainer.machine.replicas import Replicas
from trainer.machine.signals import TimeLimit
from trainer.metrics.registry import METRICS, format_metrics
from trainer.run_dir import evaluation_history
from trainer.run_dir.checkpoints import Checkpoints
from trainer.run_dir.directory import RunDir
from trainer.run_dir.evaluation_history import EvaluationHistory

log = logging.getLogger(__name__)

KEEP = 10**6  # no limit: EvaluationHistory removes those that are no longer needed
Record = Callable[[Mapping[str, float], int], None]


class _Interrupted(Exception):
    """An evaluation was interrupted by a request to stop."""


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluatedModel:
    """The model that is evaluated while it trains.

    Attributes:
      generator: the generator to draw images from.
      trackables: the objects that a checkpoint saves, by name.
      replicas: the replicas that the model trains on.
    """

    generator: keras.Model
    trackables: Mapping[str, object]
    replicas: Replicas


@dataclasses.dataclass(eq=False)
class TrainingEvaluations:
    """The evaluations of a run during training.

    Attributes:
      config: the configuration of the run.
      run_dir: the run directory; None on workers other than the chief.
      every_images: number of training images between evaluations; 0 if this process never
        evaluates.
      stop: returns whether to stop now.
      upkeep: called regularly during an evaluation; raises an error if training must not
        continue.
      evaluator: evaluates the generator; None if this process never evaluates.
      sampler: draws images from the generator; None if this process never evaluates.
      checkpoints: the best checkpoints; None if this process never evaluates.
      record: called with the values and the step of each evaluation.
      best: the results so far; None if this process never evaluates.
    """

    config: Config
    run_dir: RunDir | None
    every_images: int
    stop: Callable[[], bool]
    upkeep: Callable[[], None]
    evaluator: Evaluator | None = None
    sampler: Sampler | None = None
    checkpoints: Checkpoints | None = None
    record: Record = lambda values, step: None
    best: EvaluationHistory | None = None

    def restore(self, done: int) -> None:
        """Restores the results up to step `done` and removes later ones."""
        if self.run_dir is None:
            return
        if self.evaluator is None or self.checkpoints is None:
            evaluation_history.discard_after(self.run_dir, done)
            return
        conditions = self.evaluator.describe()
        _check_same_inception(self.run_dir, conditions)
        self.best = EvaluationHistory(
            self.run_dir, self.checkpoints, self.config.best_metric, conditions, done=done
        )

    def resume(self, done: int, record: Record) -> None:
        """Restores the results up to step `done`, and evaluates that step if it is due.

        An evaluation is due if it was interrupted before it was recorded.

        Args:
          done: number of finished steps.
          record: called with the values and the step of each evaluation from now on.
        """
        self.record = record
        self.restore(done)
        if self.evaluator is None:
            return
        images = done * self.config.batch_size
        before = images - self.config.batch_size
        if done and images // self.every_images > before // self.every_images:
            self.evaluate(done)

    def evaluate(self, done: int) -> bool:
        """Evaluates after `done` steps, unless the result of that step is recorded already.

        Returns:
          False if a request to stop interrupted the evaluation, which must then be repeated
          when the run resumes.
        """
        if self.evaluator is None or self.sampler is None or self.best is None:
            return True
        if self.best.was_evaluated(done):
            return True
        started = time.monotonic()
        try:
            result = self.evaluator.evaluate(self.sampler, self._check_interrupt)
        except _Interrupted:
            log.info(
                "Stopping interrupted the evaluation at step %d. It is repeated when the run "
                "resumes.",
                done,
            )
            return False
        kimg = done * self.config.batch_size / 1000
        is_best = self.best.record(done, kimg, result.values)
        secs = time.monotonic() - started
        self.record({**result.values, "evaluate_secs": secs, "evaluated_kimg": kimg}, done)
        log.info(
            "Evaluation at %.6g kimg: %s  (%d images, %s; %.1f s)%s",
            kimg,
            format_metrics(result.values),
            self.evaluator.num_samples,
            self.evaluator.network.name,
            secs,
            f"  best {self.config.best_metric} so far" if is_best else "",
        )
        return True

    @property
    def stopped_improving(self) -> bool:
        """Whether --stop_after_no_gain_kimg has passed without improvement."""
        limit = self.config.stop_after_no_gain_kimg
        return bool(limit and self.best and self.best.kimg_without_improvement() >= limit)

    def log_best(self) -> None:
        """Logs the best and the last result, if there is any."""
        if self.run_dir is None or self.best is None or (line := self.best.best_line) is None:
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

    def _check_interrupt(self) -> None:
        self.upkeep()
        if self.stop():
            raise _Interrupted


def _check_same_inception(run_dir: RunDir, conditions: dict[str, Any]) -> None:
    """Raises a UsageError if earlier evaluations used another Inception network."""
    if conditions["feature_network"] != "inception":
        return
    for line in evaluation_history.read_evaluations(run_dir.evaluation_log):
        before = line["ruler"]
        if before["feature_network"] == "inception" and (
            before["feature_hash"] != conditions["feature_hash"]
        ):
            raise UsageError(
                "--inception_path: the SHA-256 of this Inception network begins with "
                f"{conditions['feature_hash']}, but {run_dir.evaluation_log} was measured with "
                f"{before['feature_hash']}. Use the same file."
            )


def check_settings(config: Config, data: ImageSet) -> None:
    """Raises a UsageError if the evaluations that the settings request are not possible."""
    if not config.evaluate_every.value:
        return
    one_of("--best_metric", config.best_metric, METRICS)
    shape, features = data.shape, config.evaluate_features
    uses_inception = evaluator.check_features(config, shape, features, config.inception_path)
    if METRICS[config.best_metric].needs_alpha and not (uses_inception and shape.channels == 4):
        raise UsageError(
            f"--best_metric={config.best_metric} is for images with 4 channels and the features "
            "of Inception only. Use another metric, such as fid."
        )
    if METRICS[config.best_metric].needs_labels and not config.conditional:
        raise UsageError(
            f"--best_metric={config.best_metric} is for conditional runs only. Use another "
            "metric, such as fid."
        )


def create(
    config: Config,
    data: ImageSet,
    run_dir: RunDir | None,
    model: EvaluatedModel,
    stop: TimeLimit,
    upkeep: Callable[[], None],
) -> TrainingEvaluations:
    """Creates the evaluations of a run; only the chief of a run that evaluates prepares them.

    Preparing them takes a while at first use, when the classifier is trained and the features
    of the real images are computed.

    Args:
      config: the configuration of the run.
      data: its training images.
      run_dir: the run directory; None on workers other than the chief.
      model: the model to evaluate.
      stop: returns whether to stop now.
      upkeep: called regularly; raises an error if training must not continue.

    Raises:
      UsageError: if the requested features are not available.
      DataError: if there are too few images.
      TrainerError: if a stop is requested while the evaluations are prepared.
    """
    every_images = 0
    if run_dir is not None:
        every_images = config.evaluate_every.images(config.batch_size, len(data))
    evaluations = TrainingEvaluations(config, run_dir, every_images, stop, upkeep)
    if run_dir is None or not every_images:
        return evaluations

    def check_interrupt() -> None:
        upkeep()
        if stop():
            raise stop.error(
                "while preparing the evaluations. Run the same command again to resume."
            )

    options = EvaluationOptions(
        features=config.evaluate_features,
        inception_path=config.inception_path,
        num_samples=config.evaluate_samples,
        seed=config.seed,
        inception_sha256=config.inception_sha256,
    )
    evaluations.evaluator = evaluator.create_evaluator(config, data, options, check_interrupt)
    evaluations.sampler = Sampler(config, model.generator, model.replicas)
    evaluations.checkpoints = Checkpoints(
        run_dir.best_checkpoints, model.trackables, keep=KEEP, spare=0
    )
    return evaluations
