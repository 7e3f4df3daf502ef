"""Turns an overlay, components and settings into the manifests of one training run."""

import argparse
import dataclasses
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from k8s.kubectl import kustomize

FOLDER = Path(__file__).resolve().parent
IMAGES = ("gan-trainer", "gan-trainer-cpu")
# Node labels that name the GPU model: the label set by GKE and that of NVIDIA's GPU operator.
GKE_LABEL, NVIDIA_LABEL = "cloud.google.com/gke-accelerator", "nvidia.com/gpu.product"
GPU = "nvidia.com/gpu"
CPUS_PER_GPU, GIB_PER_GPU = 3, 12  # as in components/gpu/job.yaml
CPU_LIMIT = 32
WORKERS = 2  # as in components/multi-worker
RETRIES = 4  # of each worker, as in base/job.yaml
PORT = 2222
INSTANCE = "app.kubernetes.io~1instance"  # as a part of a JSON pointer
CONTAINER = "/spec/template/spec/containers/0"

Json = dict[str, Any]


def subfolders(kind: str) -> list[str]:
    """Returns the names of the available overlays or components.

    Args:
      kind: "overlays" or "components".
    """
    return sorted(path.name for path in (FOLDER / kind).iterdir() if path.is_dir())


@dataclasses.dataclass(frozen=True)
class Parts:
    """An overlay and the components that are added to it."""

    overlay: str
    added: tuple[str, ...] = ()

    @property
    def own(self) -> set[str]:
        """The names of the components that the overlay includes."""
        text = (FOLDER / "overlays" / self.overlay / "kustomization.yaml").read_text("utf-8")
        return set(re.findall(r"^  - \.\./\.\./components/([\w-]+)$", text, re.M))

    @property
    def components(self) -> set[str]:
        """The names of all components."""
        return self.own.union(self.added)

    def ordered(self) -> list[str]:
        """Returns the components to add to the overlay, in the order of their application.

        `gpu` comes first, because others change what it adds. `autopilot` comes last, because it
        removes what others add.
        """
        missing = self.components - self.own
        return sorted(missing, key=lambda name: (name == "autopilot", name != "gpu", name))


def render(parts: Parts, changes: Json | None = None) -> str:
    """Renders an overlay with its added components, and then `changes`, a kustomization.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve() / "run"
        (here / "parts").mkdir(parents=True)
        # The changes need a kustomization of their own: kustomize applies components after the
        # ConfigMaps of the same kustomization, and their settings would win.
        combined = {
            "resources": [os.path.relpath(FOLDER / "overlays" / parts.overlay, here / "parts")],
            "components": [
                os.path.relpath(FOLDER / "components" / name, here / "parts")
                for name in parts.ordered()
            ],
        }
        write_kustomization(here / "parts", combined)
        write_kustomization(here, {"resources": ["parts"], **(changes or {})})
        return kustomize(here)


def write_kustomization(folder: Path, content: Json) -> None:
    """Writes a kustomization, as JSON, which is also YAML."""
    (folder / "kustomization.yaml").write_text(json.dumps(content), encoding="utf-8")


def config_map_data(manifests: str) -> dict[str, str]:
    """Returns the data of the ConfigMap in rendered manifests."""
    config = next(text for text in manifests.split("\n---\n") if "\nkind: ConfigMap\n" in text)
    lines = re.findall(r"^  ([A-Z]+): (.*)$", config, re.M)
    return {name: value.strip("\"'") for name, value in lines}


def dns_label(text: str, max_length: int) -> str:
    """Converts a name or path to lower-case letters, digits and hyphens, as DNS labels require.

    Of a path only the last part is used, without the suffixes .zip and .npz.
    """
    stem = re.sub(r"\.(zip|npz)$", "", text.rstrip("/").rpartition("/")[2].lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:max_length].strip("-")


def run_settings(options: argparse.Namespace, defaults: dict[str, str]) -> dict[str, str]:
    """Merges the options into the default settings and chooses a unique Job name.

    Args:
      options: The parsed command line.
      defaults: The data of the ConfigMap of the overlay with its components.

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
    settings["JOB"] = f"gan-{dns_label(settings['RUN'], 40)}-{secrets.token_hex(3)}"
    if "WORKERS" in settings:
        count = options.workers or WORKERS
        hosts = [f"{settings['JOB']}-{index}.gan-workers:{PORT}" for index in range(count)]
        settings["WORKERS"] = ",".join(hosts)
    return settings


