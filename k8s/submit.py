"""Renders the manifests of one training run from an overlay and, on request, applies them.

    make k8s-submit OVERLAY=single-node DATASET=cifar10 RECIPE=dcgan GPUS=2 IMAGE=HOST/gan:0.2.0
    make k8s-submit ... APPLY=1

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
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
IMAGES = ("gan-trainer", "gan-trainer-cpu")
# Node labels that name the GPU model: the label set by GKE and that of NVIDIA's GPU operator.
GKE_LABEL, NVIDIA_LABEL = "cloud.google.com/gke-accelerator", "nvidia.com/gpu.product"
PORT = 2222
INSTANCE = "app.kubernetes.io~1instance"  # as a part of a JSON pointer
USAGE_ERROR = 64  # as the trainer's exit code for a wrong command line

Json = dict[str, Any]


class SubmissionError(Exception):
    """An invalid setting or a failing kubectl; the message is shown to the user."""


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
    option("--workers", type=int, default=0, help="number of Pods of the overlay multi-worker")
    option("--bucket", default="", help="bucket of the overlay gcs, without gs://")
    option("--service_account", default="", help="Google service account of the overlay gcs")
    option("--flag", action="append", default=[], help="additional trainer flag; may be repeated")
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


def run_settings(options: argparse.Namespace, defaults: dict[str, str]) -> dict[str, str]:
    """Merges the options into the overlay's settings and chooses a unique Job name.

    Args:
      options: The parsed command line.
      defaults: The data of the overlay's ConfigMap.

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
        count = options.workers or worker_count(settings)
        hosts = [f"{settings['JOB']}-{index}.gan-workers:{PORT}" for index in range(count)]
        settings["WORKERS"] = ",".join(hosts)
    return settings


def worker_count(settings: dict[str, str]) -> int:
    """Returns the number of addresses in the setting WORKERS."""
    return settings["WORKERS"].count(",") + 1


def kustomization(options: argparse.Namespace, settings: dict[str, str]) -> Json:
    """Returns a kustomization that turns the overlay into a Job with these settings.

    Its paths are relative to this folder.
    """
    literals = [f"{name}={value}" for name, value in settings.items()]
    # Because JOB is among the literals, the hash suffix makes the ConfigMap unique to this Job.
    # The label lets it be deleted together with the Job.
    job_label = {"labels": {"app.kubernetes.io/instance": settings["JOB"]}}
    config = {"name": "gan-run", "behavior": "merge", "literals": literals, "options": job_label}
    return {
        "resources": [f"overlays/{options.overlay}"],
        "components": [f"components/{name}" for name in options.component],
        "configMapGenerator": [config],
        "images": [image_override(name, options.image) for name in IMAGES if options.image],
        "patches": list(patches(options, settings)),
    }


def patches(options: argparse.Namespace, settings: dict[str, str]) -> Iterator[Json]:
    """Yields the patches of the overlay's objects."""
    job, container = settings["JOB"], "/spec/template/spec/containers/0"
    edits = [
        replace("/metadata/name", job),
        add("/metadata/labels/" + INSTANCE, job),
        replace(f"/spec/template/metadata/labels/{INSTANCE}", job),
        *(add(f"{container}/args/-", flag) for flag in options.flag),
    ]
    if options.gpus:
        edits.append(replace(f"{container}/resources/limits/nvidia.com~1gpu", options.gpus))
    if options.gpu_type:
        edits += gpu_type_edits(options)
    if "WORKERS" in settings:
        count = worker_count(settings)
        edits += [replace("/spec/completions", count), replace("/spec/parallelism", count)]
        yield worker_policy_patch(job)
    if options.service_account:
        annotation = "/metadata/annotations/iam.gke.io~1gcp-service-account"
        yield patch({"kind": "ServiceAccount"}, [replace(annotation, options.service_account)])
    yield patch({"kind": "Job"}, edits)


def gpu_type_edits(options: argparse.Namespace) -> Iterator[Json]:
    """Yields the edits that select nodes with the requested GPU model."""
    on_gke = options.overlay in ("spot", "gcs")
    label, _, value = options.gpu_type.rpartition("=")
    label = label or (GKE_LABEL if on_gke else NVIDIA_LABEL)
    if on_gke and label != GKE_LABEL:
        # These overlays select a model by GKE's label, and nodes would have to match both.
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


