"""Commands of the Makefile, as `make --dry-run` prints them, and files that depend on them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from trainer import __version__

ROOT = Path(__file__).resolve().parents[1]


def command(target: str, *given: str, **environment: str) -> str:
    """Returns the command of a target that starts the trainer."""
    env = {"PATH": "/usr/bin:/bin", **environment}
    done = subprocess.run(
        ["make", "--dry-run", target, *given],
        cwd=ROOT, env=env, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\\\n", " ").splitlines()
    (line,) = (line for line in lines if " -m trainer " in line)
    return line


@pytest.mark.parametrize(
    ("given", "lengths"),
    [
        (["DATASET=cifar10"], ["--kimg=10000"]),
        (["LENGTH=--epochs=2"], ["--epochs=2"]),
        (["LENGTH="], []),
        (["ARGS=--seed=1 --steps=7"], ["--steps=7"]),
        (["RECIPE=cgan"], []),
    ],
)
def test_train_gpu_passes_the_length_of_training(given, lengths):
    line = command("train-gpu", *given)
    assert re.findall(r"--(?:kimg|epochs|steps)=\S*", line) == lengths


def test_train_gpu_uses_length_from_the_environment():
    assert "--kimg=10000" not in command("train-gpu", LENGTH="--steps=3")
    assert "--steps=3" in command("train-gpu", LENGTH="--steps=3")


def test_train_leaves_the_length_to_the_recipe():
    assert not re.search(r"--(kimg|epochs|steps)=", command("train"))


@pytest.mark.parametrize("device", ["nvidia0", "dxg", "nvidiactl"])
def test_train_gpu_finds_the_devices_of_linux_and_wsl(tmp_path, device):
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho ran: $@\n")
    python.chmod(0o755)
    (tmp_path / device).touch()
    for mark in (".installed", ".gpu"):
        (tmp_path / mark).touch()
    done = subprocess.run(
        ["make", "train-gpu", f"DEV={tmp_path}", f"VENV={tmp_path}", "LENGTH="],
        cwd=ROOT, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    if device == "nvidiactl":  # a driver without a GPU
        assert "No NVIDIA GPU was found" in done.stderr
        assert "Error 64" in done.stderr
    else:
        assert "ran: -m trainer train --recipe=dcgan" in done.stdout, done.stderr


@pytest.mark.parametrize("target", ["train-gpu", "generate", "evaluate", "export", "doctor"])
def test_targets_put_cuda_libraries_on_the_library_path(target):
    assert "LD_LIBRARY_PATH=" in command(target)


def test_help_describes_every_target():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    targets = re.search(r"^\.PHONY:(.*)$", text, re.M)[1].split()
    done = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, timeout=60)
    described = re.findall(r"^  make (\S+) {2,}\S", done.stdout, re.M)
    assert sorted(described) == sorted(targets)


def test_ci_workflow_only_runs_the_ci_script():
    """Checks the jobs only, because YAML 1.1 reads the key `on` as a boolean."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    assert (ROOT / ".ci/run").is_file()


def test_pre_commit_hooks_are_local_and_run_by_make_lint():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    (repository,) = config["repos"]
    assert repository["repo"] == "local"
    lint = subprocess.run(
        ["make", "--dry-run", "lint", "VENV=.venv"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=60,
    )
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        tool = hook["entry"].split()[0]
        assert re.search(rf"^{re.escape(tool)}\b", lint.stdout, re.M), f"make lint runs {tool}"


@pytest.mark.parametrize("path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")))
def test_issue_forms_request_command_log_and_provenance(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    text = path.read_text()
    assert all(word in text for word in ("command", "provenance.json", "log"))
    ids = [item["id"] for item in form["body"] if item["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_citation_and_changelog_name_the_current_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