def run_changes(options: argparse.Namespace, parts: Parts, settings: dict[str, str]) -> Json:
    """Returns the changes that make the parts the Job of a run with these settings."""
    literals = [f"{name}={value}" for name, value in settings.items()]
    # Because JOB is among the literals, the hash suffix makes the ConfigMap unique to this Job.
    # The label lets it be deleted together with the Job.
    job_label = {"labels": {"app.kubernetes.io/instance": settings["JOB"]}}
    config = {"name": "gan-run", "behavior": "merge", "literals": literals, "options": job_label}
    return {
        "configMapGenerator": [config],
        "images": [image_override(name, options.image) for name in IMAGES if options.image],
        "patches": list(patches(options, parts, settings)),
    }


def patches(options: argparse.Namespace, parts: Parts, settings: dict[str, str]) -> Iterator[Json]:
    """Yields the patches of the objects."""
    job = settings["JOB"]
    edits = [
        replace("/metadata/name", job),
        add("/metadata/labels/" + INSTANCE, job),
        replace(f"/spec/template/metadata/labels/{INSTANCE}", job),
        *(add(f"{CONTAINER}/args/-", flag) for flag in options.flag),
        *resource_edits(options),
    ]
    if options.gpu_type:
        edits += gpu_type_edits(options.gpu_type, parts)
    if options.billing_project:
        variable = {"name": "GOOGLE_CLOUD_QUOTA_PROJECT", "value": options.billing_project}
        edits.append(add(f"{CONTAINER}/env/-", variable))
    if "WORKERS" in settings:
        count = options.workers or WORKERS
        edits += [replace("/spec/completions", count), replace("/spec/parallelism", count)]
        # The Pods of all workers count their failures together.
        edits.append(replace("/spec/backoffLimit", RETRIES * count))
        yield worker_policy_patch(job)
    if options.service_account:
        yield service_account_patch(options.service_account)
    yield patch({"kind": "Job"}, edits)


def resource_edits(options: argparse.Namespace) -> Iterator[Json]:
    """Yields the edits of the container's GPUs, CPUs and memory."""
    resources = f"{CONTAINER}/resources"
    if options.gpu_resource not in ("", GPU):
        yield {"op": "remove", "path": f"{resources}/limits/{pointer(GPU)}"}
        yield add(f"{resources}/limits/{pointer(options.gpu_resource)}", options.gpus or 1)
        toleration = {"key": options.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
        yield add("/spec/template/spec/tolerations/-", toleration)
    elif options.gpus:
        yield replace(f"{resources}/limits/{pointer(GPU)}", options.gpus)
    cpus = options.cpus or str(CPUS_PER_GPU * options.gpus)
    memory = options.memory or f"{GIB_PER_GPU * options.gpus}Gi"
    if options.cpus or options.gpus:
        yield replace(f"{resources}/requests/cpu", cpus)
        yield replace(
            f"{resources}/limits/cpu", cpus if cores(cpus) > CPU_LIMIT else f"{CPU_LIMIT}"
        )
    if options.memory or options.gpus:
        yield replace(f"{resources}/requests/memory", memory)
        yield replace(f"{resources}/limits/memory", memory)


def cores(cpus: str) -> float:
    """Returns a Kubernetes quantity of CPUs, such as 2.5 or 500m, as a number."""
    return float(cpus.removesuffix("m")) * (1e-3 if cpus.endswith("m") else 1)


def gpu_type_edits(gpu_type: str, parts: Parts) -> Iterator[Json]:
    """Yields the edits that select nodes with the requested GPU model."""
    selected = bool(parts.components & {"gke", "autopilot"})
    label, _, value = gpu_type.rpartition("=")
    on_gke = selected or "spot" in parts.components
    label = label or (GKE_LABEL if on_gke else NVIDIA_LABEL)
    if selected and label != GKE_LABEL:
        # `gke` selects a model by GKE's label, and nodes would have to match both.
        yield {"op": "remove", "path": f"/spec/template/spec/nodeSelector/{pointer(GKE_LABEL)}"}
    yield add(f"/spec/template/spec/nodeSelector/{pointer(label)}", value)


def service_account_patch(account: str) -> Json:
    """Returns the patch that lets the Pods act as a Google service account.

    The ServiceAccount gets a name of its own: other runs use `gan-trainer` without the annotation.
    """
    annotations = {"iam.gke.io/gcp-service-account": account}
    edits = [
        replace("/metadata/name", "gan-trainer-gcs"),
        add("/metadata/annotations", annotations),
    ]
    return patch({"kind": "ServiceAccount"}, edits)


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


def pointer(name: str) -> str:
    """Returns a key, such as a label, as a part of a JSON pointer."""
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
