"""`generate`: draws images from a checkpoint of a run."""

import logging
import math

from trainer import api
from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.config.numbers import check_seed
from trainer.errors import UsageError
from trainer.machine import imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to

SUMMARY = """Draws images from a run.  Writes one picture (--out=FILE.png; each class is a row), a
folder of pictures (--out=DIR) or arrays (--out=FILE.npz with images uint8 [N, H, W, C] and labels
int [N])."""

log = logging.getLogger(__name__)


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("generate", SUMMARY)
    runs.define_run_dir(parser, "to draw from")
    parser.integer("num", "number of images", default=64)
    parser.text("label", "class of all images, by number or name")
    parser.text("labels", "classes to cycle through, such as 0,1,2 (default: all classes)")
    parser.integer("seed", "seed of the latent vectors", default=0)
    parser.real(
        "truncation",
        "largest absolute value of a latent from N(0, 1), such as 0.7, for images that are more "
        "typical and differ less (default: no limit)",
    )
    parser.path("out", "output: FILE.png, FILE.npz or a folder (default: RUN_DIR/generated.png)")
    runs.define_checkpoint(parser)
    parser.text("devices", "device to draw on: auto, cpu or gpu:N", default="auto")
    values = parser.parse(arguments)
    if values["num"] < 1:
        raise UsageError(f"--num={values['num']} must be 1 or more.")
    check_seed(values["seed"])
    if values["truncation"] is not None and not 0 < values["truncation"] < math.inf:
        raise UsageError(f"--truncation={values['truncation']:g} must be a number above 0.")
    out = runs.output_path(values, "generated.png")
    if out.suffix not in ("", ".png", ".npz"):
        raise UsageError(
            f"--out={out} is not supported. Use a name ending in .png or .npz, or a folder."
        )
    run = runs.load(values, checkpoint=runs.checkpoint_choice(values))
    classes = _classes(run, values["label"], values["labels"])
    log_to(Console())
    with imports.quiet():
        # Imported late, because importing TensorFlow takes seconds.
        from trainer.generation.generate import GenerationOptions, generate

    options = GenerationOptions(values["num"], classes, values["seed"], values["truncation"])
    generate(run.run_dir, run.config, options, out, run.checkpoint)


def _classes(run: api.Run, label: str | None, labels: str | None) -> list[int] | None:
    """Returns the classes to cycle through; None for an unconditional run."""
    if label is not None and labels is not None:
        raise UsageError("--label and --labels both select classes. Use one of them.")
    if label is not None:
        return run.classes(label, "--label")
    return run.classes(labels.split(",") if labels is not None else None)
