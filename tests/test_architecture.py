"""Import rules of the package, size limits, and the exit codes and requirements it documents."""

import ast
import re
from pathlib import Path

import pytest

from trainer.errors import ExitCode

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "trainer"
HEAVY = {"tensorflow", "keras"}


def modules() -> dict[str, Path]:
    """Returns the paths of all modules by name; the name of a package stands for its __init__."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path, *, nested: bool) -> set[str]:
    """Returns the names of the modules that a file imports.

    Args:
      path: the file.
      nested: whether to include imports inside functions and under TYPE_CHECKING.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in MODULES else node.module for name in full}
    return names


def transitive_imports(name: str) -> set[str]:
    """Returns all modules that importing a module loads, including its parent packages."""
    found, new = set(), {name}
    while new:
        found |= new
        parents = {n.rpartition(".")[0] for n in new if n in MODULES} & set(MODULES)
        direct = {i for n in new if n in MODULES for i in imports(MODULES[n], nested=False)}
        new = (parents | direct) - found
    return found


def package_of(name: str) -> str:
    """Returns the folder or top-level module that a module belongs to."""
    return name.split(".")[1] if "." in name else name


def packages() -> dict[str, set[str]]:
    """Returns, by package, the packages that it imports from anywhere in its code."""
    edges: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        known = {package_of(other) for other in imports(path, nested=True) if other in MODULES}
        edges.setdefault(package_of(name), set()).update(known - {package_of(name)})
    return edges


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """Returns the nodes of a cycle of a graph, or an empty list if it has none."""
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


def test_module_imports_have_no_cycle():
    edges = {
        name: {other for other in imports(path, nested=True) if other in MODULES} - {name}
        for name, path in MODULES.items()
    }
    assert not find_cycle(edges)


def test_package_imports_have_no_cycle():
    assert not find_cycle(packages())


def closure(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Returns, by node, all nodes of a graph that can be reached from it."""
    reached = {node: set(others) for node, others in edges.items()}
    for _ in reached:
        for node, others in reached.items():
            reached[node] = others.union(*(reached.get(other, set()) for other in others))
    return {node: others for node, others in reached.items() if others}


def test_architecture_diagram_matches_the_imports():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    block = re.search(r"```mermaid\n(.*?)```", text, re.S)[1]
    names = dict(re.findall(r"(\w+)\[(\w+)\.py\]", block))
    shown: dict[str, set[str]] = {}
    for first, second in re.findall(r"^ +(\w+)\S* --> (\w+)", block, re.M):
        shown.setdefault(names.get(first, first), set()).add(names.get(second, second))
    imported = {name: known - {"trainer"} for name, known in packages().items()}
    del imported["trainer"]
    assert closure(shown) == closure(imported)


def test_find_cycle_detects_a_cycle():
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert not find_cycle({"a": {"b", "c"}, "b": {"c"}})


def test_package_has_few_top_level_modules_and_folders():
    folders = [path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()]
    assert len(folders) <= 14
    assert len(list(PACKAGE.glob("*.py"))) <= 6


# The packages of this project that a package may import. Packages that are not listed may import
# every package below api.py.
ALLOWED_IMPORTS = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "metrics": set(),
    "models": {"config", "errors", "machine"},
    "data": {"config", "errors", "files", "machine", "storage"},
}


@pytest.mark.parametrize("name", ALLOWED_IMPORTS)
def test_lower_packages_do_not_import_higher_ones(name):
    assert packages()[name] <= ALLOWED_IMPORTS[name]


def test_only_assembly_imports_training_and_only_commands_import_the_api():
    importers = {name for name, known in packages().items() if "training" in known}
    assert importers == {"assembly"}
    assert {name for name, known in packages().items() if "assembly" in known} == {"api"}
    assert {name for name, known in packages().items() if "api" in known} == {"commands"}


# Packages and modules that must not load TensorFlow.
LIGHT = [
    *(
        name
        for name in MODULES
        if package_of(name) in ("commands", "config", "storage", "files", "metrics", "errors")
    ),
    "trainer.__main__",
    "trainer.api",
    "trainer.reporting.status",
    "trainer.reporting.console",
    "trainer.reporting.heartbeat",
    "trainer.run_dir.directory",
    "trainer.run_dir.checkpoint_files",
    "trainer.recipes",
    *(name for name in MODULES if name.startswith("trainer.data.named")),
    "trainer.data.sources",
    "trainer.data.inspection",
    "trainer.training.loop",
]


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_do_not_load_tensorflow(name):
    assert not {other.split(".")[0] for other in transitive_imports(name)} & HEAVY


def test_google_cloud_libraries_are_imported_lazily():
    for path in MODULES.values():
        heads = {name.split(".")[0] for name in imports(path, nested=False)}
        assert not heads & {"google", "google_crc32c"}, path


def test_training_loop_imports_no_other_module_of_the_package():
    names = imports(MODULES["trainer.training.loop"], nested=True)
    assert not {name for name in names if name.startswith("trainer")}


def test_only_replicas_module_uses_mirrored_strategy():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "replicas.py":
            assert "MirroredStrategy" not in path.read_text(encoding="utf-8"), path


def test_tests_do_not_import_other_tests():
    pattern = r"^\s*(from|import) (conftest|test_|tests\.(?!helpers))"
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(pattern, path.read_text(encoding="utf-8"), re.M), path


def test_only_commands_import_flags():
    allowed = {PACKAGE / "__main__.py", *(PACKAGE / "commands").glob("*.py")}
    for path in set(PACKAGE.rglob("*.py")) - allowed:
        assert "trainer.commands.flags" not in imports(path, nested=True), path


def test_functions_and_files_do_not_exceed_their_size_limits():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 350, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 75, f"{path}: {node.name}"
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                names = [
                    argument.arg for argument in arguments if argument.arg not in ("self", "cls")
                ]
                assert len(names) <= 6, f"{path}: {node.name}"


def test_readme_lists_all_exit_codes():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    assert {int(code) for code in rows} == set(ExitCode) - {ExitCode.CRASH}


def test_install_requires_exactly_the_five_allowed_packages():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    block = re.search(r"install_requires=\[(.*?)\]", text, re.S)[1]
    names = re.findall(r'"([a-z-]+)[^"]*"', block)
    assert names == ["tensorflow", "numpy", "pillow", "absl-py", "google-cloud-storage"]
