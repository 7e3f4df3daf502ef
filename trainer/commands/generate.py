"""`generate`: draws images from a checkpoint of a run."""

import logging

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.config import Config
from trainer.errors import UsageError
from trainer.machine import imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to
from trainer.run_dir.directory import RunDir

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
    parser.path("out", "output: FILE.png, FILE.npz or a folder (default: RUN_DIR/generated.png)")
    runs.define_checkpoint(parser)
    parser.text("devices", "device to draw on: auto, cpu or gpu:N", default="auto")
    values = parser.parse(arguments)
    count, seed = values["num"], values["seed"]
    if count < 1:
        raise UsageError(f"--num={count} must be 1 or more.")
    runs.check_seed(values)
    out = runs.output_path(values, "generated.png")
    which = runs.checkpoint_choice(values)
    run_dir = runs.open_run(values, which)
    config = run_dir.read_config().replace(devices=values["devices"])
    classes = _classes(config, run_dir, values["label"], values["labels"])
    if out.suffix not in ("", ".png", ".npz"):
        raise UsageError(
            f"--out={out} is not supported. Use a name ending in .png or .npz, or a folder."
        )

    log_to(Console())
    with imports.quiet():
        # Imported late, because importing TensorFlow takes seconds.
        from trainer.generation.generate import GenerationOptions, generate

    generate(run_dir, config, GenerationOptions(count, classes, seed), out, which)


def _classes(
    config: Config, run_dir: RunDir, label: str | None, labels: str | None
) -> list[int] | None:
    """The classes to cycle through, or None for a run without."""
    if label is not None and labels is not None:
        raise UsageError("--label and --labels both select classes. Use one of them.")
    wanted = label if label is not None else labels
    if not config.conditional:
        if wanted is not None:
            raise UsageError(
                f"--label={wanted}: the run in {run_dir.path} is not conditional and cannot draw "
                "a class; train one with --conditional."
            )
        return None
    names = run_dir.read_dataset().class_names
    if wanted is None:
        return list(range(len(names)))
    return [_class_number(text.strip(), names) for text in wanted.split(",")]


def _class_number(text: str, names: tuple[str, ...]) -> int:
    if text in names:
        return names.index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UsageError(
        f"--label={text!r} is no class of this run: 0 to {len(names) - 1}, or {', '.join(names)}."
    )
