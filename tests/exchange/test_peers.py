"""Files of and for the real libraries: they load there, and give the logits that they give here."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from steerbench.contract import tiny
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.steered import steered
from steerbench.errors import SteerbenchError
from steerbench.exchange.formats import read_steering, write_vectors
from steerbench.models.language_model import LanguageModel
from steerbench.steering.steering import Steering

IDS = torch.tensor([[5, 80, 90, 100, 70, 65]])
LAYER = 1


@pytest.fixture
def steering() -> Steering:
    vector = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(2))
    return Steering(edits=(PlacedEdit(Site("resid_post", LAYER), Add(vector, 1.5), "all"),))


@torch.no_grad()
def logits(lm: LanguageModel, steering: Steering) -> Tensor:
    with steered(lm, steering):
        out: Tensor = lm.model(IDS).logits
    assert not torch.allclose(out, lm.model(IDS).logits, atol=1e-2)
    return out


def repeng() -> Any:
    if not hasattr(np, "float_"):
        np.float_ = np.float64  # type: ignore[attr-defined]  # repeng 0.4 names what numpy 2 dropped
    return pytest.importorskip("repeng", reason="needs repeng and gguf")


@torch.no_grad()
def test_llama_cpp_and_repeng_read_a_control_vector(llama: LanguageModel, steering: Steering, tmp_path: Path) -> None:
    peer, path = repeng(), tmp_path / "v.gguf"
    write_vectors(path, "gguf", steering, llama, {})
    wanted = logits(llama, steering)
    vector = peer.ControlVector.import_gguf(path)
    assert vector.model_type == "llama"
    model = peer.ControlModel(llama.model, [LAYER])
    model.set_control(vector, 1.0)
    torch.testing.assert_close(model(IDS).logits, wanted, rtol=0, atol=1e-4)
    model.unwrap()


@torch.no_grad()
def test_a_vector_of_repeng_is_read_here(llama: LanguageModel, tmp_path: Path) -> None:
    peer, path = repeng(), tmp_path / "v.gguf"
    direction = np.linspace(-2, 2, tiny.WIDTH, dtype=np.float32)
    vector = peer.ControlVector(model_type="llama", directions={LAYER: direction})
    vector.export_gguf(path)
    found = logits(llama, read_steering(path))
    model = peer.ControlModel(llama.model, [LAYER])
    model.set_control(vector, 1.0)
    torch.testing.assert_close(model(IDS).logits, found, rtol=0, atol=1e-4)
    model.unwrap()


@torch.no_grad()
def test_steering_vectors_takes_the_layers(llama: LanguageModel, steering: Steering, tmp_path: Path) -> None:
    peer = pytest.importorskip("steering_vectors", reason="needs steering-vectors")
    write_vectors(tmp_path / "v.pt", "steering-vectors", steering, llama, {})
    wanted = logits(llama, steering)
    theirs = peer.SteeringVector(torch.load(tmp_path / "v.pt"), layer_type="decoder_block")
    with theirs.apply(llama.model):
        torch.testing.assert_close(llama.model(IDS).logits, wanted, rtol=0, atol=1e-4)
    torch.save(theirs.layer_activations, tmp_path / "theirs.pt")
    torch.testing.assert_close(logits(llama, read_steering(tmp_path / "theirs.pt")), wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_lm_evaluation_harness_steers_with_the_file(llama: LanguageModel, steering: Steering, tmp_path: Path) -> None:
    peer = pytest.importorskip("lm_eval.models.hf_steered", reason="needs lm_eval")
    write_vectors(tmp_path / "v.pt", "lm-eval", steering, llama, {})
    llama.model.save_pretrained(tmp_path / "lm")
    llama.tokenizer.save_pretrained(tmp_path / "lm")
    theirs = peer.SteeredModel(
        pretrained=str(tmp_path / "lm"), steer_path=str(tmp_path / "v.pt"), device="cpu", dtype="float32"
    )
    torch.testing.assert_close(theirs._model_call(IDS), logits(llama, steering), rtol=0, atol=1e-4)


def test_a_control_vector_of_the_first_block_is_refused(llama: LanguageModel, tmp_path: Path) -> None:
    first = Steering(edits=(PlacedEdit(Site("resid_post", 0), Add(torch.ones(tiny.WIDTH)), "all"),))
    with pytest.raises(SteerbenchError, match="first block"):
        write_vectors(tmp_path / "v.gguf", "gguf", first, llama, {})


def test_a_language_model_is_no_control_vector(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="needs gguf")
    writer = gguf.GGUFWriter(tmp_path / "lm.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 2), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SteerbenchError, match="of llama, not a control vector"):
        read_steering(tmp_path / "lm.gguf")
    (tmp_path / "torn.gguf").write_bytes((tmp_path / "lm.gguf").read_bytes()[:20])
    with pytest.raises(SteerbenchError, match=r"torn\.gguf is no GGUF file"):
        read_steering(tmp_path / "torn.gguf")
