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
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster import Cluster, SubmissionError, apply, checked

FOLDER = Path(__file__).resolve().parent
IMAGES = ("gan-trainer", "gan-trainer-cpu")
# Node labels that name the GPU model: the label set by GKE and that of NVIDIA's GPU operator.
GKE_LABEL, NVIDIA_LABEL = "cloud.google.com/gke-accelerator", "nvidia.com/gpu.product"
GPU = "nvidia.com/gpu"
GKE = {"gke", "autopilot", "spot"}  # components whose nodes carry GKE's label
EXCLUSIVE = ({"gke", "autopilot", "openshift"}, {"prometheus", "google-prometheus"})
PORT = 2222
# What a GPU is given by default: small nodes with one GPU have 4 CPUs and 16 GiB. The memory is
# limited to what is requested, as k8s/components/gpu/job.yaml explains.
CPUS_PER_GPU, GIB_PER_GPU = 3, 12
RETRIES_PER_WORKER = 4
FINAL_CODES = [64, 65, 70, 73]  # exit codes of the trainer that a retry cannot change
JOBSET_POLICY = {
    "maxRestarts": 0,  # of the restarts that count, which are none
    "restartStrategy": "BlockingRecreate",  # start no Pod before all old ones have ended
    "rules": [
        {
            "name": "final",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
        },
        {"name": "restart", "action": "RestartJobSetAndIgnoreMaxRestarts"},
    ],
}
MAX_SHM_MIB = 4096
REPLICATED_JOB = "w"  # a JobSet names its Job JOBSET-w-0
CONTAINER = "/spec/template/spec/containers/0"
INSTANCE = "app.kubernetes.io~1instance"  # as a part of a JSON pointer
USAGE_ERROR = 64  # as the trainer's exit code for a wrong command line

Json = dict[str, Any]


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


def subfolders(kind: str) -> list[str]:
    """Returns the names of the available overlays or components.

    Args:
      kind: "overlays" or "components".
    """
    return sorted(path.name for path in (FOLDER / kind).iterdir() if path.is_dir())


def dns_label(text: str, max_length: int) -> str:
    """Converts a name or path to lower-case letters, digits and hyphens, as DNS labels require.

    Of a path only the last part is used, without the suffixes .zip and .npz.
    """
    stem = re.sub(r"\.(zip|npz)$", "", text.rstrip("/").rpartition("/")[2].lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:max_length].strip("-")


def own_components(overlay: str) -> list[str]:
    """Returns the components that an overlay lists."""
    text = (FOLDER / "overlays" / overlay / "kustomization.yaml").read_text(encoding="utf-8")
    return re.findall(r"^  - \.\./\.\./components/(\S+)$", text, re.M)


def components_of(options: argparse.Namespace) -> list[str]:
    """Returns the components of the overlay, and those of the command line that it lacks."""
    own = own_components(options.overlay)
    given = sorted(dict.fromkeys(options.component), key=lambda name: name != "gpu")
    return own + [name for name in given if name not in own]  # others refine gpu


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
        job = f"{settings['JOB']}-{REPLICATED_JOB}-0" if options.jobset else settings["JOB"]
        hosts = [f"{job}-{index}.gan-workers:{PORT}" for index in range(count)]
        settings["WORKERS"] = ",".join(hosts)
    return settings


def worker_count(settings: dict[str, str]) -> int:
    """Returns the number of addresses in the setting WORKERS."""
    return settings["WORKERS"].count(",") + 1


def kustomization(options: argparse.Namespace, settings: dict[str, str]) -> Json:
    """Returns the kustomization that turns the overlay and its components into a Job."""
    literals = [f"{name}={value}" for name, value in settings.items()]
    # Because JOB is among the literals, the hash suffix makes the ConfigMap unique to this Job.
    # The label lets it be deleted together with the Job.
    job_label = {"labels": {"app.kubernetes.io/instance": settings["JOB"]}}
    config = {"name": "gan-run", "behavior": "merge", "literals": literals, "options": job_label}
    return {
        "configMapGenerator": [config],
        "images": [image_override(name, options.image) for name in IMAGES if options.image],
        "patches": list(patches(options, settings)),
    }


