"""A steering from a file: the same as before it was written, scaled, and identified by what is in the file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steerbench.bench.method import methods_of
from steerbench.contract import tiny
from steerbench.errors import SteerbenchError
from steerbench.learn.fitting import fit
from steerbench.models.language_model import LanguageModel


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "v.safetensors"
    save_file({"layer.1": torch.ones(tiny.WIDTH)}, path)
    return path


def test_strength_multiplies_what_the_file_holds(file: Path, llama: LanguageModel) -> None:
    (placed,) = fit(f"saved:file={file}:strength=0.5", llama, tiny.examples()).edits
    constant = placed.edit.constant()
    assert constant is not None
    assert torch.equal(constant, 0.5 * torch.ones(tiny.WIDTH))


def test_another_content_is_another_record(file: Path) -> None:
    (method,) = methods_of(f"saved:file={file}")
    before = method.parts(tuned=False)
    assert before == method.parts(tuned=False)
    save_file({"layer.1": torch.zeros(tiny.WIDTH)}, file)
    assert before != method.parts(tuned=False)


def test_where_the_file_lies_is_no_part_of_its_records(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / file.name
    other.parent.mkdir()
    other.write_bytes(file.read_bytes())
    here, there = (methods_of(f"saved:file={path}")[0].parts(tuned=False) for path in (file, other))
    assert here == there


def test_a_whole_steering_comes_back(llama: LanguageModel, tmp_path: Path) -> None:
    steering = fit("re_control:epochs=1", llama, tiny.examples()[:16], tiny.VowelReward())
    steering.save(tmp_path / "kept")
    assert fit(f"saved:file={tmp_path / 'kept'}", llama, tiny.examples()).digest() == steering.digest()
    with pytest.raises(SteerbenchError, match="Ascent at final has no strength"):
        fit(f"saved:file={tmp_path / 'kept'}:strength=0.5", llama, tiny.examples())


@pytest.mark.parametrize(
    ("spec", "says"), [("saved", "give one with saved:file="), ("saved:file=nowhere", "no file nowhere")]
)
def test_a_file_that_is_not_there_is_named(spec: str, says: str, llama: LanguageModel) -> None:
    with pytest.raises(SteerbenchError, match=says):
        fit(spec, llama, tiny.examples())
