"""`evaluate`: measures the image quality of a run."""

from trainer.commands.flags import runs
from trainer.commands.flags.command_line import CommandLine
from trainer.machine.signals import StopRequest
from trainer.reporting.console import Console, log_to
from trainer.storage.address import local_path

SUMMARY = """Measures the image quality of a run.  Draws images and compares them with real ones:
FID, KID, Inception Score, precision, recall, density, coverage and, for a conditional run, the
share of images that show the requested class.  Prints a table and writes evaluation.json and, in
evaluation/, nearest.png, confusion.png and interpolation.png, into the run directory or --out.
Results are comparable only if features, number of samples and reference are equal."""
MIN_SAMPLES = 100


def main(arguments: list[str], _: StopRequest) -> None:
    """Runs the command; `arguments` are those after its name."""
    values = _command_line().parse(arguments)
    out = local_path(values["out"], "out") if values["out"] else None
    run = runs.load(
        values,
        checkpoint=runs.checkpoint_choice(values, more="all"),
        data_dir=values["data_dir"] or "",
        split=values["split"] or "",
    )
    log_to(Console())
    run.evaluate(
        values["num_samples"],
        values["features"],
        values["inception_path"] or "",
        values["seed"],
        out,
        inception_sha256=values["inception_sha256"] or "",
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
    parser.text("inception_sha256", "SHA-256 that the graph of the Inception network must have")
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
