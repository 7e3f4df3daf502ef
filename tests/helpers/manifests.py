"""Renders the manifests with kubectl and expands their Pods as Kubernetes does."""

import functools
import json
import os
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
        ["kubectl", "kustomize", str(folder)], text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "kubectl warns about deprecated fields"
    return done.stdout


def _parsed(text: str) -> Manifests:
    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def render(name: str, *components: str) -> Manifests:
    """Renders a folder below k8s, optionally with components."""
    if not components:
        return _parsed(_rendered(K8S / name))
    (manifests,) = render_together([(name, components)])
    return manifests


def render_together(combinations: list[tuple[str, tuple[str, ...]]]) -> list[Manifests]:
    """Renders folders below k8s with components, in one call of kubectl.

    Each gets a namespace while it is rendered, because kustomize requires unique objects.
    """
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch).resolve()
        names = [f"n{index}" for index in range(len(combinations))]
        for name, (folder, components) in zip(names, combinations, strict=True):
            (here / name).mkdir()
            path = functools.partial(os.path.relpath, start=here / name)
            added = [path(K8S / "components" / component) for component in components]
            what = {"namespace": name, "resources": [path(K8S / folder)], "components": added}
            (here / name / "kustomization.yaml").write_text(json.dumps(what))
        (here / "kustomization.yaml").write_text(json.dumps({"resources": names}))
        rendered: dict[str, Manifests] = {name: [] for name in names}
        for item in _parsed(_rendered(here)):
            rendered[item["metadata"].pop("namespace")].append(item)
    return list(rendered.values())


def run_submit(*arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
    """Runs the submission.

    Args:
      *arguments: Its options.
      path: A folder with a kubectl to use instead of that on PATH.
    """
    _kubectl()
    return subprocess.run(
        [sys.executable, "-m", "k8s.submit", *arguments],
        cwd=ROOT, env=os.environ | {"PATH": f"{path}:{os.environ['PATH']}"},
        text=True, capture_output=True, timeout=60,
    )  # fmt: skip


def submit(*arguments: str) -> Manifests:
    """Returns the manifests that a submission would apply."""
    done = run_submit(*arguments)
    assert done.returncode == 0, done.stderr
    return _parsed(done.stdout)


def all_of(manifests: Manifests, kind: str) -> Manifests:
    return [item for item in manifests if item["kind"] == kind]


def one_of(manifests: Manifests, kind: str) -> dict:
    (item,) = all_of(manifests, kind)
    return item


def pod_of(manifests: Manifests) -> dict:
    return one_of(manifests, "Job")["spec"]["template"]["spec"]


def trainer_of(manifests: Manifests) -> dict:
    (container,) = pod_of(manifests)["containers"]
    return container


def environment_of(manifests: Manifests) -> dict[str, str]:
    """Returns the container's variables: those of its ConfigMaps, overridden by its own.

    The index of a worker is 0.
    """
    maps = {item["metadata"]["name"]: item["data"] for item in all_of(manifests, "ConfigMap")}
    container, found = trainer_of(manifests), {}
    for source in container.get("envFrom", []):
        found |= maps[source["configMapRef"]["name"]]
    for item in container["env"]:
        found[item["name"]] = expand(item["value"], found) if "value" in item else "0"
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
