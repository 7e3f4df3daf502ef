"""Log messages at the start and at the end of a run."""

import logging
import math
import shlex
from collections.abc import Sequence

from trainer import recipes
from trainer.config import Config
from trainer.config.schedules import Schedule, Value
from trainer.config.settings import Duration, as_flag
from trainer.data.file_stores import printable
from trainer.data.images import ImageSet
from trainer.generation.sampler import frames
from trainer.machine.replicas import Replicas
from trainer.recipes import files
from trainer.run_dir import checkpoint_files
from trainer.run_dir.directory import RunDir
from trainer.training.cost import Cost
from trainer.training.state import TrainState

log = logging.getLogger(__name__)

NAMED_CLASSES = 20  # classes that are listed at the start
WORTHWHILE_SHARE = 256  # images per step from which several GPUs are worth their overhead


def start(
    config: Config, replicas: Replicas, state: TrainState, data: ImageSet, last_step: int
) -> None:
    """Logs the recipe, the data, the networks, the devices and the length of training."""
    log.info(
        "Recipe %s on %s: %s images %dx%dx%d, %s%s",
        files.shown_name(config.recipe),
        config.dataset,
        f"{len(data):,}",
        *data.shape.sides,
        data.shape.channels,
        "1 class" if data.shape.classes == 1 else f"{data.shape.classes} classes",
        ", conditional" if config.conditional else "",
    )
    names = data.class_names
    if config.conditional and not all(map(str.isdecimal, names)):
        shown = ", ".join(printable(name) for name in names[:NAMED_CLASSES])
        more = f" and {len(names) - NAMED_CLASSES} more" if len(names) > NAMED_CLASSES else ""
        log.info("Rows of the sample grids, from the top: %s%s", shown, more)
    sides = recipes.network_sides(config, data.shape.sides)
    if sides != data.shape.sides:
        log.info(
            "The networks are built for %dx%d pixels, of which the images are the middle",
            *sides,
        )
    share = config.batch_size // replicas.num_replicas
    rows = min(share, config.batch_per_replica or share)
    cost = Cost.of(config, state.generator, state.discriminator)
    log.info("%s", cost.describe(rows, replicas.precision))
    kind = replicas.device_names[0].partition(":")[0]
    log.info(
        "Devices: %s (%s), %s%s",
        ", ".join(replicas.device_names),
        "no GPU in use" if kind == "CPU" else f"{len(replicas.device_names)} GPU in use",
        replicas.precision,
        ", deterministic" if replicas.deterministic else "",
    )
    warn_of_small_shares(share, replicas.device_names, replicas.num_replicas)
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
    warn_of_rates_of_zero(config, int(state.images.numpy()), last_step)
    log.info("Run directory: %s", config.run_dir)


def complete(config: Config, steps: int) -> None:
    """Logs that a run has already trained all its steps."""
    hint = ""
    if _learns_beyond(config, steps * config.batch_size):
        hint = " Use a greater length to continue it."
    log.info("%s is complete: %d steps.%s", config.run_dir, steps, hint)


def _learns_beyond(config: Config, images: int) -> bool:
    """Returns whether no schedule of the learning rates has ended at 0 by then."""
    ends = (_zero_from_kimg(config.g_lr), _zero_from_kimg(config.d_lr))
    return all(end is None or 1000 * end > images for end in ends)


def warn_of_rates_of_zero(config: Config, images: int, last_step: int) -> None:
    """Warns if schedules of the learning rates reach 0 before the last step.

    Args:
      config: the configuration of the run.
      images: number of images seen at this start.
      last_step: number of steps at the end of the run.
    """
    for name, network in (("g_lr", "generator"), ("d_lr", "discriminator")):
        from_kimg = _zero_from_kimg(getattr(config, name))
        first = max(images, math.ceil(1000 * from_kimg)) if from_kimg is not None else math.inf
        if first > (last_step - 1) * config.batch_size:
            continue
        if images:
            remedy = (
                "A run keeps its schedules. Start it again with its whole length and --fresh, or "
                f"train its networks further in another --run_dir with --init_from={config.run_dir}"
            )
        else:
            remedy = "Give a schedule that spans the run, or another END"
        log.warning(
            "--%s=%r is 0 from %.6g kimg on, so the %s does not learn in the last %d steps. %s",
            *(name, str(getattr(config, name)), from_kimg, network),
            *(last_step - math.ceil(first / config.batch_size), remedy),
        )


def _zero_from_kimg(rate: Value) -> float | None:
    """Returns the kimg from which a schedule stays 0; None for others and for numbers."""
    return rate.zero_from_kimg if isinstance(rate, Schedule) else None


def warn_of_small_shares(share: int, device_names: Sequence[str], num_replicas: int) -> None:
    """Warns if several GPUs have so few images per step that more GPUs hardly help.

    Args:
      share: images per step of each GPU.
      device_names: names of this worker's devices.
      num_replicas: number of replicas of all workers.
    """
    if num_replicas == 1 or not device_names[0].startswith("GPU") or share >= WORTHWHILE_SHARE:
        return
    log.warning(
        "Each of %d GPUs trains on %d images per step. With fewer than %d, launching kernels and "
        "exchanging gradients takes most of the time. Use fewer GPUs, or --batch_size=%d, which "
        "changes what is trained and suits a higher learning rate",
        num_replicas,
        share,
        WORTHWHILE_SHARE,
        num_replicas * WORTHWHILE_SHARE,
    )


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
    commands = {
        "Draw images": f"generate {run} --num=100 --out=grid.png",
        "Measure quality": f"evaluate {run}",
        "Train longer": f"train {run} {longer}",
    }
    done = max(checkpoint_files.saved_steps(run_dir.checkpoints), default=0) * config.batch_size
    if not _learns_beyond(config, done):
        del commands["Train longer"]
    for what, command in commands.items():
        log.info("%-16spython -m trainer %s", what, command)
