"""Renders the manifests of one training run from an overlay and, on request, applies them.

    make k8s-submit OVERLAY=single-node DATASET=cifar10 RECIPE=dcgan GPUS=2 IMAGE=HOST/gan:0.2.0
    make k8s-submit ... APPLY=1

Without APPLY=1 the manifests are only printed. The Pod template of a Job is immutable, so each
submission creates a new Job with a unique name. The run itself is identified by its run directory:
submitting again with the same NAME resumes it. Only the standard library is used, so the script
runs without the trainer's environment.
"""

import argparse
import re
import sys

from k8s import manifests
from k8s.kubectl import Cluster, SubmissionError

USAGE_ERROR = 64  # as the trainer's exit code for a wrong command line
GPU_OPTIONS = ("gpus", "gpu_type", "gpu_resource")
BUCKET_OPTIONS = ("bucket", "service_account", "billing_project")
GPU_COMPONENTS = ("gke", "autopilot", "runtime-class")


def parse_arguments() -> argparse.Namespace:
    """Parses the command line, which `make k8s-submit` writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    option = parser.add_argument
    option(
        "--overlay",
        required=True,
        choices=manifests.subfolders("overlays"),
        help="folder in k8s/overlays",
    )
    option(
        "--component",
        action="append",
        default=[],
        choices=manifests.subfolders("components"),
        help="folder in k8s/components to add; may be repeated",
    )
    option("--recipe", default="", help="recipe of the run (default: the overlay's)")
    option("--dataset", default="", help="data set of the run (default: the overlay's)")
    option("--name", default="", help="name of the run directory (default: RECIPE-DATASET)")
    option("--length", default="", help="length of the run as a trainer flag, such as --kimg=500")
    option("--image", default="", help="image to run: HOST/NAME:TAG or HOST/NAME@sha256:DIGEST")
    option("--gpus", type=int, default=0, help="number of GPUs per Pod (default: 1)")
    option("--gpu_type", default="", help="GPU model: a node label's VALUE, or LABEL=VALUE")
    option("--gpu_resource", default="", help="resource of the GPUs (default: nvidia.com/gpu)")
    option("--cpus", default="", help="CPUs that a Pod requests (default: 3 per GPU)")
    option("--memory", default="", help="memory of a Pod, such as 24Gi (default: 12Gi per GPU)")
    option("--workers", type=int, default=0, help="number of Pods of multi-worker (default: 2)")
    option("--bucket", default="", help="bucket of the component gcs, without gs://")
    option("--service_account", default="", help="Google service account that the Pods act as")
    option("--billing_project", default="", help="project billed for a requester-pays bucket")
    option("--flag", action="append", default=[], help="additional trainer flag; may be repeated")
    option("--apply", action="store_true", help="apply the manifests instead of printing them")
    option("--context", default="", help="context of kubectl (default: the current one)")
    option("--namespace", default="", help="namespace (default: that of the context)")
    return parser.parse_args()


def check_options(options: argparse.Namespace, components: set[str]) -> None:
    """Checks the options against each other and against the components.

    Raises:
      SubmissionError: If a setting is invalid, missing or not supported by the components.
    """
    check_values(options)
    overlay = options.overlay
    on_gpus = "gpu" in components
    if not on_gpus and (given := given_names(options, GPU_OPTIONS)):
        raise SubmissionError(
            f"{given} cannot be used with OVERLAY={overlay}, which has no GPU. "
            "Choose another OVERLAY."
        )
    if not on_gpus and (wrong := [name for name in GPU_COMPONENTS if name in components]):
        raise SubmissionError(
            f"COMPONENTS={wrong[0]} is for GPUs and cannot be used with OVERLAY={overlay}, which "
            "has no GPU. Choose another OVERLAY."
        )
    if "multi-worker" not in components and options.workers:
        raise SubmissionError(
            f"WORKERS={options.workers} cannot be used with OVERLAY={overlay}, which runs a single "
            "Pod. Use OVERLAY=multi-worker for several."
        )
    if "gcs" not in components and (given := given_names(options, BUCKET_OPTIONS)):
        raise SubmissionError(
            f"{given} can only be used with OVERLAY=gcs or COMPONENTS=gcs, which put the run in a "
            "bucket."
        )
    if "gcs" in components and not options.bucket:
        raise SubmissionError("COMPONENTS=gcs and OVERLAY=gcs require BUCKET=name, without gs://.")


def given_names(options: argparse.Namespace, names: tuple[str, ...]) -> str:
    """Returns the options that were given, as the user wrote them; "" for none."""
    return " ".join(f"{n.upper()}={value}" for n in names if (value := getattr(options, n)))


def check_values(options: argparse.Namespace) -> None:
    """Checks each option by itself.

    Raises:
      SubmissionError: If a value is invalid.
    """
    gpu_type, name = options.gpu_type, options.name
    if gpu_type and not re.fullmatch(r"([\w./-]+=)?[\w.-]+", gpu_type):
        raise SubmissionError(
            f"GPU_TYPE={gpu_type} is invalid. Give the value of a node label, or LABEL=VALUE."
        )
    if options.gpu_resource and not re.fullmatch(r"[\w.-]+/[\w.-]+", options.gpu_resource):
        raise SubmissionError(
            f"GPU_RESOURCE={options.gpu_resource} is invalid. Give the name of a resource of the "
            "nodes, such as nvidia.com/mig-1g.10gb: kubectl describe nodes."
        )
    if options.gpus < 0 or options.workers < 0:
        raise SubmissionError(
            f"GPUS={options.gpus} WORKERS={options.workers}: both must be positive integers."
        )
    if options.workers == 1:
        raise SubmissionError("WORKERS=1 is too few. Use OVERLAY=single-node for one machine.")
    if options.cpus and not re.fullmatch(r"[1-9]\d*(\.\d+|m)?|0\.\d*[1-9]\d*", options.cpus):
        raise SubmissionError(f"CPUS={options.cpus} is invalid. Give a number, such as 6 or 2.5.")
    if options.memory and not re.fullmatch(r"[1-9]\d*(\.\d+)?[MGT]i?", options.memory):
        raise SubmissionError(
            f"MEMORY={options.memory} is invalid. Give a number and a unit, such as 24Gi."
        )
    if options.bucket and not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", options.bucket):
        raise SubmissionError(
            f"BUCKET={options.bucket} is invalid. Give the name of the bucket, without gs:// and "
            "without a path."
        )
    if name and name != manifests.dns_label(name, 63):
        raise SubmissionError(
            f"NAME={name} is invalid. Use at most 63 lower-case letters, digits and hyphens."
        )


def main() -> int:
    """Prints or applies the manifests and returns the exit code."""
    options = parse_arguments()
    parts = manifests.Parts(options.overlay, tuple(options.component))
    cluster = Cluster(options.context, options.namespace)
    try:
        check_options(options, parts.components)
        defaults = manifests.config_map_data(manifests.render(parts))
        settings = manifests.run_settings(options, defaults)
        text = manifests.render(parts, manifests.run_changes(options, parts, settings))
        if not options.apply:
            print(text, end="")
            print("Nothing has been applied. Add APPLY=1 to apply the manifests.", file=sys.stderr)
            return 0
        print(f"Submitting to {cluster.describe()}.", file=sys.stderr)
        cluster.apply(text, settings["JOB"])
    except SubmissionError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    print(f"To follow the log: kubectl logs --follow job/{settings['JOB']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
