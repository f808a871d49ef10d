"""What can be written as vectors by layer, and what is refused by name."""

from pathlib import Path

import pytest
import torch

from steerbench.contract import tiny
from steerbench.edits import Ablate, Add, PlacedEdit, Site
from steerbench.errors import SteerbenchError
from steerbench.exchange.formats import FORMATS, read_steering, write_vectors
from steerbench.exchange.layer_vectors import layer_vectors
from steerbench.models.language_model import LanguageModel
from steerbench.steering.steering import Steering

VECTOR = torch.linspace(-1, 1, tiny.WIDTH)


def added(site: str = "resid_post.1", scope: str = "all", strength: float = 2.0) -> PlacedEdit:
    return PlacedEdit(Site.parse(site), Add(VECTOR, strength), scope)  # type: ignore[arg-type]


def test_vectors_of_one_block_add_up() -> None:
    found = layer_vectors(Steering(edits=(added(), added(strength=0.5), added("resid_post.0"))))
    assert list(found) == [0, 1]
    assert torch.equal(found[1], 2.5 * VECTOR)
    assert torch.equal(found[0], 2 * VECTOR)


@pytest.mark.parametrize(
    ("steering", "says"),
    [
        (Steering(), "not made of them"),
        (Steering(edits=(added("z.1"),)), "does not act on the output of a block"),
        (Steering(edits=(added(scope="response"),)), "fit it with scope=all"),
        (Steering(edits=(PlacedEdit(Site("resid_post", 1), Ablate(VECTOR), "all"),)), "no constant vector"),
    ],
)
def test_what_other_libraries_would_leave_out_is_refused(steering: Steering, says: str) -> None:
    with pytest.raises(SteerbenchError, match=says):
        layer_vectors(steering)


@pytest.mark.parametrize(
    ("form", "name"), [("safetensors", "v.safetensors"), ("steering-vectors", "v.pt"), ("lm-eval", "v.pth")]
)
def test_each_format_reads_back(form: str, name: str, llama: LanguageModel, tmp_path: Path) -> None:
    assert form in FORMATS
    path = tmp_path / name
    write_vectors(path, form, Steering(edits=(added(),)), llama, {"seed": 0})
    (placed,) = read_steering(path).edits
    assert (str(placed.site), placed.scope) == ("resid_post.1", "all")
    constant = placed.edit.constant()
    assert constant is not None
    assert torch.equal(constant, 2 * VECTOR)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"embed": VECTOR}, "names no block"),
        ({1: torch.zeros(2, 3)}, "no vector of numbers"),
        ({1: VECTOR, 2: VECTOR[:-1]}, "not of one length"),
        ({}, "no vector in it"),
        ([VECTOR], "not vectors by layer"),
        ({"layers.1": {"action": "clamp", "steering_vector": VECTOR}}, "added to whole activations"),
        ({1: Path("x")}, "more than tensors"),
    ],
)
def test_a_file_of_something_else_is_refused(content: object, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "v.pt")
    with pytest.raises(SteerbenchError, match=says):
        read_steering(tmp_path / "v.pt")


@pytest.mark.parametrize("name", ["missing.pt", "v.txt", "damaged.safetensors", "damaged.pt"])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"no tensors")
    with pytest.raises(SteerbenchError, match=name):
        read_steering(tmp_path / name)
