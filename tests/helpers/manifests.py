"""Renders the manifests with kubectl and expands their Pods as Kubernetes does."""

import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())

Manifests = list[dict]


def _kubectl() -> None:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which renders the kustomizations, is not installed")


@functools.cache
def _rendered(folder: Path) -> str:
    _kubectl()
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kubectl warns about deprecated fields"
    return done.stdout


def render(name: str, *components: str) -> Manifests:
    """Renders a folder below k8s, optionally with components."""
    folder = K8S / name
    if not components:
        return list(yaml.safe_load_all(_rendered(folder)))
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve()
        up = "../" * (len(here.parts) - 1)  # kustomize does not accept absolute paths
        added = [f"{up}{K8S.relative_to('/')}/components/{name}" for name in components]
        what = {"resources": [f"{up}{folder.relative_to('/')}"], "components": added}
        (here / "kustomization.yaml").write_text(json.dumps(what))
        return list(yaml.safe_load_all(_rendered(here)))


def render_all(combinations: list[tuple[str, ...]]) -> list[Manifests]:
    """Renders many overlays with components, some at a time: kubectl takes a while to start.

    Args:
      combinations: the name of an overlay and those of its additional components.
    """
    _kubectl()
    at_once = 16  # the time of a call grows with the square of their number
    parts = [combinations[i : i + at_once] for i in range(0, len(combinations), at_once)]
    return [manifests for part in parts for manifests in _render_part(part)]


def _render_part(combinations: list[tuple[str, ...]]) -> list[Manifests]:
    """Renders overlays with components, each in a namespace of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve()
        up = "../" * len(here.parts) + str(K8S.relative_to("/"))
        for number, (overlay, *components) in enumerate(combinations):
            what = {
                "namespace": f"n{number}",
                "resources": [f"{up}/overlays/{overlay}"],
                "components": [f"{up}/components/{name}" for name in components],
            }
            folder = here / f"n{number}"
            folder.mkdir()
            (folder / "kustomization.yaml").write_text(json.dumps(what))
        resources = [f"n{number}" for number in range(len(combinations))]
        (here / "kustomization.yaml").write_text(json.dumps({"resources": resources}))
        done = subprocess.run(
            ["kubectl", "kustomize", str(here)], text=True, capture_output=True, timeout=120
        )
    assert done.returncode == 0, done.stderr
    rendered: list[Manifests] = [[] for _ in combinations]
    for item in yaml.load_all(done.stdout, yaml.CSafeLoader):
        rendered[int(item["metadata"].pop("namespace")[1:])].append(item)
    return rendered


def submit(*arguments: str) -> Manifests:
    """Returns the manifests that a submission would apply."""
    _kubectl()
    done = subprocess.run(
        [sys.executable, K8S / "submit.py", *arguments], text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def all_of(manifests: Manifests, kind: str) -> Manifests:
    return [item for item in manifests if item["kind"] == kind]


def one_of(manifests: Manifests, kind: str) -> dict:
    (item,) = all_of(manifests, kind)
    return item


def job_of(manifests: Manifests) -> dict:
    """Returns the spec of the Job, which may be part of a JobSet."""
    if all_of(manifests, "JobSet"):
        (replicated,) = one_of(manifests, "JobSet")["spec"]["replicatedJobs"]
        return replicated["template"]["spec"]
    return one_of(manifests, "Job")["spec"]


def pod_of(manifests: Manifests) -> dict:
    return job_of(manifests)["template"]["spec"]


def trainer_of(manifests: Manifests) -> dict:
    (container,) = pod_of(manifests)["containers"]
    return container


def environment_of(manifests: Manifests) -> dict[str, str]:
    """Returns the container's variables: those of its ConfigMaps, overridden by its own."""
    maps = {item["metadata"]["name"]: item["data"] for item in all_of(manifests, "ConfigMap")}
    container, found = trainer_of(manifests), {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    for item in container["env"]:  # in the order of the list; the index of a worker is not known
        found[item["name"]] = expand(item.get("value", f"$({item['name']})"), found)
    return found


def expand(text: str, environment: dict[str, str]) -> str:
    """Expands `$(NAME)` as the kubelet does: unknown names are left unchanged."""
    return re.sub(r"\$\((\w+)\)", lambda name: environment.get(name[1], name[0]), text)


def arguments_of(manifests: Manifests) -> list[str]:
    environment = environment_of(manifests)
    return [expand(text, environment) for text in trainer_of(manifests)["args"]]


def entry_point(dockerfile: str = "Dockerfile") -> list[str]:
    """Returns the image's entry point, to which the container's `args` are passed."""
    text = (ROOT / "docker" / dockerfile).read_text()
    return json.loads(re.search(r"^ENTRYPOINT (\[.*\])$", text, re.M)[1])
