"""`export`: exports the generator of a run for use without this package."""

from trainer.commands import flags, run_flags
from trainer.machine import imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to

SUMMARY = """Exports the generator of the best or latest checkpoint of a run into a folder:
generator.keras, and saved_model/ with the signature serving_default (latents and, if the run is
conditional, labels -> images uint8 [N, H, W, C]).  Both are loaded again and must draw exactly the
images that the run draws."""


def run(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    line = flags.CommandLine("export", SUMMARY)
    run_flags.define(line, "to export")
    line.text("out", "output folder (default: RUN_DIR/export)")
    flags.define_checkpoint(line)
    line.text(
        "devices",
        "device on which the exported files are verified: auto, cpu or gpu:N",
        default="auto",
    )
    values = line.parse(arguments)
    out = run_flags.output(values, "export")
    which = flags.checkpoint_choice(values)
    run_dir = run_flags.opened(values, which)
    config = run_dir.read_config().replace(devices=values["devices"])

    log_to(Console())
    with imports.quiet():
        from trainer.generation.export import export  # late: TensorFlow takes seconds to import

    export(run_dir, config, out, which)
