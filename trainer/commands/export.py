"""`export`: a run's generator as files that TensorFlow alone can use."""

from trainer.commands import flags, run_flags
from trainer.machine import imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to

SUMMARY = """Writes the generator that a run draws from, of its best or newest checkpoint, into a
folder: generator.keras and saved_model/ with the signature serving_default (latents and, if the run
is conditional, labels -> images uint8 [N, H, W, C]).  Both are loaded again and must draw the
bytes that the run draws."""


def run(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those behind its name."""
    line = flags.CommandLine("export", SUMMARY)
    run_flags.define(line, "to export")
    line.text("out", "folder to write to (default: RUN_DIR/export)")
    flags.define_checkpoint(line)
    line.text("devices", "where to check the files: auto, cpu or gpu:N", default="auto")
    values = line.parse(arguments)
    out = run_flags.output(values, "export")
    which = flags.checkpoint_choice(values)
    run_dir = run_flags.opened(values, which)
    config = run_dir.read_config().replace(devices=values["devices"])

    log_to(Console())
    with imports.quiet():
        from trainer.generation.export import export  # late: TensorFlow takes seconds to import

    export(run_dir, config, out, which)
