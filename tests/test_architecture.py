"""Who may import whom, and that the table of exit codes is one."""

import ast
import re
from pathlib import Path

import pytest

from trainer.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trainer"
HEAVY = {"tensorflow", "keras"}


def modules() -> dict[str, Path]:
    """All modules of the package by name; a package's own name stands for its __init__."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path, *, late: bool) -> set[str]:
    """The modules that a file imports.

    Args:
      path: the file.
      late: whether imports inside functions and of type checking count, too.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if late else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in full}
    return names


def loaded(name: str) -> set[str]:
    """Everything that importing a module imports in turn, its parent packages included."""
    found, new = set(), {name}
    while new:
        found |= new
        parents = {n.rpartition(".")[0] for n in new if n in MODULES} & set(MODULES)
        direct = {i for n in new if n in MODULES for i in imports(MODULES[n], late=False)}
        new = (parents | direct) - found
    return found


def package_of(name: str) -> str:
    """The folder or top-level module that a module belongs to."""
    return name.split(".")[1] if "." in name else name


def packages() -> dict[str, set[str]]:
    """Which packages each package imports from, in any way."""
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        known = {package_of(other) for other in imports(path, late=True) if other in MODULES}
        edges.setdefault(package_of(name), set()).update(known - {package_of(name)})
    return edges


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """A cycle of a graph, or nothing."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(edges):
        if found := visit(node, []):
            return found
    return []


def test_modules_import_each_other_in_no_cycle():
    edges = {
        name: {other for other in imports(path, late=True) if other in MODULES} - {name}
        for name, path in MODULES.items()
    }
    assert not cycle(edges)


def test_packages_import_each_other_in_no_cycle():
    assert not cycle(packages())


def closure(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Everything that each node of a graph leads to."""
    reached = {node: set(others) for node, others in edges.items()}
    for _ in reached:
        for node, others in reached.items():
            reached[node] = others.union(*(reached.get(other, set()) for other in others))
    return {node: others for node, others in reached.items() if others}


def test_the_diagram_shows_the_imports():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = re.search(r"```mermaid\n(.*?)```", text, re.S)[1]
    names = dict(re.findall(r"(\w+)\[(\w+)\.py\]", block))
    shown: dict[str, set[str]] = {}
    for first, second in re.findall(r"^ +(\w+)\S* --> (\w+)", block, re.M):
        shown.setdefault(names.get(first, first), set()).add(names.get(second, second))
    imported = {name: known - {"trainer"} for name, known in packages().items()}
    del imported["trainer"]
    assert closure(shown) == closure(imported)


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}})


def test_the_top_level_is_read_in_one_glance():
    folders = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(folders) <= 14
    assert len(list(PACKAGE.glob("*.py"))) <= 6


# What a package may import of ours; those not named may import all below train.py.
MAY_IMPORT = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "metrics": set(),
    "models": {"config", "errors", "machine", "randomness"},
    "data": {"config", "errors", "files", "machine", "storage"},
}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_lower_packages_do_not_know_higher_ones(name):
    assert packages()[name] <= MAY_IMPORT[name]


def test_only_the_composition_root_is_above_training():
    importers = {name for name, known in packages().items() if "training" in known}
    assert importers == {"train"}
    assert {name for name, known in packages().items() if "train" in known} == {"commands"}


# What must answer without TensorFlow, in whole packages or single modules.
LIGHT = [
    *(
        name
        for name in MODULES
        if package_of(name) in ("commands", "config", "storage", "files", "metrics", "errors")
    ),
    "trainer.__main__",
    "trainer.reporting.status",
    "trainer.reporting.console",
    "trainer.reporting.heartbeat",
    "trainer.run_dir.directory",
    "trainer.run_dir.checkpoint_files",
    "trainer.recipes",
    *(name for name in MODULES if name.startswith("trainer.data.named")),
    "trainer.data.sources",
    "trainer.training.loop",
]


@pytest.mark.parametrize("name", LIGHT)
def test_these_load_no_tensorflow(name):
    assert not {other.split(".")[0] for other in loaded(name)} & HEAVY


def test_the_library_of_buckets_is_imported_late():
    for path in MODULES.values():
        heads = {name.split(".")[0] for name in imports(path, late=False)}
        assert not heads & {"google", "google_crc32c"}, path


def test_the_loop_knows_none_of_the_parts():
    names = imports(MODULES["trainer.training.loop"], late=True)
    assert not {name for name in names if name.startswith("trainer")}


def test_only_the_replicas_know_the_strategy():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "replicas.py":
            assert "MirroredStrategy" not in path.read_text(encoding="utf-8"), path


def test_tests_import_no_tests():
    pattern = r"^\s*(from|import) (conftest|test_|tests\.(?!helpers))"
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(pattern, path.read_text(encoding="utf-8"), re.M), path


def test_only_commands_parse_flags():
    allowed = {PACKAGE / "__main__.py", *(PACKAGE / "commands").glob("*.py")}
    for path in set(PACKAGE.rglob("*.py")) - allowed:
        assert "trainer.commands.flags" not in imports(path, late=True), path


def test_functions_fit_a_screen_and_files_have_one_subject():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 75, f"{path}: {node.name}"
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [argument.arg for argument in given if argument.arg not in ("self", "cls")]
                assert len(names) <= 6, f"{path}: {node.name}"


def test_readme_has_the_table_of_exit_codes():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert {int(code) for code in rows} == set(ExitCode) - {ExitCode.CRASH}


def test_packages_are_the_five_of_the_card():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = re.search(r"install_requires=\[(.*?)\]", text, re.S)[1]
    names = re.findall(r'"([a-z-]+)[^"]*"', block)
    assert names == ["tensorflow", "numpy", "pillow", "absl-py", "google-cloud-storage"]
