"""`export`: exports the generator of a run for use without this package."""

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to

SUMMARY = """Exports the generator of a run for use without this package.  Writes the generator of
the best or latest checkpoint into a folder: generator.keras, and saved_model/ with the signature
serving_default (latents and, if the run is conditional, labels -> images uint8 [N, H, W, C]).
Both are loaded again and must draw the images that the run draws."""


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    parser = CommandLine("export", SUMMARY)
    runs.define_run_dir(parser, "to export")
    parser.path("out", "output folder (default: RUN_DIR/export)")
    runs.define_checkpoint(parser)
    parser.text(
        "devices",
        "device on which the exported files are verified: auto, cpu or gpu:N",
        default="auto",
    )
    values = parser.parse(arguments)
    out = runs.output_path(values, "export")
    run = runs.load(values, checkpoint=runs.checkpoint_choice(values))
    log_to(Console())
    run.export(out)
