"""Renders the manifests of one training run from an overlay and, on request, applies them.

    make k8s-submit OVERLAY=single-node DATASET=cifar10 RECIPE=dcgan GPUS=2 IMAGE=HOST/gan:0.2.0
    make k8s-submit OVERLAY=multi-worker COMPONENTS="gcs gke spot" JOBSET=1 ... APPLY=1

Without APPLY=1 the manifests are only printed. The Pod template of a Job is immutable, so each
submission creates a new Job with a unique name. The run itself is identified by its run directory:
submitting again with the same NAME resumes it. Only the standard library is used, so the script
runs without the trainer's environment.
"""

import argparse
import json
import os
import re
import secrets
import sys
import tempfile
from pathlib import Path

import jobset
from cluster import Cluster, SubmissionError, apply, checked
from folders import FOLDER, components_of, own_components, subfolders
from patches import GPU, kustomization, worker_count

EXCLUSIVE = ({"gke", "autopilot", "openshift"}, {"prometheus", "google-prometheus"})
PORT = 2222
USAGE_ERROR = 64  # as the trainer's exit code for a wrong command line


def parse_arguments() -> argparse.Namespace:
    """Parses the command line, which `make k8s-submit` writes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    option = parser.add_argument
    option(
        "--overlay", required=True, choices=subfolders("overlays"), help="folder in k8s/overlays"
    )
    option(
        "--component",
        action="append",
        default=[],
        choices=subfolders("components"),
        help="folder in k8s/components to add; may be repeated",
    )
    option("--recipe", default="", help="recipe of the run (default: the overlay's)")
    option("--dataset", default="", help="data set of the run (default: the overlay's)")
    option("--name", default="", help="name of the run directory (default: RECIPE-DATASET)")
    option("--length", default="", help="length of the run as a trainer flag, such as --kimg=500")
    option("--image", default="", help="image to run: HOST/NAME:TAG or HOST/NAME@sha256:DIGEST")
    option("--gpus", type=int, default=0, help="number of GPUs per Pod (default: the overlay's)")
    option("--gpu_type", default="", help="GPU model: a node label's VALUE, or LABEL=VALUE")
    option("--gpu_resource", default="", help="resource of a GPU (default: nvidia.com/gpu)")
    option("--cpus", type=int, default=0, help="CPUs that a Pod requests (default: 3 per GPU)")
    option("--memory", default="", help="memory of a Pod, such as 24Gi (default: 12Gi per GPU)")
    option("--workers", type=int, default=0, help="number of Pods, with component multi-worker")
    option("--bucket", default="", help="bucket of component gcs, without gs://")
    option("--service_account", default="", help="Google service account, with component gcs")
    option("--billing_project", default="", help="project that pays for requests to the bucket")
    option("--scratch", default="", help="size of the scratch volume of component gcs, as 50Gi")
    option("--flag", action="append", default=[], help="additional trainer flag; may be repeated")
    option("--context", default="", help="context of kubectl (default: the current one)")
    option("--namespace", default="", help="namespace of the Job (default: the context's)")
    option("--jobset", action="store_true", help="wrap the Job in a JobSet")
    option("--apply", action="store_true", help="apply the manifests instead of printing them")
    return parser.parse_args()


def dns_label(text: str, max_length: int) -> str:
    """Converts a name or path to lower-case letters, digits and hyphens, as DNS labels require.

    Of a path only the last part is used, without the suffixes .zip and .npz.
    """
    stem = re.sub(r"\.(zip|npz)$", "", text.rstrip("/").rpartition("/")[2].lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:max_length].strip("-")


def run_settings(options: argparse.Namespace, defaults: dict[str, str]) -> dict[str, str]:
    """Merges the options into the manifests' settings and chooses a unique Job name.

    Args:
      options: The parsed command line.
      defaults: The data of the ConfigMap of the overlay and its components.

    Returns:
      The data of the Job's own ConfigMap, including its name as JOB.
    """
    names = ("recipe", "dataset", "length")
    settings = defaults | {n.upper(): value for n in names if (value := getattr(options, n))}
    if options.bucket:
        settings = {name: text.replace("BUCKET", options.bucket) for name, text in settings.items()}
    if options.name or options.recipe or options.dataset:
        default_name = f"{dns_label(settings['RECIPE'], 30)}-{dns_label(settings['DATASET'], 30)}"
        settings["RUN"] = options.name or default_name
    # The names of Pods append the JobSet's part, an index and five characters, up to 63 in all.
    settings["JOB"] = f"gan-{dns_label(settings['RUN'], 36)}-{secrets.token_hex(3)}"
    if "WORKERS" in settings:
        count = options.workers or worker_count(settings)
        job = f"{settings['JOB']}-{jobset.REPLICATED_JOB}-0" if options.jobset else settings["JOB"]
        hosts = [f"{job}-{index}.gan-workers:{PORT}" for index in range(count)]
        settings["WORKERS"] = ",".join(hosts)
    return settings


def check_options(options: argparse.Namespace) -> None:
    """Checks the options against each other and against the components.

    Raises:
      SubmissionError: If a setting is invalid, missing or not supported by the components.
    """
    overlay = options.overlay
    components = set(components_of(options))
    for group in EXCLUSIVE:
        if len(both := sorted(group & components)) > 1:
            raise SubmissionError(f"{' and '.join(both)} cannot be combined. Choose one of them.")
    if "gpu" not in components and (options.gpus or options.gpu_type or options.gpu_resource):
        raise SubmissionError(
            f"GPUS, GPU_TYPE and GPU_RESOURCE cannot be used with OVERLAY={overlay}, which has no "
            "GPU. Choose another OVERLAY, or add the component gpu."
        )
    for value, number in (("GPUS", options.gpus), ("CPUS", options.cpus)):
        if number < 0:
            raise SubmissionError(f"{value}={number} must be a positive integer.")
    if options.workers and "multi-worker" not in components:
        raise SubmissionError(
            f"WORKERS={options.workers} cannot be used with OVERLAY={overlay}, which runs a single "
            "Pod. Use OVERLAY=multi-worker for several."
        )
    if options.workers < 0 or options.workers == 1:
        raise SubmissionError(
            f"WORKERS={options.workers} must be at least 2. Use OVERLAY=single-node for one "
            "machine."
        )
    check_bucket(options, "gcs" in components)
    check_quantities(options)
    for setting, value in (("NAME", options.name), ("NAMESPACE", options.namespace)):
        if value and value != dns_label(value, 63):
            raise SubmissionError(
                f"{setting}={value} is invalid. Use at most 63 lower-case letters, digits and "
                "hyphens, and no hyphen at either end."
            )


def check_bucket(options: argparse.Namespace, has_bucket: bool) -> None:
    """Checks the options of component gcs.

    Raises:
      SubmissionError: If one of them is missing, or given without the component.
    """
    names = ("bucket", "service_account", "billing_project", "scratch")
    given = [name.upper() for name in names if getattr(options, name)]
    if given and not has_bucket:
        raise SubmissionError(f"{', '.join(given)} can only be used with the component gcs.")
    if has_bucket and not options.bucket:
        raise SubmissionError("The component gcs requires BUCKET=name, without gs://.")


def check_quantities(options: argparse.Namespace) -> None:
    """Checks the names and sizes that are inserted into the manifests.

    Raises:
      SubmissionError: If one of them is invalid.
    """
    gpu_type, resource = options.gpu_type, options.gpu_resource
    if gpu_type and not re.fullmatch(r"([\w./-]+=)?[\w.-]+", gpu_type):
        raise SubmissionError(
            f"GPU_TYPE={gpu_type} is invalid. Give the value of a node label, or LABEL=VALUE."
        )
    for name in ("memory", "scratch"):
        value = getattr(options, name)
        if value and not re.fullmatch(r"[1-9]\d*(Mi|Gi)", value):
            raise SubmissionError(f"{name.upper()}={value} is invalid. Use a size such as 24Gi.")
    if resource and not re.fullmatch(r"\w[\w-]*(\.\w[\w-]*)+/\w[\w.-]*", resource):
        raise SubmissionError(
            f"GPU_RESOURCE={resource} is invalid. Use the resource under which the cluster's "
            f"device plugin offers NVIDIA GPUs, such as {GPU}, {GPU}.shared or "
            "nvidia.com/mig-1g.10gb."
        )
    if "/mig-" in resource and options.gpus > 1:
        raise SubmissionError(
            f"GPUS={options.gpus} cannot be used with GPU_RESOURCE={resource}: a process can use "
            "only one MIG device. Use WORKERS for several."
        )


def render(options: argparse.Namespace, settings: dict[str, str] | None = None) -> str:
    """Renders the overlay with the given components and, if there are settings, as one Job.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    overlay = FOLDER / "overlays" / options.overlay
    added = components_of(options)[len(own_components(options.overlay)) :]
    with tempfile.TemporaryDirectory() as scratch:
        inner, outer = Path(scratch).resolve() / "inner", Path(scratch).resolve() / "outer"
        inner.mkdir()
        outer.mkdir()
        content = {
            "resources": [os.path.relpath(overlay, inner)],
            "components": [os.path.relpath(FOLDER / "components" / n, inner) for n in added],
        }
        (inner / "kustomization.yaml").write_text(json.dumps(content), encoding="utf-8")
        if settings is None:
            return kustomize(inner)
        # A layer of its own, because settings of components replace those of their own layer.
        content = {"resources": ["../inner"], **kustomization(options, settings)}
        (outer / "kustomization.yaml").write_text(json.dumps(content), encoding="utf-8")
        manifests = kustomize(outer)
    if options.jobset:
        manifests = jobset.wrap(manifests, suspend="kueue" in components_of(options))
    return manifests


def kustomize(folder: Path) -> str:
    """Renders the kustomization in a folder.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    return checked("kustomize", str(folder))


def config_map_data(manifests: str) -> dict[str, str]:
    """Returns the data of the ConfigMap in rendered manifests."""
    config = next(text for text in manifests.split("\n---\n") if "\nkind: ConfigMap\n" in text)
    lines = re.findall(r"^  ([A-Z]+): (.*)$", config, re.M)
    return {name: value.strip("\"'") for name, value in lines}


def main() -> int:
    """Prints or applies the manifests and returns the exit code."""
    options = parse_arguments()
    try:
        check_options(options)
        settings = run_settings(options, config_map_data(render(options)))
        manifests = render(options, settings)
        if not options.apply:
            print(manifests, end="")
            print("Nothing has been applied. Add APPLY=1 to apply the manifests.", file=sys.stderr)
            return 0
        cluster = Cluster(options.context, options.namespace)
        apply(manifests, settings["JOB"], cluster)
    except SubmissionError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    label = f"app.kubernetes.io/instance={settings['JOB']}"
    print(f"To follow the log: {cluster.command('logs', f'--follow --prefix -l {label}')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
