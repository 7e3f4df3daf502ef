"""Composition root: puts the parts of a run together and trains it."""

import contextlib
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import tensorflow as tf

from trainer import recipes
from trainer.config import Config
from trainer.data.images import ImageSet
from trainer.evaluation import during_training
from trainer.evaluation.during_training import EvaluatedModel
from trainer.files.atomic import replacing
from trainer.generation.export import export_to_model_dir, is_exported_to_model_dir
from trainer.generation.sampler import write_gif
from trainer.machine.batch import check_batch_size
from trainer.machine.cluster import Cluster
from trainer.machine.replicas import Replicas, create_replicas
from trainer.machine.signals import TimeLimit
from trainer.models.plain import plain
from trainer.recipes import files
from trainer.reporting.console import Console
from trainer.reporting.heartbeat import Heartbeat
from trainer.reporting.prometheus import Telemetry
from trainer.run_dir import provenance
from trainer.run_dir.checkpoints import Checkpoints, load_networks
from trainer.run_dir.directory import RunDir
from trainer.run_dir.saver import Saver
from trainer.storage import output_copies
from trainer.storage.location import NoUploads, RunLocation, Uploads, download_run
from trainer.training import run_messages
from trainer.training.run import Run
from trainer.training.state import TrainState, copy_weights, create_state

log = logging.getLogger(__name__)


