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

import grace
import jobset
import values
from cluster import Cluster, SubmissionError, apply, checked
from folders import FOLDER, components_of, own_components, subfolders
from patches import GPU, kustomization, worker_count

EXCLUSIVE = ({"gke", "autopilot", "openshift"}, {"prometheus", "google-prometheus"})
PORT = 2222
STREAMS_PER_POD = 10  # of `kubectl logs --follow`, which allows 5 in all by default
USAGE_ERROR = 64  # as the trainer's exit code for a wrong command line


def parse_arguments() -> argparse.Namespace:
    """Parses the command line, which `make k8s-submit` writes.

    Raises:
      SubmissionError: If a value is invalid.
    """
    parser = values.Parser(description=(__doc__ or "").splitlines()[0])
    overlays, components = subfolders("overlays"), subfolders("components")
    option = parser.add_argument
    one = values.choice("OVERLAY", overlays)
    option("--overlay", required=True, type=one, help=f"one of {', '.join(overlays)}")
    one = values.choice("COMPONENTS", components)
    added = f"component to add, one of {', '.join(components)}; may be repeated"
    option("--component", action="append", default=[], type=one, help=added)
    add_run_options(parser)
    add_pod_options(parser)
    add_bucket_options(parser)
    label = values.dns_label("NAMESPACE")
    option("--context", default="", help="context of kubectl (default: the current one)")
    option("--namespace", default="", type=label, help="namespace (default: the context's)")
    for name, text in (
        ("jobset", "wrap the Job in a JobSet"),
        ("apply", "apply the manifests instead of printing them"),
    ):
        switch = values.switch(name.upper())
        option(f"--{name}", nargs="?", const=True, default=False, type=switch, help=text)
    return parser.parse_args()


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the run."""
    option = parser.add_argument
    length = values.matching(
        "LENGTH", values.LENGTH, "Use --kimg=N, --epochs=N or --steps=N, such as --kimg=500."
    )
    label = values.dns_label("NAME")
    option("--recipe", default="", help="recipe of the run (default: the overlay's)")
    option("--dataset", default="", help="data set of the run (default: the overlay's)")
    option("--name", default="", type=label, help="name of the run (default: RECIPE-DATASET)")
    option("--length", default="", type=length, help="length of the run, such as --kimg=500")
    option("--flag", action="append", default=[], help="additional trainer flag; may be repeated")


def add_pod_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the Pods."""
    option, matching = parser.add_argument, values.matching
    image = matching(
        "IMAGE",
        values.IMAGE,
        "Use HOST/NAME:TAG or HOST/NAME@sha256:DIGEST; a digest has 64 hexadecimal digits.",
    )
    gpu_type = matching(
        "GPU_TYPE", values.GPU_TYPE, "Give the value of a node label, or LABEL=VALUE."
    )
    resource = matching(
        "GPU_RESOURCE",
        values.RESOURCE,
        "Use the resource under which the cluster's device plugin offers NVIDIA GPUs, such as "
        f"{GPU}, {GPU}.shared or nvidia.com/mig-1g.10gb.",
    )
    memory = values.size("MEMORY", "24Gi")
    gpus, cpus = values.integer("GPUS"), values.integer("CPUS")
    # A fourth digit in the index of a worker would make the names of Pods too long.
    workers = values.integer("WORKERS", 2, 1000, "; OVERLAY=single-node is for one machine")
    option(
        "--image", default="", type=image, help="image: HOST/NAME:TAG or HOST/NAME@sha256:DIGEST"
    )
    option("--gpus", type=gpus, default=0, help="number of GPUs per Pod (default: the overlay's)")
    option(
        "--gpu_type", default="", type=gpu_type, help="GPU model: a label's VALUE, or LABEL=VALUE"
    )
    option("--gpu_resource", default="", type=resource, help=f"resource of a GPU (default: {GPU})")
    option("--cpus", type=cpus, default=0, help="CPUs that a Pod requests (default: 3 per GPU)")
    option("--memory", default="", type=memory, help="memory of a Pod (default: 12Gi per GPU)")
    option("--workers", type=workers, default=0, help="number of Pods, with component multi-worker")


def add_bucket_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of component gcs."""
    option, matching = parser.add_argument, values.matching
    bucket = matching(
        "BUCKET", values.BUCKET, "Give the bucket's name, without gs:// and without a path."
    )
    account = matching(
        "SERVICE_ACCOUNT",
        values.ACCOUNT,
        "Use the e-mail address of a Google service account: NAME@PROJECT.iam.gserviceaccount.com.",
    )
    project = matching("BILLING_PROJECT", values.PROJECT, "Use the ID of a Google Cloud project.")
    scratch = values.size("SCRATCH", "50Gi")
    option("--bucket", default="", type=bucket, help="bucket of component gcs, without gs://")
    option("--service_account", default="", type=account, help="Google service account, with gcs")
    option("--billing_project", default="", type=project, help="project that pays for the requests")
    option(
        "--scratch", default="", type=scratch, help="size of the scratch volume of component gcs"
    )


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
    if options.workers and "multi-worker" not in components:
        raise SubmissionError(
            f"WORKERS={options.workers} cannot be used with OVERLAY={overlay}, which runs a single "
            "Pod. Use OVERLAY=multi-worker for several."
        )
    if "/mig-" in options.gpu_resource and options.gpus > 1:
        raise SubmissionError(
            f"GPUS={options.gpus} cannot be used with GPU_RESOURCE={options.gpu_resource}: a "
            "process can use only one MIG device. Use WORKERS for several."
        )
    check_bucket(options, "gcs" in components)


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


def submit() -> None:
    """Prints or applies the manifests.

    Raises:
      SubmissionError: If a setting is invalid, or kubectl fails.
    """
    options = parse_arguments()
    check_options(options)
    if warning := grace.warning(options.flag, on_spot="spot" in components_of(options)):
        print(f"warning: {warning}", file=sys.stderr)
    settings = run_settings(options, config_map_data(render(options)))
    manifests = render(options, settings)
    if not options.apply:
        print(manifests, end="")
        print("Nothing has been applied. Add APPLY=1 to apply the manifests.", file=sys.stderr)
        return
    cluster = Cluster(options.context, options.namespace)
    apply(manifests, settings, cluster)
    # Pods that were replaced are kept, and kubectl counts them, too.
    most = STREAMS_PER_POD * (worker_count(settings) if "WORKERS" in settings else 1)
    rest = f"--follow --prefix --max-log-requests={most}"
    label = f"app.kubernetes.io/instance={settings['JOB']}"
    print(f"To follow the log: {cluster.command('logs', f'{rest} -l {label}')}")


def main() -> int:
    """Submits a run and returns the exit code."""
    try:
        submit()
    except SubmissionError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
