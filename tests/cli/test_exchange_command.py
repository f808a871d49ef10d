"""Vectors leave and come back through the command line, and each mistake is answered."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from safetensors import safe_open

Cli = Callable[..., Result]


@pytest.fixture
def export(cli: Cli, world: Path, tmp_path: Path) -> Cli:
    model = ["--model", world / "lm", "--data", world / "hh_rlhf.jsonl", "--n-train", 6]
    return lambda method, name, *args: cli("export", method, tmp_path / name, *model, *args)


def test_a_vector_leaves_and_comes_back(export: Cli, cli: Cli, tmp_path: Path) -> None:
    done = export("caa:layer=1:scope=all", "v.safetensors", "--format", "safetensors")
    assert done.exit_code == 0, done.output
    with safe_open(tmp_path / "v.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
        assert list(file.keys()) == ["layer.1"]
    assert recipe["method"][0]["name"] == "caa"
    assert recipe["model"].startswith("sha256:")
    back = cli("import", tmp_path / "v.safetensors", tmp_path / "back")
    assert back.exit_code == 0, back.output
    assert f"saved:file={tmp_path / 'back'}" in back.output.replace("\n", "")
    assert (tmp_path / "back" / "steering.json").exists()


def test_any_steering_leaves_as_a_folder_with_its_recipe(export: Cli, tmp_path: Path) -> None:
    assert export("static_prompt", "kept").exit_code == 0
    assert json.loads((tmp_path / "kept" / "recipe.json").read_text())["method"][0]["name"] == "static_prompt"


@pytest.mark.parametrize(
    ("method", "args", "says"),
    [
        ("caa", ("--format", "safetensors"), "fit it with scope=all"),
        ("caa", ("--format", "guff"), "gguf"),
        ("caa,repe", (), "export one at a time"),
        ("re_control", (), "needs a reward|learns from a reward"),
        ("static_prompt", ("--format", "folded"), "only edits"),
    ],
)
def test_a_mistake_is_answered_and_writes_nothing(
    export: Cli, tmp_path: Path, method: str, args: tuple[str, ...], says: str
) -> None:
    done = export(method, "v", *args)
    assert done.exit_code == 2
    assert any(word in " ".join(done.stderr.split()) for word in says.split("|")), done.stderr
    assert not (tmp_path / "v").exists()


def test_nothing_is_written_over(export: Cli, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "v").write_text("mine")
    done = export("caa", "v")
    assert done.exit_code == 2
    assert "exists already" in " ".join(done.stderr.split())
    assert cli("import", tmp_path / "nowhere.pt", tmp_path / "x").exit_code == 2
