"""`evaluate`: measures the image quality of a run."""

import os

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.config.operation_settings import FEATURES
from trainer.data import sources
from trainer.errors import UsageError, one_of
from trainer.machine import imports
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to
from trainer.storage.address import local_path
from trainer.storage.location import upload_outputs

SUMMARY = """Measures the image quality of a run.  Draws images and compares them with real ones:
FID, KID, Inception Score, precision, recall, density, coverage and, for a conditional run, the
share of images that show the requested class.  Prints a table and writes evaluation.json and, in
evaluation/, nearest.png, confusion.png and interpolation.png, into the run directory or --out.
Results are comparable only if features, number of samples and reference are equal."""
MIN_SAMPLES = 100


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    values = _command_line().parse(arguments)
    one_of("--features", values["features"], FEATURES)
    which = runs.checkpoint_choice(values, more="all")
    count, seed = values["num_samples"], values["seed"]
    if count < MIN_SAMPLES:
        raise UsageError(f"--num_samples={count} is too small. Use {MIN_SAMPLES} or more.")
    runs.check_seed(values)
    out = local_path(values["out"], "out") if values["out"] else None
    run_dir = runs.open_run(values, which)
    config = run_dir.read_config().replace(devices=values["devices"])
    if values["split"]:
        config = config.replace(split=values["split"])
    data_dir = values["data_dir"] or os.path.expanduser(os.environ.get("TRAINER_DATA_DIR", ""))
    if values["data_dir"] or (data_dir and not os.path.isdir(config.data_dir)):
        config = config.replace(data_dir=data_dir)

    terminal = Console()
    log_to(terminal)
    data = sources.load(config.replace(batch_size=1), terminal.bar)
    terminal.end_bar()
    with imports.quiet():
        # Imported late, because importing TensorFlow takes seconds.
        from trainer.evaluation.evaluator import EvaluationOptions
        from trainer.evaluation.finished_run import evaluate

    options = EvaluationOptions(
        features=values["features"],
        inception_path=values["inception_path"] or "",
        num_samples=count,
        seed=seed,
    )
    evaluate(run_dir, config, data, options, which, out)
    if out is None:
        upload_outputs(
            runs.run_dir_flag(values),
            run_dir.path,
            (run_dir.evaluation.name, run_dir.evaluation_pictures.name),
        )


def _command_line() -> CommandLine:
    parser = CommandLine("evaluate", SUMMARY)
    runs.define_run_dir(parser, "to evaluate")
    parser.integer("num_samples", "number of images to draw", default=10000)
    parser.text(
        "features",
        "network whose features are compared: classifier (of the data set's own classes, trained "
        "at first use), inception (the network of published FIDs, which needs --inception_path), "
        "or auto (inception if its file is given)",
        default="auto",
    )
    parser.path(
        "inception_path",
        "path of classify_image_graph_def.pb, or of inception-2015-12-05.tgz which contains it; "
        "may be gs://BUCKET/PATH",
    )
    runs.define_checkpoint(parser, more="all")
    parser.integer("seed", "seed of the latent vectors", default=0)
    parser.text("split", "split of the real images: train, test or all (default: the run's split)")
    parser.path(
        "data_dir",
        "folder that holds the data sets (default: that of the run, or $TRAINER_DATA_DIR)",
    )
    parser.path("out", "folder on this machine for the results (default: the run directory)")
    parser.text(
        "devices", "devices to draw and measure on: auto, cpu, cpu:2 or gpu:N", default="auto"
    )
    return parser