def patches(options: argparse.Namespace, settings: dict[str, str]) -> Iterator[Json]:
    """Yields the patches of the objects of the overlay and its components."""
    job = settings["JOB"]
    edits = [
        replace("/metadata/name", job),
        add("/metadata/labels/" + INSTANCE, job),
        replace(f"/spec/template/metadata/labels/{INSTANCE}", job),
        *(add(f"{CONTAINER}/args/-", flag) for flag in options.flag),
        *resource_edits(options),
    ]
    if options.gpu_type:
        edits += gpu_type_edits(options)
    if options.billing_project:
        variable = {"name": "GOOGLE_CLOUD_QUOTA_PROJECT", "value": options.billing_project}
        edits.append(add(f"{CONTAINER}/env/-", variable))
    if "WORKERS" in settings:
        count = worker_count(settings)
        edits += [replace("/spec/completions", count), replace("/spec/parallelism", count)]
        edits.append(replace("/spec/backoffLimit", RETRIES_PER_WORKER * count))
        yield worker_policy_patch(job)
    if options.service_account:
        account = {"iam.gke.io/gcp-service-account": options.service_account}
        yield patch({"kind": "ServiceAccount"}, [add("/metadata/annotations", account)])
    if options.scratch:
        claim = {"spec": {"resources": {"requests": {"storage": options.scratch}}}}
        yield volume_patch({"name": "runs", "ephemeral": {"volumeClaimTemplate": claim}})
    if memory := requested_memory(options):
        shm = {"medium": "Memory", "sizeLimit": shm_size(memory)}
        yield volume_patch({"name": "shm", "emptyDir": shm})
    yield patch({"kind": "Job"}, edits)
    if options.jobset:
        yield patch({"kind": "Job"}, list(jobset_edits(options)))


def resource_edits(options: argparse.Namespace) -> Iterator[Json]:
    """Yields the edits of the container's requests and limits."""
    resources = f"{CONTAINER}/resources"
    gpu = options.gpu_resource or GPU
    if gpu != GPU:
        yield {"op": "remove", "path": f"{resources}/limits/{escaped(GPU)}"}
        toleration = {"key": gpu, "operator": "Exists", "effect": "NoSchedule"}
        yield add("/spec/template/spec/tolerations/-", toleration)
    if options.gpus or gpu != GPU:
        yield add(f"{resources}/limits/{escaped(gpu)}", options.gpus or 1)
    cpus = options.cpus or CPUS_PER_GPU * options.gpus
    if cpus:
        yield replace(f"{resources}/requests/cpu", str(cpus))
        yield replace(f"{resources}/limits/cpu", str(max(32, cpus)))
    if memory := requested_memory(options):
        yield replace(f"{resources}/requests/memory", memory)
        yield replace(f"{resources}/limits/memory", memory)


def requested_memory(options: argparse.Namespace) -> str:
    """Returns the memory of a Pod as MEMORY or GPUS sets it; "" for that of the manifests."""
    return options.memory or (f"{GIB_PER_GPU * options.gpus}Gi" if options.gpus else "")


def shm_size(memory: str) -> str:
    """Returns the size of /dev/shm, which counts towards the memory of the Pod, such as 96Gi."""
    number, unit = int(memory[:-2]), memory[-2:]
    mib = number * 1024 if unit == "Gi" else number
    return f"{min(mib // 4, MAX_SHM_MIB)}Mi"


def gpu_type_edits(options: argparse.Namespace) -> Iterator[Json]:
    """Yields the edits that select nodes with the requested GPU model."""
    components = set(components_of(options))
    label, _, value = options.gpu_type.rpartition("=")
    label = label or (GKE_LABEL if components & GKE else NVIDIA_LABEL)
    if "autopilot" in components and label != GKE_LABEL:
        # The component selects a model by GKE's label, and nodes would have to match both.
        yield {"op": "remove", "path": node_selector(GKE_LABEL)}
    yield add(node_selector(label), value)


