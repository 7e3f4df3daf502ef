"""`export`: a run's generator as files that TensorFlow alone can use."""

from trainer import flags, startup
from trainer.console import Console, log_to
from trainer.errors import UsageError
from trainer.rundir import RunDir
from trainer.signals import StopRequest
from trainer.storage.address import is_bucket, local_path
from trainer.storage.place import reading

SUMMARY = """Writes the generator that a run draws from, as of its newest checkpoint, into a folder:
generator.keras and saved_model/ with the signature serving_default (latents and, if the run
is conditional, labels -> images uint8 [N, H, W, C]).  Both are loaded again and must draw the
bytes that the run draws."""


def run(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those behind its name."""
    line = flags.CommandLine("export", SUMMARY)
    line.text("run_dir", "the run to export, also at gs://")
    line.text("out", "folder to write to (default: RUN_DIR/export)")
    line.text("devices", "where to check the files: auto, cpu or gpu:N", default="auto")
    values = line.parse(arguments)
    if not values["run_dir"]:
        raise UsageError("--run_dir is missing: name the run to export.")
    out = local_path(values["out"], "out") if values["out"] else None
    if out is None and is_bucket(values["run_dir"]):
        raise UsageError(f"--out is missing: --run_dir={values['run_dir']} is in a bucket.")
    run_dir = RunDir(reading(values["run_dir"]))
    config = run_dir.read_config().replace(devices=values["devices"])
    out = out or run_dir.path / "export"

    log_to(Console())
    with startup.quiet():
        from trainer.export import export  # late: TensorFlow takes seconds to import

    export(run_dir, config, out)
