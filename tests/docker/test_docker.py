"""Checks of the Dockerfiles and, where the user is root, of an image built from them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests.helpers import manifests as k8s
from trainer.errors import ExitCode

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
LISTS = {"requirements-cpu.txt": "tensorflow-cpu", "requirements-gpu.txt": "tensorflow"}


def instructions(path: Path, name: str) -> list[str]:
    text = path.read_text().replace("\\\n", " ")
    return re.findall(rf"^{name} +(.*)$", text, re.M)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_image_matches_the_manifests_and_is_labelled(path):
    user = k8s.pod_of(k8s.render("overlays/cpu-smoke"))["securityContext"]
    assert instructions(path, "USER")[-1] == f"{user['runAsUser']}:{user['runAsGroup']}"
    assert json.loads(instructions(path, "ENTRYPOINT")[-1]) == ["python", "-m", "trainer"]
    labels = " ".join(instructions(path, "LABEL"))
    for name in ("title", "description", "version", "revision", "base.name", "licenses"):
        assert f"org.opencontainers.image.{name}=" in labels
    assert len(instructions(path, "FROM")) == 2, "the build stage is not part of the image"
    build, _ = re.split(r"^FROM \$\{BASE_IMAGE\}$", path.read_text(), flags=re.M)
    assert build.rstrip().endswith("uninstall --yes setuptools wheel")
    assert not re.search(r"^#\s*syntax", path.read_text(), re.M), (
        "the builder would pull the syntax image"
    )
    names = {a.partition("=")[0] for line in instructions(path, "ARG") for a in line.split()}
    assert names == {"BASE_IMAGE", "VERSION", "REVISION"}, (
        "build arguments are visible in the image, so none may be a secret"
    )


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_image_sets_the_folders_of_the_manifests(path):
    """Checks that a container started by hand writes to the same folders as a Pod."""
    overlay = "cpu-smoke" if path.suffix == ".cpu" else "single-node"
    wanted = k8s.environment_of(k8s.render(f"overlays/{overlay}"))
    given = dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(instructions(path, "ENV"))))
    for name in ("HOME", "KERAS_HOME"):
        assert given[name] == wanted[name]


def test_cuda_library_check_runs():
    """Checks that the command can import the trainer; the libraries may be missing here."""
    check = next(line for line in instructions(DOCKERFILES[0], "RUN") if line.startswith("["))
    python, *arguments = json.loads(check)
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, text=True, capture_output=True, timeout=60
    )
    if done.returncode:
        assert done.stderr.startswith("CUDA libraries that do not load: ['lib"), done.stderr
        assert done.stderr.count("\n") == 1
    assert "libcuda.so.1" not in done.stderr


def cluster_requirements() -> list[Requirement]:
    """Returns the trainer's requirements, with those of the extras that have a component."""
    setup = (ROOT / "setup.py").read_text()
    block = re.search(r"install_requires=\[(.*?)\]", setup, re.S)[1]
    extras = dict(re.findall(r'^ +"(\w+)": \[(.*?)\],$', setup, re.M | re.S))
    components = {path.name for path in (k8s.K8S / "components").iterdir()} - {"gpu"}
    components &= extras.keys()
    assert "prometheus" in components
    texts = "".join([block, *(extras[name] for name in sorted(components))])
    return [Requirement(text) for text in re.findall(r'"([^"]+)"', texts)]


@pytest.mark.parametrize("name", LISTS)
def test_requirements_pin_every_package_with_hashes(name):
    text = (ROOT / "docker" / name).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    pinned = {}
    for line in lines:
        package, *hashes = re.split(r"\s+--hash=", line.strip())
        requirement = Requirement(package)
        assert hashes, line
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes)
        (exact,) = requirement.specifier
        assert exact.operator == "=="
        pinned[requirement.name] = Version(exact.version)
    assert {"setuptools", "wheel"} <= pinned.keys(), "the trainer's own wheel is built with them"
    for package in ("nvidia-cudnn-cu12", "nvidia-ml-py"):
        assert (package in pinned) == (name == "requirements-gpu.txt"), package

    for required in cluster_requirements():
        package = LISTS[name] if required.name == "tensorflow" else required.name
        assert pinned[package] in required.specifier, f"{name} is out of date: make requirements"


def test_dockerignore_includes_every_copied_file():
    ignored, *included = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert ignored == "*"
    included = {line[1:] for line in included if line.startswith("!")}
    for path in DOCKERFILES:
        for line in instructions(path, "COPY"):
            if not line.startswith("--from"):
                for source in line.split()[:-1]:
                    assert any(Path(source).match(pattern) for pattern in included), source


def load_proof():
    spec = importlib.util.spec_from_file_location("prove", ROOT / "docker" / "prove.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.images
def test_cpu_image_builds_and_runs_as_in_a_pod(tmp_path):
    """Takes minutes. A folder in TRAINER_PROVE_DIR keeps the base image for later calls."""
    proof = load_proof()
    folder = os.environ.get("TRAINER_PROVE_DIR", tmp_path)
    if reason := proof.unmet_requirement():
        pytest.skip(f"no image can be built on this machine: {reason}")
    manifests = k8s.render("overlays/cpu-smoke")
    done = subprocess.run(
        ["python3", ROOT / "docker" / "prove.py", folder, "--", *k8s.arguments_of(manifests)],
        text=True, capture_output=True, timeout=1800,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for code in (ExitCode.OK, ExitCode.STOPPED, ExitCode.USAGE):
        assert f"exit code {code:d};" in done.stdout
    assert "proven: " in done.stdout