def jobset_edits(options: argparse.Namespace) -> Iterator[Json]:
    """Yields the edits of a Job that a JobSet recreates after each failure.

    A recreated Job starts without a back-off, so the Job itself must not retry.
    """
    final = {
        "action": "FailJob",
        "onExitCodes": {"containerName": "trainer", "operator": "In", "values": FINAL_CODES},
    }
    yield replace("/spec/backoffLimit", 0)
    yield replace("/spec/podFailurePolicy/rules", [final])
    yield {"op": "remove", "path": "/spec/ttlSecondsAfterFinished"}
    if "kueue" in components_of(options):
        yield {"op": "remove", "path": "/spec/suspend"}  # Kueue suspends the JobSet


def wrap_in_jobset(manifests: str, *, suspend: bool) -> str:
    """Returns the manifests with the Job as the only Job of a JobSet.

    The JobSet fails with the exit codes that a retry cannot change and at the deadline. It restarts
    after every other failure; the trainer limits the number of starts without progress.
    """
    documents = []
    for text in manifests.split("\n---\n"):
        if re.search(r"^kind: Job$", text, re.M):
            head, _, job_spec = text.partition("\nspec:\n")
            metadata = head[head.index("metadata:") :]
            labels = {"app.kubernetes.io/name": "gan-trainer"}
            text = "\n".join([
                f"apiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\n{metadata}\nspec:",
                *(["  suspend: true"] if suspend else []),
                "  ttlSecondsAfterFinished: 604800",
                f"  network: {json.dumps({'enableDNSHostnames': False})}",
                f"  failurePolicy: {json.dumps(JOBSET_POLICY)}",
                "  replicatedJobs:",
                f"  - name: {REPLICATED_JOB}",
                "    replicas: 1",
                "    template:",
                f"      metadata: {json.dumps({'labels': labels})}",
                "      spec:",
                textwrap.indent(job_spec, "      "),
            ])  # fmt: skip
        documents.append(text)
    return "\n---\n".join(documents)


def volume_patch(volume: Json) -> Json:
    """Returns the patch that merges fields into the volume of the same name."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "gan"}}
    spec = {"template": {"spec": {"volumes": [volume]}}}
    return {"target": {"kind": "Job"}, "patch": json.dumps({**job, "spec": spec})}


def worker_policy_patch(job: str) -> Json:
    """Returns the patch that restricts the NetworkPolicy of the workers to the Pods of one Job."""
    edits = [
        replace("/metadata/name", job),
        add(f"/metadata/labels/{INSTANCE}", job),
        replace(f"/spec/podSelector/matchLabels/{INSTANCE}", job),
        replace(f"/spec/ingress/0/from/0/podSelector/matchLabels/{INSTANCE}", job),
        replace(f"/spec/egress/0/to/0/podSelector/matchLabels/{INSTANCE}", job),
    ]
    return patch({"kind": "NetworkPolicy", "name": "gan-workers"}, edits)


def node_selector(label: str) -> str:
    """Returns the JSON pointer to a label in the node selector of a Job."""
    return f"/spec/template/spec/nodeSelector/{escaped(label)}"


def escaped(name: str) -> str:
    """Returns a name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def replace(path: str, value: object) -> Json:
    """Returns a JSON-patch operation that replaces an existing value."""
    return {"op": "replace", "path": path, "value": value}


def add(path: str, value: object) -> Json:
    """Returns a JSON-patch operation that adds a value."""
    return {"op": "add", "path": path, "value": value}


def patch(target: dict[str, str], edits: list[Json]) -> Json:
    """Returns a kustomize patch, which may also change the names of the objects it matches."""
    return {"target": target, "options": {"allowNameChange": True}, "patch": json.dumps(edits)}


def image_override(name: str, wanted: str) -> dict[str, str]:
    """Returns the entry of `images` that replaces one of the project's images.

    Args:
      name: Image name in the overlays.
      wanted: HOST/NAME, HOST/NAME:TAG or HOST/NAME@sha256:DIGEST. Without a tag the overlay's
        tag is kept.
    """
    repository, at, digest = wanted.partition("@")
    if at:
        return {"name": name, "newName": repository, "digest": digest}
    repository, colon, tag = wanted.rpartition(":")
    if not colon or "/" in tag:  # the colon precedes the port of a registry
        return {"name": name, "newName": wanted}
    return {"name": name, "newName": repository, "newTag": tag}


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
        manifests = wrap_in_jobset(manifests, suspend="kueue" in components_of(options))
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
