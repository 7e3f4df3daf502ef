"""The Makefile's commands, as printed by `make --dry-run`, and the files that depend on them."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from trainer import __version__

ROOT = Path(__file__).resolve().parents[1]


def command(target: str, *given: str, **environment: str) -> str:
    """Returns the line that starts the trainer."""
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
def test_how_long_a_gpu_trains(given, lengths):
    line = command("train-gpu", *given)
    assert re.findall(r"--(?:kimg|epochs|steps)=\S*", line) == lengths


def test_a_length_of_the_environment_counts():
    assert "--kimg=10000" not in command("train-gpu", LENGTH="--steps=3")
    assert "--steps=3" in command("train-gpu", LENGTH="--steps=3")


def test_a_cpu_trains_as_long_as_the_recipe_says():
    assert not re.search(r"--(kimg|epochs|steps)=", command("train"))


@pytest.mark.parametrize("target", ["train-gpu", "generate", "evaluate", "export", "doctor"])
def test_cuda_libraries_are_found(target):
    assert "LD_LIBRARY_PATH=" in command(target)


def test_help_describes_every_target():
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    targets = re.search(r"^\.PHONY:(.*)$", text, re.M)[1].split()
    done = subprocess.run(["make", "help"], cwd=ROOT, text=True, capture_output=True, timeout=60)
    described = re.findall(r"^  make (\S+) {2,}\S", done.stdout, re.M)
    assert sorted(described) == sorted(targets)


def test_ci_runs_the_script():
    """`on` is read as a boolean by YAML 1.1, so only the jobs are looked at."""
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    assert workflow["permissions"] == {"contents": "read"}
    assert (ROOT / ".ci/run").is_file()


def test_hooks_need_no_download():
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
def test_issue_forms_ask_for_what_is_needed(path):
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    text = path.read_text()
    assert all(word in text for word in ("command", "provenance.json", "log"))
    ids = [item["id"] for item in form["body"] if item["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
