"""How much goes into one pass, told from a configuration."""

from types import SimpleNamespace

import pytest
import torch

from steerbench.contract import tiny
from steerbench.models.pieces import automatic, cache_size, in_one_piece, inner_size, logits_size


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_sizes_are_those_of_the_tensors(family: str) -> None:
    """Of a real pass: the keys of a layer, and the logits; what is inside is no larger than the widest linear map."""
    model = tiny.language_model(family).model
    out = model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True)
    keys = out.past_key_values.layers[0].keys
    one = keys[:, :, 0].numel() * 4
    assert cache_size(model) == (tiny.HEADS * one if family == "falcon" else one)  # it does not say that heads share
    assert logits_size(model) == out.logits[:, 0].numel() * 4
    assert tiny.WIDTH * 4 <= inner_size(model) <= logits_size(model)


def test_a_cpu_takes_pieces_and_a_gpu_what_it_is_given() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert in_one_piece(256, 2**18, cpu) == 32
    assert in_one_piece(16, 2**18, cpu) == 16
    assert in_one_piece(256, 2**30, cpu) == 1
    assert in_one_piece(256, 0, cpu) == 256
    assert in_one_piece(256, 2**30, gpu) == 256


def test_auto_goes_by_the_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.language_model().model
    assert automatic(model, 100) == 32
    there = SimpleNamespace(config=model.config, dtype=torch.float16, device="cuda")
    there.get_input_embeddings = model.get_input_embeddings
    of_row = 100 * (2 * tiny.LAYERS * 32 + 3 * 259 * 2)  # two of four heads, 8 wide; 259 tokens
    for rows, expected in ((3, 8), (9, 8), (16, 16), (33, 32), (100, 64), (10**6, 256)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, n=rows: (2 * n * of_row, 0))
        assert automatic(there, 100) == expected
