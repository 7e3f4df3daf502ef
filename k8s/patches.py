"""The kustomization that turns an overlay and its components into the Job of one run."""

import argparse
import re
from collections.abc import Iterator

import grace
import jobset
from edits import (
    CONTAINER,
    INSTANCE,
    Json,
    add,
    escaped,
    image_override,
    node_selector,
    patch,
    pod_patch,
    removed,
    replace,
    volume_patch,
)
from folders import components_of

IMAGES = ("gan-trainer", "gan-trainer-cpu")
# Node labels that name the GPU model: the label set by GKE and that of NVIDIA's GPU operator.
GKE_LABEL, NVIDIA_LABEL = "cloud.google.com/gke-accelerator", "nvidia.com/gpu.product"
GPU = "nvidia.com/gpu"
GKE = {"gke", "autopilot", "spot"}  # components whose nodes carry GKE's label
# What a GPU is given by default: small nodes with one GPU have 4 CPUs and 16 GiB. The memory is
# limited to what is requested, as k8s/components/gpu/job.yaml explains.
CPUS_PER_GPU, GIB_PER_GPU = 3, 12
RETRIES_PER_WORKER = 4
MAX_SHM_MIB = 4096


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
    if secs := grace.period_secs(options.flag, on_spot="spot" in components_of(options)):
        edits.append(replace("/spec/template/spec/terminationGracePeriodSeconds", secs))
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
    if leaves_out_data_volume(options, settings["DATASET"]):
        yield data_volume_removal()
    if memory := requested_memory(options):
        shm = {"medium": "Memory", "sizeLimit": shm_size(memory)}
        yield volume_patch({"name": "shm", "emptyDir": shm})
    yield patch({"kind": "Job"}, edits)
    if options.jobset:
        yield patch(
            {"kind": "Job"}, list(jobset.job_edits(with_kueue="kueue" in components_of(options)))
        )


def leaves_out_data_volume(options: argparse.Namespace, dataset: str) -> bool:
    """Returns whether the run needs no file of the volume of data sets that its overlay mounts.

    Data in a bucket do not, nor the digits in the image. With the component gcs, for which nothing
    is to tie the Pod to a zone, it downloads the other published sets as well.
    """
    components = components_of(options)
    if "data-volume" not in components or "data-volume" in options.component:
        return False  # there is none, or it is asked for
    if any(re.search(r"(^|=)/data(/|$)", flag) for flag in options.flag):
        return False
    published = "gcs" in components and "/" not in dataset
    return dataset == "digits" or dataset.startswith("gs://") or published


def data_volume_removal() -> Json:
    """Returns the patch that takes back the component data-volume."""
    container = {
        "name": "trainer",
        "env": [removed(name="TRAINER_DATA_DIR")],
        "volumeMounts": [removed(mountPath="/data")],
    }
    return pod_patch({"containers": [container], "volumes": [removed(name="data")]})


def worker_count(settings: dict[str, str]) -> int:
    """Returns the number of addresses in the setting WORKERS."""
    return settings["WORKERS"].count(",") + 1


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
