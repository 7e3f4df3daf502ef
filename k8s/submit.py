"""Makes the manifests of one run from an overlay, under a fresh Job name, and applies them.

    make k8s-submit OVERLAY=single-node DATASET=cifar10 RECIPE=dcgan GPUS=2 IMAGE=HOST/gan:0.1.0
    make k8s-submit ... APPLY=1

Without APPLY=1 they are only printed.  A Job's template cannot be changed, so each submission is
a Job of its own; which run it is, is said by the run directory: the same NAME goes on.
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

FOLDER = Path(__file__).resolve().parent
IMAGES = ("gan-trainer", "gan-trainer-cpu")
# The label of nodes that says which GPUs they have: GKE's, or that of NVIDIA's operator.
GKE, NVIDIA = "cloud.google.com/gke-accelerator", "nvidia.com/gpu.product"
PORT = 2222


class Wrong(Exception):
    """What was asked for cannot be made."""


def arguments() -> argparse.Namespace:
    """The command line; `make k8s-submit` writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--overlay", required=True, choices=known("overlays"))
    parser.add_argument("--component", action="append", default=[], choices=known("components"))
    parser.add_argument("--recipe", default="", help="recipe; the overlay's if not given")
    parser.add_argument("--dataset", default="", help="data set; the overlay's if not given")
    parser.add_argument("--name", default="", help="of the run's directory; RECIPE-DATASET")
    parser.add_argument("--length", default="", help="such as --kimg=500")
    parser.add_argument("--image", default="", help="HOST/NAME:TAG or HOST/NAME@sha256:DIGEST")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each Pod")
    parser.add_argument("--gpu_type", default="", help="VALUE or LABEL=VALUE of nodes")
    parser.add_argument("--workers", type=int, default=0, help="Pods of multi-worker")
    parser.add_argument("--bucket", default="", help="of the overlay gcs, without gs://")
    parser.add_argument("--service_account", default="", help="of Google's, for the overlay gcs")
    parser.add_argument("--flag", action="append", default=[], help="one more flag of the trainer")
    parser.add_argument("--apply", action="store_true", help="apply, not only print")
    return parser.parse_args()


def known(kind: str) -> list[str]:
    """The overlays or components that there are."""
    return sorted(path.name for path in (FOLDER / kind).iterdir() if path.is_dir())


def label(text: str, longest: int) -> str:
    """A text as Kubernetes takes it in names."""
    stem = re.sub(r"\.(zip|npz)$", "", text.rstrip("/").rpartition("/")[2].lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:longest].strip("-")


def run_settings(asked: argparse.Namespace, defaults: dict[str, str]) -> dict[str, str]:
    """The overlay's settings, with those that were asked for in their place."""
    names = ("recipe", "dataset", "length")
    settings = defaults | {n.upper(): value for n in names if (value := getattr(asked, n))}
    if asked.bucket:
        settings = {name: value.replace("BUCKET", asked.bucket) for name, value in settings.items()}
    if asked.name or asked.recipe or asked.dataset:
        named = f"{label(settings['RECIPE'], 30)}-{label(settings['DATASET'], 30)}"
        settings["RUN"] = asked.name or named
    settings["JOB"] = f"gan-{label(settings['RUN'], 40)}-{secrets.token_hex(3)}"
    if "WORKERS" in settings:
        count = asked.workers or settings["WORKERS"].count(",") + 1
        hosts = [f"{settings['JOB']}-{index}.gan-workers:{PORT}" for index in range(count)]
        settings["WORKERS"] = ",".join(hosts)
    return settings


def kustomization(asked: argparse.Namespace, settings: dict[str, str]) -> dict:
    """What makes the overlay a run with these settings."""
    literals = [f"{name}={value}" for name, value in settings.items()]
    # With JOB among them the ConfigMap is of this Job alone, and goes with it.
    own = {"labels": {"app.kubernetes.io/instance": settings["JOB"]}}
    run = {"name": "gan-run", "behavior": "merge", "literals": literals, "options": own}
    return {
        "resources": [f"overlays/{asked.overlay}"],
        "components": [f"components/{name}" for name in asked.component],
        "configMapGenerator": [run],
        "images": [image(name, asked.image) for name in IMAGES if asked.image],
        "patches": list(patches(asked, settings)),
    }


def patches(asked: argparse.Namespace, settings: dict[str, str]) -> Iterator[dict]:
    """The edits of the overlay's objects."""
    job, container = settings["JOB"], "/spec/template/spec/containers/0"
    instance = "app.kubernetes.io~1instance"
    edits = [
        replace("/metadata/name", job),
        {"op": "add", "path": f"/metadata/labels/{instance}", "value": job},
        replace(f"/spec/template/metadata/labels/{instance}", job),
        *({"op": "add", "path": f"{container}/args/-", "value": flag} for flag in asked.flag),
    ]
    if asked.gpus:
        edits.append(replace(f"{container}/resources/limits/nvidia.com~1gpu", asked.gpus))
    if asked.gpu_type:
        on_gke = asked.overlay in ("spot", "gcs")
        kind, _, value = asked.gpu_type.rpartition("=")
        kind = kind or (GKE if on_gke else NVIDIA)
        if on_gke and kind != GKE:  # theirs would be asked for besides
            edits.append({"op": "remove", "path": selector(GKE)})
        edits.append({"op": "add", "path": selector(kind), "value": value})
    if "WORKERS" in settings:
        count = settings["WORKERS"].count(",") + 1
        edits += [replace("/spec/completions", count), replace("/spec/parallelism", count)]
        own = [
            replace("/metadata/name", job),
            {"op": "add", "path": f"/metadata/labels/{instance}", "value": job},
            replace(f"/spec/podSelector/matchLabels/{instance}", job),
            replace(f"/spec/ingress/0/from/0/podSelector/matchLabels/{instance}", job),
            replace(f"/spec/egress/0/to/0/podSelector/matchLabels/{instance}", job),
        ]
        yield patch({"kind": "NetworkPolicy", "name": "gan-workers"}, own)
    if asked.service_account:
        annotation = "/metadata/annotations/iam.gke.io~1gcp-service-account"
        yield patch({"kind": "ServiceAccount"}, [replace(annotation, asked.service_account)])
    yield patch({"kind": "Job"}, edits)


