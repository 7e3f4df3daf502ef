"""Who may import whom, and that the table of exit codes is one."""

import ast
import re
from pathlib import Path

import pytest

from trainer.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trainer"
HEAVY = {"tensorflow", "keras"}


def imports(path: Path) -> set[str]:
    """The modules that a file imports at its top level."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(path: str) -> set[str]:
    return {name for name in imports(PACKAGE / path) if name.startswith("trainer.")}


def test_the_configuration_is_at_the_bottom():
    for path in (PACKAGE / "config").glob("*.py"):
        known = {name.split(".")[1] for name in ours(f"config/{path.name}")}
        assert known <= {"config", "errors"}, path
    assert not ours("errors.py")


@pytest.mark.parametrize(
    "path",
    [
        "config/run_config.py",
        "commands/flags.py",
        "errors.py",
        "run_dir/directory.py",
        "__main__.py",
        "training/loop.py",
        "reporting/console.py",
        "machine/signals.py",
        "machine/imports.py",
        "machine/nvidia.py",
        "metrics/distances.py",
        "metrics/moments.py",
        "metrics/neighbours.py",
        "data/sources.py",
        "data/images.py",
        "data/formats.py",
        "data/user_images.py",
        "data/arrays.py",
        "files/cache.py",
        "data/file_stores.py",
        "data/listing.py",
        "machine/memory.py",
        "data/decoding.py",
        "storage/address.py",
        "storage/bucket.py",
        "storage/dataset_download.py",
        "storage/lease.py",
        "storage/location.py",
    ],
)
def test_these_do_without_tensorflow(path):
    assert not {name.split(".")[0] for name in imports(PACKAGE / path)} & HEAVY


def test_the_library_of_buckets_is_imported_late():
    for path in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & {"google", "google_crc32c"}


def test_the_loop_knows_none_of_the_parts():
    assert not ours("training/loop.py")


@pytest.mark.parametrize("folder", ["models", "data", "recipes"])
def test_the_parts_do_not_know_the_step(folder):
    for path in (PACKAGE / folder).glob("*.py"):
        known = {name.split(".")[1] for name in ours(f"{folder}/{path.name}")}
        assert known <= {
            "config",
            "errors",
            "data",
            "files",
            "machine",
            "models",
            "recipes",
            "randomness",
            "storage",
        }, path


def test_the_metrics_do_not_know_the_run():
    for path in (PACKAGE / "metrics").glob("*.py"):
        known = {name.split(".")[1] for name in ours(f"metrics/{path.name}")}
        assert known <= {"config", "data", "errors", "evaluation", "metrics"}, path


def test_only_the_runtime_knows_the_strategy():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "replicas.py":
            assert "MirroredStrategy" not in path.read_text(encoding="utf-8"), path


def test_only_commands_parse_flags():
    allowed = {PACKAGE / "__main__.py", *(PACKAGE / "commands").glob("*.py")}
    for path in set(PACKAGE.rglob("*.py")) - allowed:
        assert "trainer.commands.flags" not in imports(path), path


def test_functions_fit_a_screen_and_files_have_one_subject():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 75, f"{path}: {node.name}"


def test_readme_has_the_table_of_exit_codes():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert {int(code) for code in rows} == set(ExitCode) - {ExitCode.CRASH}


def test_packages_are_the_five_of_the_card():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = re.search(r"install_requires=\[(.*?)\]", text, re.S)[1]
    names = re.findall(r'"([a-z-]+)[^"]*"', block)
    assert names == ["tensorflow", "numpy", "pillow", "absl-py", "google-cloud-storage"]
