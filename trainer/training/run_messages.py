"""Log messages at the start and at the end of a run."""

import logging
import shlex

from trainer.config import Config
from trainer.config.settings import Duration, as_flag
from trainer.data.images import ImageSet
from trainer.generation.sampler import frames
from trainer.machine.replicas import Replicas
from trainer.recipes import files
from trainer.run_dir.directory import RunDir
from trainer.training.state import TrainState

log = logging.getLogger(__name__)


def start(
    config: Config, replicas: Replicas, state: TrainState, data: ImageSet, last_step: int
) -> None:
    """Logs the recipe, the data, the networks, the devices and the length of training."""
    log.info(
        "Recipe %s on %s: %s images %dx%dx%d, %s%s",
        files.shown_name(config.recipe),
        config.dataset,
        f"{len(data):,}",
        data.shape.size,
        data.shape.size,
        data.shape.channels,
        _classes(data.shape.classes),
        ", conditional" if config.conditional else "",
    )
    log.info(
        "Generator of %s weights, discriminator of %s",
        f"{state.generator.count_params():,}",
        f"{state.discriminator.count_params():,}",
    )
    kind = replicas.device_names[0].partition(":")[0]
    log.info(
        "Devices: %s (%s), %s%s",
        ", ".join(replicas.device_names),
        "no GPU in use" if kind == "CPU" else f"{len(replicas.device_names)} GPU in use",
        replicas.precision,
        ", deterministic" if replicas.deterministic else "",
    )
    share = config.batch_size // replicas.num_replicas
    if 0 < config.batch_per_replica < share:
        log.info(
            "Accumulating gradients over %d micro-batches of %d images per device. Batch norm "
            "computes its statistics per micro-batch",
            share // config.batch_per_replica,
            config.batch_per_replica,
        )
    log.info("Length: %s", _length(config, last_step, len(data)))
    log.info("Run directory: %s", config.run_dir)


def _classes(count: int) -> str:
    return {0: "no classes", 1: "1 class"}.get(count, f"{count} classes")


def _length(config: Config, last_step: int, epoch_size: int) -> str:
    """Returns the length of training in the unit that was given, and in the others."""
    images = last_step * config.batch_size
    others = {
        "steps": f"{last_step:,} steps of {config.batch_size} images",
        "kimg": f"{images / 1000:.6g} kimg",
        "epochs": f"{images / epoch_size:.4g} epochs",
    }
    given = config.length.unit
    first = others[given] if given == "steps" else str(config.length)
    return " = ".join([first, *(text for unit, text in others.items() if unit != given)])


def end(config: Config, run_dir: RunDir, last_step: int) -> None:
    """Logs the paths of what the run has written, and the commands that may follow."""
    paths = frames(run_dir.samples)
    for what, path in (
        ("Samples", paths[-1]),
        (f"GIF of {len(paths)} grids", run_dir.gif),
        ("Reals", run_dir.reals),
        ("Generator", run_dir.generator),
        ("Checkpoints", run_dir.checkpoints),
        ("Metrics", run_dir.metrics),
        ("TensorBoard", run_dir.tensorboard),
    ):
        log.info("%-16s%s", what, path)
    length = Duration(2 * config.length.value, config.length.unit)
    run = f"--run_dir={shlex.quote(config.run_dir)}"
    for what, command in (
        ("Draw images", f"generate {run} --num=100 --out=grid.png"),
        ("Measure quality", f"evaluate {run}"),
        ("Train longer", f"train {run} {as_flag('length', length)}"),
    ):
        log.info("%-16spython -m trainer %s", what, command)
