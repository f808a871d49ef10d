"""What is installed, and what imports what. No network."""

import ast
import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"steerbench": "steerbench", "methods": "steerbench/methods", "tasks": "steerbench/tasks"}
HEAVY = {"torch", "transformers", "datasets", "evaluate", "sklearn", "scipy", "pandas", "numpy"}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "--isolated"]
OFFLINE = ["--no-deps", "--no-index", "--no-build-isolation"]


def python(code: str, folder: Path) -> Any:
    """Run code in a new interpreter outside the repository, and return what it prints as JSON."""
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def imports(path: Path) -> Iterator[str]:
    """Yield the absolute name of every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; write the whole name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names(requirements: list[str]) -> set[str]:
    """Return the normalised names of requirements."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[<>=!~\[; ]", line)[0]).lower() for line in requirements}


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names in a wheel built from a copy of the tree, so that nothing is left in the tree."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    subprocess.run([*PIP, "wheel", *OFFLINE, "--wheel-dir", out, tree], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path).namelist()


def test_the_wheel_holds_every_file_of_the_package(wheel: list[str]) -> None:
    for folder, place in FOLDERS.items():
        files = [p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob("*") if p.is_file()]
        wanted = {f"{place}/{file}" for file in files if "__pycache__" not in file}
        assert wanted <= set(wheel), "add a package or package-data to [tool.setuptools] in pyproject.toml"


def test_the_wheel_puts_nothing_else_at_the_top(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel if ".dist-info/" not in name} == {"steerbench"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


@pytest.mark.parametrize("kind", ["methods", "tasks"])
def test_a_plugin_is_one_module(kind: str) -> None:
    packages = [str(path.parent) for path in (ROOT / kind).glob("*/__init__.py")]
    assert not packages, "make it one module: an editable installation would find this package, and the wheel lack it"
    assert (ROOT / kind / "__init__.py").is_file(), "an editable installation finds no module without it"


# The dependency arrow


@pytest.mark.parametrize("path", sorted((ROOT / "steerbench").rglob("*.py")), ids=lambda path: path.stem)
def test_the_engine_imports_no_method_and_no_task(path: Path) -> None:
    plugin = re.compile(r"(steerbench\.)?(methods|tasks)(\.|$)")
    assert [name for name in imports(path) if plugin.match(name)] == []
    if path.stem != "registry":
        assert not re.search(r"steerbench\.(methods|tasks)\.\w", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", ["methods", "tasks"])
def test_a_plugin_uses_what_third_parties_can(kind: str) -> None:
    """Built-ins import what `steerbench` exports and modules of it by name, never one another."""
    for path in (ROOT / kind).glob("*.py"):
        assert [n for n in imports(path) if re.match(r"(steerbench\.)?(methods|tasks)(\.|$)", n)] == [], path


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    declared = names(project["dependencies"]) | names(extras)
    homes = {module: names(found) for module, found in packages_distributions().items()}
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        tops = {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names - {"steerbench"}
        if path.name == "parametrization.py":  # for those who run pytest
            tops -= {"pytest"}
        missing = {top for top in tops if not declared & homes.get(top, {top})}
        assert not missing, f"{path} imports {missing}: add it to dependencies in pyproject.toml"


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    # vLLM is in an environment of its own, whose version the Makefile names; a tracker is the user's, as it is there
    elsewhere = {"vllm", "trackio", "wandb", "mlflow-skinny"}
    assert names([*project["dependencies"], *extras]) - {"steerbench"} - elsewhere <= names(pins)
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+==\d[\d.]*(\.post\d+)?", pin)] == [], (
        "one plain version each"
    )


# Nothing heavy before it is needed


@pytest.mark.parametrize(
    "code",
    [
        "import steerbench",
        "from steerbench.plugins import registry; [registry.sources(kind) for kind in registry.KINDS]",
        "from steerbench.plugins import spec; spec.parse('caa:strength=2,a+b')",
    ],
)
def test_listing_and_parsing_import_nothing_heavy(code: str, tmp_path: Path) -> None:
    loaded = python(f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))", tmp_path)
    assert HEAVY & set(loaded) == set()
    plugins = ("steerbench.methods.", "steerbench.tasks.")
    assert [name for name in loaded if name.startswith(plugins)] == []
