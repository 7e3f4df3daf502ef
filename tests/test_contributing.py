"""CONTRIBUTING.md, followed to the letter in a copy of the package."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)[1]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, without their indentation."""
    fenced = re.findall(r"^ *```(\w*)\n(.*?)^ *```$", text, re.M | re.S)
    return [textwrap.dedent(block) for found, block in fenced if found == language]


@pytest.fixture
def follow(tmp_path):
    """Follows a section: writes its file or its entry, runs its commands, returns their output."""
    shutil.copytree(ROOT / "trainer", tmp_path / "trainer")

    def follow(title: str) -> str:
        text = section(title)
        (code,) = blocks(text, "python")
        if created := re.search(r"Create the file, for example `(.+?)`", text):
            (tmp_path / created[1]).write_text(code)
        else:
            table, path = re.search(r"Add an entry to `(\w+)` in `(.+?)`", text).groups()
            module = (tmp_path / path).read_text()
            entry = textwrap.indent(code, "    ")
            changed = re.sub(rf"(^{table}\b.*?^)(}}$)", rf"\1{entry}\2", module, flags=re.M | re.S)
            assert changed != module
            (tmp_path / path).write_text(changed)
        output = ""
        for command in "".join(blocks(text, "")).splitlines():
            program, *arguments = command.split()
            assert program == ".venv/bin/python"
            done = subprocess.run(
                [sys.executable, *arguments], cwd=tmp_path, text=True, capture_output=True,
                env={**os.environ, "PYTHONPATH": str(tmp_path), "TRAINER_DATA_DIR": ""},
                timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            output += done.stdout
        return output

    return follow


def test_adding_a_recipe(follow, tmp_path):
    assert "Recipe lsgan-mlp on digits" in follow("Adding a recipe")
    run_dir = tmp_path / "runs" / "lsgan-mlp-digits"
    assert (run_dir / "generated.png").exists()
    assert '"hyperparameters": "units=32"' in (run_dir / "config.json").read_text()


def test_adding_a_loss(follow, tmp_path):
    follow("Adding a loss")
    assert '"loss": "exponential"' in (tmp_path / "runs/mlp-digits/config.json").read_text()


def test_adding_a_metric(follow, tmp_path):
    assert "best mean_distance so far" in follow("Adding a metric")


def test_adding_a_command(follow):
    assert follow("Adding a command").endswith("2 steps\n")
