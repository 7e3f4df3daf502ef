"""A release: its version in all places, and its archives, installed without the repository."""

import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from trainer import __version__

ROOT = Path(__file__).resolve().parents[1]
METADATA = f"gan_trainer-{__version__}.dist-info"
FILES_BESIDE_THE_PACKAGE = {
    "CHANGELOG.md", "LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml",
    "setup.cfg", "setup.py",
}  # fmt: skip


def dry_run(target: str, *given: str) -> str:
    """Returns the commands of a target of the Makefile, one a line."""
    done = subprocess.run(
        ["make", "--dry-run", target, *given], cwd=ROOT, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def call(*command: object, cwd: Path, timeout: float = 300) -> str:
    """Runs a command as a user without the repository would, and returns its output."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd, env={**env, "TRAINER_DATA_DIR": ""}, text=True, capture_output=True,
        timeout=timeout,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


# The version.


@pytest.mark.parametrize("target", ["image", "image-cpu"])
def test_images_are_labelled_and_tagged_with_the_version(target):
    command = dry_run(target)
    assert f"--build-arg VERSION={__version__} " in command
    assert re.search(rf"--tag \S+:{re.escape(__version__)} ", command)
    dockerfile = (ROOT / re.search(r"--file (\S+)", command)[1]).read_text()
    assert 'org.opencontainers.image.version="${VERSION}"' in dockerfile


def test_the_steps_of_a_release_name_what_exists():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    steps = re.search(r"^## Releasing\n(.*?)(?=^## |\Z)", page, re.M | re.S)[1]
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"make ([a-z-]+)", steps)
    assert {"dist", "test-dist", "image", "image-cpu"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in targets)
    assert all((ROOT / path).exists() for path in re.findall(r"`([\w/]+\.(?:py|cff|md))`", steps))


# The archives.


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """Builds the archives by the command of `make dist`."""
    folder = tmp_path_factory.mktemp("dist")
    commands = dry_run("dist", f"VENV={sys.prefix}", f"DIST={folder}").splitlines()
    (build,) = (line for line in commands if " -m build " in line)
    call(*shlex.split(build), cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def source(dist) -> Path:
    (path,) = dist.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def rebuilt(source, tmp_path_factory) -> Path:
    """Builds a wheel from the source archive."""
    folder = tmp_path_factory.mktemp("rebuilt")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--no-deps", "--wheel-dir", folder, source, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


def package_files() -> set[str]:
    """The files that the package consists of."""
    trainer = ROOT / "trainer"
    code = {
        path.relative_to(ROOT).as_posix()
        for suffix in ("py", "pyi")
        for path in trainer.rglob(f"*.{suffix}")
    }
    return code | {"trainer/py.typed", "trainer/data/digits.npz", "trainer/data/DIGITS.md"}


@pytest.mark.dist
def test_the_archives_are_named_after_the_version(wheel, source):
    assert wheel.name == f"gan_trainer-{__version__}-py3-none-any.whl"
    assert source.name == f"gan_trainer-{__version__}.tar.gz"


@pytest.mark.dist
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        about = archive.read(f"{METADATA}/METADATA").decode()
    assert {name for name in names if not name.startswith(METADATA)} == package_files()
    assert f"{METADATA}/licenses/LICENSE" in names
    assert f"\nVersion: {__version__}\n" in about


@pytest.mark.dist
def test_the_source_archive_holds_the_package_and_what_builds_it(source):
    with tarfile.open(source) as archive:
        paths = [Path(member.name) for member in archive.getmembers() if member.isfile()]
    names = {path.relative_to(path.parts[0]).as_posix() for path in paths}
    beside = {name for name in names if not name.startswith("gan_trainer.egg-info/")}
    assert beside == package_files() | FILES_BESIDE_THE_PACKAGE


@pytest.mark.dist
def test_the_source_archive_builds_the_same_wheel(wheel, rebuilt):
    contents = []
    for path in (wheel, rebuilt):
        with zipfile.ZipFile(path) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0] == contents[1]


@pytest.mark.dist
@pytest.mark.parametrize("built_from", ["repository", "source archive"])
def test_an_installed_package_trains_and_generates(tmp_path, wheel, rebuilt, built_from):
    """The dependencies come from this environment, because installing them takes minutes."""
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    chosen = wheel if built_from == "repository" else rebuilt
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={python}"]
    call(*pip, "install", "--no-deps", "--no-index", chosen, cwd=elsewhere)
    # The .pth files of these folders are not read, so the editable install is not found.
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("\n".join(borrowed))

    found = call(python, "-c", "import trainer; print(trainer.__file__)", cwd=elsewhere)
    assert Path(found.strip()).is_relative_to(site)
    program = environment / "bin" / "gan-trainer"
    assert call(program, "--version", cwd=elsewhere).strip() == f"gan-trainer {__version__}"
    flags = ["--devices=cpu", "--steps=3", "--batch_size=8", "--sample_grid=2"]
    call(program, "train", "--run_dir=run", "--recipe=mlp", *flags, cwd=elsewhere)
    provenance = json.loads((elsewhere / "run" / "provenance.json").read_text())
    assert provenance["trainer"] == provenance["began_with"] == __version__
    assert json.loads((elsewhere / "run" / "data.json").read_text())["images"] == 1500
    call(program, "generate", "--run_dir=run", "--num=4", "--out=grid.png", cwd=elsewhere)
    assert (elsewhere / "grid.png").stat().st_size
