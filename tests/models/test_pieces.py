"""How much goes into one pass, told from a configuration."""

from types import SimpleNamespace

import architectures
import pytest
import torch

from steerbench import Decoding, generate
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


def test_layers_that_differ_count_by_the_largest() -> None:
    """Heads of Gemma 4 are 8 and 16 wide by turns; Gemma 3n has a list of widths."""
    lm = architectures.language_model("gemma4_text")
    out = lm.model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True)
    sizes = [layer.keys[:, :, 0].numel() * 4 for layer in out.past_key_values.layers]
    assert cache_size(lm.model) == max(sizes) > min(sizes)
    config = SimpleNamespace(intermediate_size=[64, 96], hidden_size=32)
    config.get_text_config = lambda decoder: config
    assert inner_size(SimpleNamespace(config=config, dtype=torch.float32)) == 96 * 4


def test_a_model_whose_layers_differ_writes_the_same_alone() -> None:
    lm, prompts = architectures.language_model("gemma4_text"), ["How?", "Where is the moon?", "Hi"]
    together = generate(lm, prompts, decoding=Decoding(max_new_tokens=6), batch_size=2)
    assert together == [generate(lm, each, decoding=Decoding(max_new_tokens=6))[0] for each in prompts]


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
