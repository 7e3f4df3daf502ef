"""Puts the parts of a run together and trains it."""

import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from trainer import checkpoint, loop, profiling, runtime, state, step
from trainer.checkpoint import Checkpoints
from trainer.config import Config
from trainer.console import Console
from trainer.data import pipeline
from trainer.data.images import ImageSet
from trainer.errors import CheckpointError, StoppedError
from trainer.files import write_text
from trainer.rundir import RunDir, provenance
from trainer.runtime import Runtime
from trainer.samples import Sampler, SampleSheet, sheet_path, write_gif
from trainer.settings import Duration
from trainer.signals import TimeLimit
from trainer.state import TrainState
from trainer.summaries import Recorder

log = logging.getLogger(__name__)


def train(
    config: Config,
    data: ImageSet,
    *,
    terminal: Console,
    stop_requested: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains a run to its end, from where its directory says it is.

    Args:
      config: the run.
      data: its images.
      terminal: where progress goes.
      stop_requested: whether to save and stop now.
      clock: seconds, rising, by which --max_hours counts.

    Raises:
      TrainerError: if the run cannot go on; StoppedError once an early stop is saved.
    """
    stop = TimeLimit(config.max_hours, stop_requested, clock)
    run_dir = RunDir(Path(config.run_dir))
    devices = runtime.start(config)
    with devices.scope():
        variables = state.create(config, data.shape, devices.precision)
    run_dir.claim(config, data)  # last, so that settings which cannot be leave nothing behind
    checkpoints = Checkpoints(run_dir.checkpoints, variables.trackables(), config.keep_checkpoints)
    restored = _begin(config, checkpoints, variables)

    first_step = int(variables.images.numpy()) // config.batch_size
    last_step = config.length.steps(config.batch_size, len(data))
    if first_step >= last_step and run_dir.is_finished(restored):
        log.info("%s is complete: %d steps. A greater length goes on.", run_dir.path, first_step)
        return
    _log_start(config, devices, variables, data, last_step)
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    write_text(run_dir.provenance, provenance(versions, devices.devices, devices.precision))

    recorder = _recorder(config, data, devices, terminal, range(first_step, last_step))
    with contextlib.closing(recorder):
        _train_steps(config, data, devices, variables, checkpoints, recorder, stop)
    _finish(variables, run_dir)


def _train_steps(
    config: Config,
    data: ImageSet,
    devices: Runtime,
    variables: TrainState,
    checkpoints: Checkpoints,
    recorder: Recorder,
    stop: TimeLimit,
) -> None:
    """Trains the steps of `recorder`, sampling and saving at their time and at the end.

    Raises:
      StoppedError: once an early stop is saved.
    """
    sample = _sampling(config, data, variables, recorder)

    def save(done: int) -> None:
        recorder.flush()  # first, so that the record covers what the checkpoint holds
        checkpoints.save(done)

    def every(period: Duration, action: Callable[[int], None]) -> loop.Periodic:
        return loop.Periodic(period.images(config.batch_size, len(data)), action)

    steps = recorder.steps
    plain = _advance(config, devices, variables, data, steps.start)
    with profiling.traced(plain, Path(config.run_dir) / "tensorboard", config.profile) as advance:
        done = loop.run(
            first_step=steps.start,
            last_step=steps.stop,
            batch_size=config.batch_size,
            advance=advance,
            observe=recorder.observe,
            periodic=[every(config.sample_every, sample), every(config.checkpoint_every, save)],
            stop_requested=stop,
        )
    save(done)
    if done < steps.stop:
        raise StoppedError(
            f"Stopped {stop.reason} after {done} of {steps.stop} steps, which are saved in "
            f"{checkpoints.folder}. The same command goes on."
        )
    sample(done)


def _begin(config: Config, checkpoints: Checkpoints, variables: TrainState) -> Path | None:
    """Restores the newest checkpoint, or takes over the networks of --init_from."""
    restored = checkpoints.restore_newest()
    if restored:
        log.info("Resuming from %s", restored)
    elif config.init_from:
        source = RunDir(Path(config.init_from))
        load_networks(source, variables.networks())
        log.info("Starting from the networks of %s", source.path)
    return restored


def load_networks(run_dir: RunDir, networks: dict[str, keras.Model]) -> Path:
    """Reads networks, by their names in checkpoints, from a run's newest checkpoint.

    Raises:
      UsageError: if `run_dir` is no run.
      CheckpointError: if it has no checkpoint that holds such networks.
    """
    run_dir.read_config()
    paths = checkpoint.found(run_dir.checkpoints)
    if not paths:
        raise CheckpointError(f"{run_dir.path} has no checkpoint yet.")
    try:
        checkpoint.restore(tf.train.Checkpoint(**networks), paths[0], partial=True)
    except checkpoint.UNREADABLE as error:
        raise CheckpointError(
            f"{paths[0]} does not fit the networks asked for, or is damaged "
            f"({checkpoint.first_line(error)})."
        ) from None
    return paths[0]


def _log_start(
    config: Config, devices: Runtime, variables: TrainState, data: ImageSet, last_step: int
) -> None:
    log.info(
        "Recipe %s on %s: %s images %dx%dx%d, %d classes%s",
        config.recipe,
        config.dataset,
        f"{len(data):,}",
        data.shape.size,
        data.shape.size,
        data.shape.channels,
        data.shape.classes,
        ", conditional" if config.conditional else "",
    )
    log.info(
        "Generator of %s weights, discriminator of %s",
        f"{variables.generator.count_params():,}",
        f"{variables.discriminator.count_params():,}",
    )
    kind = devices.devices[0].partition(":")[0]
    log.info(
        "Devices: %s (%s), %s%s",
        ", ".join(devices.devices),
        "no GPU in use" if kind == "CPU" else f"{len(devices.devices)} GPU in use",
        devices.precision,
        ", deterministic" if devices.deterministic else "",
    )
    share = config.batch_size // devices.num_replicas
    if 0 < config.batch_per_replica < share:
        log.info(
            "Accumulating %d micro-batches of %d images a device: batch norm, where there is "
            "one, sees those alone",
            share // config.batch_per_replica,
            config.batch_per_replica,
        )
    images = last_step * config.batch_size
    log.info(
        "Length: %s = %s steps of %d images = %.6g kimg = %.4g epochs",
        config.length,
        f"{last_step:,}",
        config.batch_size,
        images / 1000,
        images / len(data),
    )
    log.info("Run directory: %s", config.run_dir)


def _recorder(
    config: Config, data: ImageSet, devices: Runtime, terminal: Console, steps: range
) -> Recorder:
    """The record of the `steps` to train."""
    return Recorder(
        Path(config.run_dir),
        names=step.metric_names(devices.precision),
        steps=steps,
        batch_size=config.batch_size,
        epoch_size=len(data),
        every_secs=config.log_every_secs,
        every_steps=config.log_every_steps,
        memory=devices.memory,
        terminal=terminal,
    )


def _sampling(
    config: Config, data: ImageSet, variables: TrainState, recorder: Recorder
) -> Callable[[int], None]:
    """Draws the grids of reals and of first fakes that lack; returns what draws others."""
    sheet = SampleSheet(config, data.shape.classes)
    sampler = Sampler(config, variables.drawing)
    run_dir = RunDir(Path(config.run_dir))

    def sample(done: int) -> None:
        picture = sheet.fakes(sampler)
        picture.save(sheet_path(run_dir.samples, done * config.batch_size / 1000))
        recorder.image("fakes", picture, done)

    if not run_dir.reals.exists():
        reals = sheet.reals(data)
        reals.save(run_dir.reals)
        recorder.image("reals", reals, 0)
    if not int(variables.images.numpy()):
        sample(0)
    return sample


def _advance(
    config: Config, devices: Runtime, variables: TrainState, data: ImageSet, first_step: int
) -> step.Advance:
    """The compiled step on its data, from `first_step` on."""

    def batches(replicas: range) -> tf.data.Dataset:
        return pipeline.batches(
            data,
            seed=config.seed,
            first_step=first_step,
            batch_size=config.batch_size,
            batches_per_step=step.real_batches_per_step(config),
            replicas=replicas,
            num_replicas=devices.num_replicas,
        )

    iterator = devices.distribute(batches)
    return step.make_advance(config, devices, variables, data.shape.classes, iterator)


def _finish(variables: TrainState, run_dir: RunDir) -> None:
    """Saves the generator alone, makes the GIF and names what was written."""
    variables.drawing.save(run_dir.generator)
    frames = write_gif(run_dir.samples, run_dir.gif)
    newest = max(run_dir.samples.glob("fakes-*.png"))
    for what, path in (
        ("Samples", newest),
        (f"GIF of {frames} grids", run_dir.gif),
        ("Reals", run_dir.reals),
        ("Generator", run_dir.generator),
        ("Checkpoints", run_dir.checkpoints),
        ("Metrics", run_dir.path / "metrics.jsonl"),
        ("TensorBoard", run_dir.path / "tensorboard"),
    ):
        log.info("%-16s%s", what, path)