def train(
    config: Config,
    data: ImageSet,
    *,
    terminal: Console,
    stop_requested: Callable[[], bool],
    cluster: Cluster | None = None,
    place: RunLocation | None = None,
    secs_left: Callable[[], float] = lambda: math.inf,
    fresh: bool = False,
    accept_changed_data: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Trains a run to its end, from the newest checkpoint of its run directory.

    Args:
      config: the configuration of the run.
      data: its training images.
      terminal: the console that shows its progress.
      stop_requested: returns whether to save a checkpoint and stop.
      cluster: the workers, if several machines train together.
      place: the location of the run directory; by default as configured.
      secs_left: returns the seconds until the process is killed.
      fresh: whether to rename an existing run directory and start a new run.
      accept_changed_data: whether to resume with changed images.
      clock: returns monotonic seconds, for --max_hours.

    Raises:
      TrainerError: if the run cannot continue; a StoppedError after an early stop.
    """
    if cluster is None or cluster.is_chief:
        output_copies.check_writable(config.tensorboard_dir, "tensorboard_dir")
        output_copies.check_writable(config.model_dir, "model_dir")
    stop = TimeLimit(config.max_hours, stop_requested, clock)
    place = place or RunLocation(config)
    small_operations = recipes.get(config.networks).fully_connected
    replicas = create_replicas(config, cluster, small_operations=small_operations)
    check_batch_size(config, replicas.num_replicas)
    with replicas.scope():
        state = create_state(config, data.shape, replicas.precision)
    during_training.check_settings(config, data)
    _check_workers(config, data, replicas)
    # The directory is created last, so that wrong settings leave nothing behind.
    with _directory(config, replicas, place, fresh, secs_left) as (run_dir, check, uploads):
        versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
        start = provenance.collect(versions, replicas.device_names, replicas.precision)
        run_dir.claim(
            config,
            data.describe(),
            start,
            recipe_files=files.copies(config),
            accept_changed_data=accept_changed_data,
        )
        heartbeat = Heartbeat(Path(config.heartbeat) if config.heartbeat else None)

        def stop_now() -> bool:
            check()
            heartbeat.beat(state.steps_done(config.batch_size))
            return stop()

        run = _restore(config, data, run_dir, replicas, state, uploads, terminal, check, stop_now)
        if run is None:
            if replicas.is_chief and not is_exported_to_model_dir(config):
                export_to_model_dir(run_dir, config)
            return
        run.train(stop_now, lambda: stop.reason)
        if replicas.is_chief:
            _finish(config, state, run_dir)
            run_messages.end(run_dir)
            run.quality.log_best()
        replicas.barrier()  # a worker that left early would end the chief, which still writes


def _check_workers(config: Config, data: ImageSet, replicas: Replicas) -> None:
    """Raises a UsageError unless all workers have the same settings, data and devices."""
    settings = config.replace(precision=replicas.precision).shared_json()
    num_devices = str(len(replicas.device_names))
    replicas.check_same_on_all_workers("\n".join([settings, data.fingerprint, num_devices]))


def _restore(
    config: Config,
    data: ImageSet,
    run_dir: RunDir,
    replicas: Replicas,
    state: TrainState,
    uploads: Uploads,
    terminal: Console,
    check: Callable[[], None],
    stop: Callable[[], bool],
) -> Run | None:
    """Returns the run at its newest checkpoint, ready to train; None if it is complete."""
    checkpoints = Checkpoints(
        run_dir.checkpoints,
        state.trackables(),
        keep=config.keep_checkpoints,
        spare=config.max_failed_saves,
    )
    restored = _begin(config, checkpoints, state) if replicas.is_chief else None
    replicas.broadcast_variables(state.all_variables())
    done = state.steps_done(config.batch_size)
    last_step = config.length.steps(config.batch_size, len(data))
    finished = bool(replicas.broadcast(int(run_dir.is_complete(restored))))
    if done >= last_step and finished:
        log.info(
            "%s is complete: %d steps. Use a greater length to continue it.", run_dir.path, done
        )
        return None
    run_messages.start(config, replicas, state, data, last_step)
    model = EvaluatedModel(state.drawing, state.trackables(), replicas)
    quality = during_training.create(config, data, run_dir, model, stop)
    quality.restore(done)
    if replicas.broadcast(int(quality.stopped_improving and finished)):
        log.info("%s is complete: it stopped improving by step %d.", run_dir.path, done)
        return None
    labels = {"run": config.run_dir, "worker": str(replicas.worker_index)}
    telemetry = Telemetry(config.metrics_port, labels)
    telemetry.set("resumes", run_dir.record_start(done))
    return Run(
        config=config,
        data=data,
        run_dir=run_dir,
        replicas=replicas,
        state=state,
        saver=Saver(checkpoints, max_failed=config.max_failed_saves, check=check),
        uploads=uploads,
        terminal=terminal,
        telemetry=telemetry,
        last_step=last_step,
        quality=quality,
    )


@contextlib.contextmanager
def _directory(
    config: Config,
    replicas: Replicas,
    place: RunLocation,
    fresh: bool,
    secs_left: Callable[[], float],
) -> Iterator[tuple[RunDir, Callable[[], None], Uploads]]:
    """Yields the run directory, an ownership check and the uploader.

    Workers other than the chief get a temporary directory, so that all workers run the same
    code and only the files of the chief remain.
    """
    if not replicas.is_chief:
        log.info(
            "Worker %d of %d. See the log of the chief for the progress of the run.",
            replicas.worker_index,
            replicas.num_workers,
        )
        logging.getLogger("trainer").setLevel(logging.WARNING)
        with tempfile.TemporaryDirectory(prefix="gan-trainer-worker-") as folder:
            yield RunDir(Path(folder)), lambda: None, NoUploads()
        return
    run_dir = RunDir(place.folder)
    if fresh:
        run_dir.set_aside()
    with (
        run_dir.locked() as lock,
        place.mirrored(fresh=fresh, secs_left=secs_left) as uploads,
        output_copies.synced_folder(config.tensorboard_dir, "tensorboard_dir", secs_left) as events,
    ):

        def check() -> None:
            lock.check()
            uploads.check()

        yield RunDir(place.folder, events), check, uploads


def _begin(config: Config, checkpoints: Checkpoints, state: TrainState) -> Path | None:
    """Restores the newest checkpoint, or copies the networks of --init_from."""
    restored = checkpoints.restore_newest()
    if restored:
        log.info("Resuming from %s", restored)
    elif config.init_from:
        source = RunDir(download_run(config.init_from, flag="init_from"))
        has_average = bool(source.read_config().ema_half_life_kimg)
        networks = state.networks()
        average = None if has_average else networks.pop("average", None)
        load_networks(source.checkpoints, networks)
        if average is not None:
            copy_weights(state.generator, average)
        log.info("Starting from the networks of %s", source.path)
    return restored


def _finish(config: Config, state: TrainState, run_dir: RunDir) -> None:
    """Writes the GIF, exports the generator to --model_dir, and saves it as a Keras file."""
    with run_dir.converted_write_errors():
        write_gif(run_dir.samples, run_dir.gif)
    if config.model_dir:
        export_to_model_dir(run_dir, config)
    # Written last, because its presence marks the run as complete.
    with run_dir.converted_write_errors(), replacing(run_dir.generator) as scratch:
        plain(state.drawing).save(scratch)
