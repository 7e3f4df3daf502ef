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
        "1 class" if data.shape.classes == 1 else f"{data.shape.classes} classes",
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
    images = last_step * config.batch_size
    exact = {"steps": last_step, "kimg": images / 1000, "epochs": images / len(data)}
    is_exact = exact[config.length.unit] == config.length.value
    log.info(
        "Length: %s%s of %d images = %.6g kimg = %.4g epochs",
        "" if is_exact else f"{config.length} = ",
        "1 step" if last_step == 1 else f"{last_step:,} steps",
        config.batch_size,
        exact["kimg"],
        exact["epochs"],
    )
    log.info("Run directory: %s", config.run_dir)


def end(config: Config, run_dir: RunDir) -> None:
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
    length = config.length
    longer = as_flag("length", Duration(2 * length.value, length.unit))
    run = f"--run_dir={shlex.quote(config.run_dir)}"
    for what, command in (
        ("Draw images", f"generate {run} --num=100 --out=grid.png"),
        ("Measure quality", f"evaluate {run}"),
        ("Train longer", f"train {run} {longer}"),
    ):
        log.info("%-16spython -m trainer %s", what, command)