def selector(kind: str) -> str:
    """Where a Job asks for nodes with this label."""
    return f"/spec/template/spec/nodeSelector/{kind.replace('/', '~1')}"


def replace(path: str, value: object) -> dict:
    """One edit of a patch."""
    return {"op": "replace", "path": path, "value": value}


def patch(target: dict[str, str], edits: list[dict]) -> dict:
    """A patch of objects, their names included."""
    return {"target": target, "options": {"allowNameChange": True}, "patch": json.dumps(edits)}


def image(name: str, wanted: str) -> dict[str, str]:
    """The image that takes the place of ours."""
    repository, at, digest = wanted.partition("@")
    if at:
        return {"name": name, "newName": repository, "digest": digest}
    repository, colon, tag = wanted.rpartition(":")
    if not colon or "/" in tag:  # the port of a host
        return {"name": name, "newName": wanted}
    return {"name": name, "newName": repository, "newTag": tag}


def check(asked: argparse.Namespace) -> None:
    """Raises Wrong for settings that the overlay has no use for, or lacks."""
    if (asked.gpus or asked.gpu_type) and asked.overlay == "cpu-smoke":
        raise Wrong("GPUS and GPU_TYPE: cpu-smoke has no GPU; take another OVERLAY.")
    if asked.gpu_type and not re.fullmatch(r"([\w./-]+=)?[\w.-]+", asked.gpu_type):
        raise Wrong(f"GPU_TYPE={asked.gpu_type}: a label's value, or LABEL=VALUE.")
    if asked.gpus < 0 or asked.workers < 0:
        raise Wrong("GPUS and WORKERS count from 1 on.")
    if asked.workers and asked.overlay != "multi-worker":
        raise Wrong(f"WORKERS: {asked.overlay} has one Pod; OVERLAY=multi-worker has several.")
    if asked.workers == 1:
        raise Wrong("WORKERS=1: OVERLAY=single-node is for one machine.")
    if asked.overlay != "gcs" and (asked.bucket or asked.service_account):
        raise Wrong("BUCKET and SERVICE_ACCOUNT belong to OVERLAY=gcs.")
    if asked.overlay == "gcs" and not (asked.bucket and asked.service_account):
        raise Wrong(
            "gcs needs BUCKET=name and SERVICE_ACCOUNT=name@project.iam.gserviceaccount.com, "
            "which may read and write it."
        )
    if asked.name and asked.name != label(asked.name, 63):
        raise Wrong(f"NAME={asked.name}: small letters, digits and hyphens; at most 63 of them.")


def render(what: dict) -> str:
    """The manifests of a kustomization whose paths are relative to this folder.

    Raises:
      Wrong: where kubectl is missing or does not make them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve()
        for name in ("resources", "components"):
            what[name] = [os.path.relpath(FOLDER / path, here) for path in what.get(name, [])]
        (here / "kustomization.yaml").write_text(json.dumps(what), encoding="utf-8")
        return kustomize(here)


def apply(manifests: str, job: str) -> None:
    """Applies them.

    Raises:
      Wrong: where one was refused; kubectl makes the others all the same, perhaps the Job too.
    """
    done = kubectl("apply", "-f", "-", given=manifests)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise Wrong(
            f"kubectl apply: {done.stderr.strip()}\n"
            f"Not all was applied. If the Job was, it runs: kubectl get job {job}"
        )


def kustomize(folder: str | Path) -> str:
    """The manifests of a kustomization."""
    done = kubectl("kustomize", str(folder))
    if done.returncode:
        raise Wrong(f"kubectl kustomize: {done.stderr.strip()}")
    return done.stdout


def kubectl(*command: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs kubectl."""
    try:
        return subprocess.run(["kubectl", *command], input=given, text=True, capture_output=True)
    except FileNotFoundError:
        raise Wrong("kubectl is not here: see kubernetes.io/docs/tasks/tools.") from None


def settings_of(manifests: str) -> dict[str, str]:
    """The run's settings in the ConfigMap of rendered manifests."""
    config = next(text for text in manifests.split("\n---\n") if "\nkind: ConfigMap\n" in text)
    lines = re.findall(r"^  ([A-Z]+): (.*)$", config, re.M)
    return {name: value.strip("\"'") for name, value in lines}


def main() -> int:
    """Prints or applies the manifests; returns the exit code."""
    asked = arguments()
    try:
        check(asked)
        overlay = kustomize(FOLDER / "overlays" / asked.overlay)
        settings = run_settings(asked, settings_of(overlay))
        manifests = render(kustomization(asked, settings))
        if not asked.apply:
            print(manifests, end="")
            print("Nothing is applied: APPLY=1 does that.", file=sys.stderr)
            return 0
        apply(manifests, settings["JOB"])
    except Wrong as error:
        print(f"error: {error}", file=sys.stderr)
        return 64
    print(f"Follow it: kubectl logs --follow job/{settings['JOB']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