def node_selector(label: str) -> str:
    """Returns the JSON pointer to a label in the node selector of a Job."""
    return f"/spec/template/spec/nodeSelector/{label.replace('/', '~1')}"


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
    """Checks the options against each other and against the overlay.

    Raises:
      SubmissionError: If a setting is invalid, missing or not supported by the overlay.
    """
    overlay, gpu_type, name = options.overlay, options.gpu_type, options.name
    if (options.gpus or gpu_type) and overlay == "cpu-smoke":
        raise SubmissionError(
            "GPUS and GPU_TYPE cannot be used with OVERLAY=cpu-smoke, which has no GPU. "
            "Choose another OVERLAY."
        )
    if gpu_type and not re.fullmatch(r"([\w./-]+=)?[\w.-]+", gpu_type):
        raise SubmissionError(
            f"GPU_TYPE={gpu_type} is invalid. Give the value of a node label, or LABEL=VALUE."
        )
    if options.gpus < 0 or options.workers < 0:
        raise SubmissionError(
            f"GPUS={options.gpus} WORKERS={options.workers}: both must be positive integers."
        )
    if options.workers and overlay != "multi-worker":
        raise SubmissionError(
            f"WORKERS={options.workers} cannot be used with OVERLAY={overlay}, which runs a single "
            "Pod. Use OVERLAY=multi-worker for several."
        )
    if options.workers == 1:
        raise SubmissionError("WORKERS=1 is too few. Use OVERLAY=single-node for one machine.")
    if overlay != "gcs" and (options.bucket or options.service_account):
        raise SubmissionError("BUCKET and SERVICE_ACCOUNT can only be used with OVERLAY=gcs.")
    if overlay == "gcs" and not (options.bucket and options.service_account):
        raise SubmissionError(
            "OVERLAY=gcs requires BUCKET=name and "
            "SERVICE_ACCOUNT=name@project.iam.gserviceaccount.com, an account that may read and "
            "write the bucket."
        )
    if name and name != dns_label(name, 63):
        raise SubmissionError(
            f"NAME={name} is invalid. Use at most 63 lower-case letters, digits and hyphens."
        )


def render(content: Json) -> str:
    """Renders a kustomization whose paths are relative to this folder.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve()
        relative = {
            name: [os.path.relpath(FOLDER / path, here) for path in content.get(name, [])]
            for name in ("resources", "components")
        }
        text = json.dumps(content | relative)
        (here / "kustomization.yaml").write_text(text, encoding="utf-8")
        return kustomize(here)


def apply(manifests: str, job: str) -> None:
    """Applies the manifests to the cluster.

    Raises:
      SubmissionError: If an object was rejected. kubectl still applies the other objects, which
        may include the Job.
    """
    done = kubectl("apply", "-f", "-", stdin=manifests)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SubmissionError(
            f"kubectl apply: {done.stderr.strip()}\n"
            "Some objects were not applied. The Job may be running; to find out: "
            f"kubectl get job {job}"
        )


def kustomize(folder: Path) -> str:
    """Renders the kustomization in a folder.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    done = kubectl("kustomize", str(folder))
    if done.returncode:
        raise SubmissionError(f"kubectl kustomize: {done.stderr.strip()}")
    return done.stdout


def kubectl(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs kubectl and captures its output.

    Raises:
      SubmissionError: If kubectl is not installed.
    """
    try:
        return subprocess.run(["kubectl", *command], input=stdin, text=True, capture_output=True)
    except FileNotFoundError:
        raise SubmissionError(
            "kubectl was not found on PATH. Install it: https://kubernetes.io/docs/tasks/tools"
        ) from None


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
        overlay = kustomize(FOLDER / "overlays" / options.overlay)
        settings = run_settings(options, config_map_data(overlay))
        manifests = render(kustomization(options, settings))
        if not options.apply:
            print(manifests, end="")
            print("Nothing has been applied. Add APPLY=1 to apply the manifests.", file=sys.stderr)
            return 0
        apply(manifests, settings["JOB"])
    except SubmissionError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_ERROR
    print(f"To follow the log: kubectl logs --follow job/{settings['JOB']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
