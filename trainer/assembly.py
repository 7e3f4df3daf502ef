"""Composition root: puts the parts of a run together and trains it."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from trainer import recipes
from trainer.config import Config
from trainer.config.dataset import ImageShape
from trainer.data.images import ImageSet
from trainer.evaluation import during_training
from trainer.evaluation.during_training import EvaluatedModel
from trainer.files.atomic import replacing
from trainer.generation.export import export_to_model_dir, is_exported_to_model_dir
from trainer.generation.sampler import write_gif
from trainer.machine import devices, rendezvous
from trainer.machine.agreement import check_same_on_all_workers
from trainer.machine.batch import check_batch_size, parse_devices
from trainer.machine.cluster import Cluster
from trainer.machine.replicas import Replicas, create_replicas
from trainer.machine.signals import TimeLimit
from trainer.models.plain import plain
from trainer.recipes import files
from trainer.recipes.networks import build_networks
from trainer.reporting.control import Control
from trainer.reporting.prometheus import Telemetry
from trainer.run_dir import provenance
from trainer.run_dir.checkpoints import Checkpoints
from trainer.run_dir.definition import Definition, check_length
from trainer.run_dir.directory import RunDir
from trainer.run_dir.events import EventLog
from trainer.run_dir.saver import NoSaver, Saver
from trainer.storage import output_copies
from trainer.storage.attempts import Attempt, Uncounted
from trainer.storage.location import NoUploads, RunLocation, Uploads, download_run
from trainer.training import fine_tuning, run_messages, transfer_report
from trainer.training.cost import Cost
from trainer.training.outputs import Outputs
from trainer.training.run import Run
from trainer.training.state import TrainState, create_state

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartOptions:
    """How a run directory that exists is treated.

    Attributes:
      fresh: whether to rename it and start a new run.
      accept_changed_data: whether to resume with changed images.
      attempt: counts the starts that do not reach the run.
    """

    fresh: bool = False
    accept_changed_data: bool = False
    attempt: Attempt = dataclasses.field(default_factory=Uncounted)


@dataclasses.dataclass(frozen=True, eq=False)
class _Session:
    """What trains in this process."""

    config: Config
    data: ImageSet
    replicas: Replicas
    state: TrainState
    initialization: dict[str, Any] | None = None  # what was taken over already

    @property
    def done(self) -> int:
        """Number of finished steps."""
        return self.state.steps_done(self.config.batch_size)

    @property
    def last_step(self) -> int:
        """Number of steps at the end of the run."""
        return self.config.length.steps(self.config.batch_size, len(self.data))


@dataclasses.dataclass(frozen=True, eq=False)
class _Opened:
    """The run directory while it is locked; workers other than the chief have none."""

    run_dir: RunDir | None = None
    uploads: Uploads = dataclasses.field(default_factory=NoUploads)
    check_ownership: Callable[[], None] = lambda: None


def train(
    config: Config,
    data: ImageSet,
    control: Control,
    *,
    options: StartOptions = StartOptions(),
    cluster: Cluster | None = None,
) -> None:
    """Trains a run to its end, from the newest checkpoint of its run directory.

    Args:
      config: the configuration of the run.
      data: its training images.
      control: how the process is controlled.
      options: how a run directory that exists is treated.
      cluster: the workers, if several machines train together.

    Raises:
      TrainerError: if the run cannot continue; a StoppedError after an early stop.
    """
    config = config.with_spans_in_kimg(len(data))
    stop = TimeLimit(config.max_hours, control.stop_requested, control.clock)
    if cluster is not None:
        control.enter("waiting for peers")
        options.attempt.withdraw()  # the other workers are the reason if this takes too long
        rendezvous.meet(cluster, control.check_stop)
        options.attempt.met()
        control.enter("starting")
    late_end = EventLog(RunLocation(config).folder, cluster.index if cluster else 0).late_end
    small = recipes.get(config.networks).fully_connected
    replicas = create_replicas(config, cluster, small_operations=small, late_end=late_end)
    check_batch_size(config, replicas.num_replicas)
    with replicas.watched(config.step_timeout_secs, late_end) as watched:
        _train_on(watched, config, data, control, options, stop)


def _train_on(
    replicas: Replicas,
    config: Config,
    data: ImageSet,
    control: Control,
    options: StartOptions,
    stop: TimeLimit,
) -> None:
    """Trains a run to its end on some replicas."""
    location = RunLocation(config)
    with replicas.limited("building the networks with the other workers"), replicas.scope():
        state = create_state(config, data.shape, replicas.precision, on_gpus=replicas.is_on_gpus)
    during_training.check_settings(config, data)
    _check_workers(config, data, replicas)
    initialization = None
    is_new = options.fresh or not (location.is_mirrored or RunDir(location.folder).config.exists())
    if config.init_from and replicas.is_chief and is_new:
        # Before the run directory is created or an old run renamed, so that a run that does not
        # fit changes nothing.
        initialization = _copy_networks(config, data, state)
    session = _Session(config, data, replicas, state, initialization)
    # The directory is created last, so that wrong settings leave nothing behind.
    control.enter("downloading" if location.is_mirrored else "starting")
    with _open_run_dir(config, replicas, location, options, control) as opened:
        control.enter("restoring")
        run = _restore(session, opened, options, control, stop)
        if run is None:
            if opened.run_dir is not None and not is_exported_to_model_dir(config):
                export_to_model_dir(opened.run_dir, config)
            return
        run.train(stop)
        if opened.run_dir is not None:
            control.phases.enter("saving")
            _finish(config, state, opened.run_dir)
            run_messages.end(config, opened.run_dir)
            run.outputs.evaluations.log_best()
        replicas.leave()  # a worker that left early would end the chief, which still writes


def cost(config: Config, shape: ImageShape) -> str:
    """Returns what a step of a run costs, for the user, without using a GPU's memory.

    Args:
      config: the configuration of the run.
      shape: the shape of its images.

    Raises:
      UsageError: if the networks cannot be built.
    """
    gpus = len(tf.config.get_visible_devices("GPU"))
    count = parse_devices(config.devices).count or max(1, gpus)
    share = config.batch_size // (count * max(1, len(config.workers.split(","))))
    precision = devices.auto_precision() if config.precision == "auto" else config.precision
    tf.config.set_visible_devices([], "GPU")
    devices.set_number_format(precision)
    networks = build_networks(config, shape)
    return Cost.of(config, *networks).describe(
        min(share, config.batch_per_replica or share), precision
    )


def _check_workers(config: Config, data: ImageSet, replicas: Replicas) -> None:
    """Raises a UsageError unless all workers have the same software, settings, data and devices."""
    settings = config.replace(precision=replicas.precision).shared_json()
    inputs = "\n".join([settings, data.fingerprint, str(len(replicas.device_names))])
    check_same_on_all_workers(replicas, provenance.describe_software(), inputs)


def _restore(
    session: _Session,
    opened: _Opened,
    options: StartOptions,
    control: Control,
    stop: TimeLimit,
) -> Run | None:
    """Returns the run at its newest checkpoint, ready to train; None if it is complete."""
    config, replicas, state = session.config, session.replicas, session.state
    run_dir, phases = opened.run_dir, control.phases

    def upkeep() -> None:
        opened.check_ownership()
        phases.progress(session.done)

    saver: Saver | NoSaver = NoSaver()
    definition, finished = None, False
    if run_dir is not None:
        saver = _create_saver(run_dir, session, opened.check_ownership)
        definition, finished = _restore_checkpoint(run_dir, session, saver, options)
    replicas.broadcast_variables(state.all_variables())
    finished = bool(replicas.broadcast(int(finished)))
    done, last_step = session.done, session.last_step
    check_length(config, done, last_step)
    if run_dir is not None and definition is not None:
        # Written only now, so that a run that cannot start or resume stays as it was.
        definition.write(run_dir)
    if done >= last_step and finished:
        run_messages.complete(config, done)
        return None
    run_messages.start(config, replicas, state, session.data, last_step)
    model = EvaluatedModel(state.sampling_generator, state.trackables(), replicas)
    with phases.during("evaluating"):
        evaluations = during_training.create(config, session.data, run_dir, model, stop, upkeep)
    evaluations.restore(done)
    if replicas.broadcast(int(evaluations.stopped_improving and finished)):
        log.info("%s is complete: it stopped improving by step %d.", config.run_dir, done)
        return None
    telemetry = control.telemetry or Telemetry(0, {})
    telemetry.set("step", done)
    telemetry.set("target_step", last_step)
    events = EventLog(RunLocation(config).folder, replicas.worker_index)
    if run_dir is None:
        events.add_start(step=done, **_versions())
    else:
        started = run_dir.record_start(done, attempts := options.attempt.reached())
        telemetry.set("starts", started + 1)
        if (saved := saver.last_step) is not None:
            telemetry.restored(saved, run_dir.saved_at(saved))
        events.add_start(attempts - 1, step=done, starts=started + 1, **_versions())
        opened.uploads.saved()
    outputs = Outputs(run_dir, saver, opened.uploads, control.terminal, telemetry, evaluations)
    return Run(config, session.data, replicas, state, outputs, upkeep, phases)


def _restore_checkpoint(
    run_dir: RunDir, session: _Session, saver: Saver, options: StartOptions
) -> tuple[Definition, bool]:
    """Restores the newest checkpoint, or copies the networks of --init_from.

    Returns:
      What defines the run, and whether the run was finished at that checkpoint.
    """
    config, data, replicas = session.config, session.data, session.replicas
    definition = Definition(
        config=config,
        dataset=data.describe(),
        start=provenance.collect(_versions(), replicas.device_names, replicas.precision),
        recipe_files=files.copies(config),
    )
    definition.compare(run_dir, accept_changed_data=options.accept_changed_data)
    if restored := saver.restore_newest():
        log.info("Resuming from %s", restored)
    elif config.init_from:
        initialization = session.initialization or _copy_networks(config, data, session.state)
        definition = dataclasses.replace(definition, initialization=initialization)
    return definition, run_dir.is_complete(restored)


def _versions() -> dict[str, Any]:
    return {"tensorflow": tf.__version__, "keras": keras.__version__}


def _create_saver(run_dir: RunDir, session: _Session, check_ownership: Callable[[], None]) -> Saver:
    checkpoints = Checkpoints(
        run_dir.checkpoints,
        session.state.trackables(),
        keep=session.config.keep_checkpoints,
        spare=session.config.max_failed_saves,
    )
    return Saver(
        checkpoints, max_failed=session.config.max_failed_saves, check_ownership=check_ownership
    )


@contextlib.contextmanager
def _open_run_dir(
    config: Config,
    replicas: Replicas,
    location: RunLocation,
    options: StartOptions,
    control: Control,
) -> Iterator[_Opened]:
    """Locks the run directory inside the block, on the chief."""
    if not replicas.is_chief:
        log.info(
            "Worker %d of %d. See the log of the chief for the progress of the run.",
            replicas.worker_index,
            replicas.num_workers,
        )
        logging.getLogger("trainer").setLevel(logging.WARNING)
        with EventLog(location.folder, replicas.worker_index).recorded_end():
            yield _Opened()
        return
    run_dir, secs_left = RunDir(location.folder), control.secs_left
    if options.fresh:
        run_dir.set_aside()
    with (
        run_dir.locked() as lock,
        location.mirrored(fresh=options.fresh, secs_left=secs_left) as uploads,
        output_copies.synced_folder(config.tensorboard_dir, "tensorboard_dir", secs_left) as events,
    ):

        def check_ownership() -> None:
            lock.check_ownership()
            uploads.check_ownership()

        with EventLog(location.folder).recorded_end():
            yield _Opened(RunDir(location.folder, events), uploads, check_ownership)


def _copy_networks(config: Config, data: ImageSet, state: TrainState) -> dict[str, Any]:
    """Copies the networks of the run that --init_from names; returns what was taken over."""
    source = RunDir(download_run(config.init_from, flag="init_from"))
    new = fine_tuning.RunNetworks(config, data.describe(), state.networks())
    transfer = fine_tuning.plan(source, new)
    transfer.apply()
    transfer_report.log_summary(transfer, source)
    return transfer_report.describe(transfer, source)


def _finish(config: Config, state: TrainState, run_dir: RunDir) -> None:
    """Writes the GIF, exports the generator to --model_dir, and saves it as a Keras file."""
    with run_dir.converted_write_errors():
        write_gif(run_dir.samples, run_dir.gif)
    if config.model_dir:
        export_to_model_dir(run_dir, config)
    # Written last, because its presence marks the run as complete.
    with run_dir.converted_write_errors(), replacing(run_dir.generator) as scratch:
        plain(state.sampling_generator).save(scratch)
