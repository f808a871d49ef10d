"""Loading, tokens and batches: what a model folder can get wrong, and what must not depend on it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, BertConfig, BertLMHeadModel, GenerationConfig, PreTrainedTokenizerFast

from steerbench import Decoding, LanguageModel, SteerbenchError, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.learn import Tokens
from steerbench.models.pieces import by_length

FEW = Decoding(max_new_tokens=6)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a tiny model as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    lm = tiny.language_model()
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_loaded_model_is_the_one_saved(saved: Path, llama: LanguageModel) -> None:
    lm = LanguageModel.load(str(saved))
    assert (lm.name, lm.revision[:7], lm.dtype, lm.n_layers) == ("tiny-llama", "sha256:", torch.float32, tiny.LAYERS)
    prompts = [user("Hi"), user("How are you?")]
    assert generate(lm, prompts, decoding=FEW) == generate(llama, prompts, decoding=FEW)


def test_a_loaded_model_is_frozen_and_evaluated(saved: Path) -> None:
    lm = LanguageModel.load(str(saved))
    assert not any(m.training for m in lm.model.modules())
    assert not any(p.requires_grad for p in lm.model.parameters())


def test_dtype_on_a_cpu_is_float32_unless_given(folder: Path) -> None:
    lm = tiny.language_model()
    lm.model.to(torch.bfloat16).save_pretrained(folder)
    assert LanguageModel.load(str(folder)).dtype == torch.float32
    assert LanguageModel.load(str(folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_a_template_in_the_folder_is_found(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}|")
    assert LanguageModel.load(str(folder)).format.text(user("Hi")) == "Hi|"


def test_generation_settings_in_the_configuration_do_not_leak(folder: Path, llama: LanguageModel) -> None:
    """Checkpoints of transformers 4 keep them in either file."""
    edit(folder / "config.json", repetition_penalty=5.0, min_length=30, no_repeat_ngram_size=1)
    edit(folder / "generation_config.json", temperature=0.1, do_sample=True, max_length=7, suppress_tokens=[5, 6])
    lm = LanguageModel.load(str(folder))
    prompts = [user("Hi"), user("aaaa")]
    assert generate(lm, prompts, decoding=FEW) == generate(llama, prompts, decoding=FEW)


def lost_weights(folder: Path) -> None:
    AutoModel.from_pretrained(folder).save_pretrained(folder)


SPOILED: dict[str, tuple[Any, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "unknown architecture": (lambda f: edit(f / "config.json", model_type="nope"), "nope"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "half the weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:5000]),
        "cannot be loaded",
    ),
    "other shape": (lambda f: edit(f / "config.json", hidden_size=64), "cannot be loaded"),
    "no head": (lost_weights, "lacks lm_head.weight"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("token*")], "tokenizer"),
    "another task": (lambda f: edit(f / "config.json", model_type="bert", architectures=["BertModel"]), "tiny-llama"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_a_users_mistake(folder: Path, name: str) -> None:
    spoil, message = SPOILED[name]
    spoil(folder)
    with pytest.raises(SteerbenchError, match=message):
        LanguageModel.load(str(folder))


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(SteerbenchError, match="/no/such/model"):
        LanguageModel.load("/no/such/model")


def test_a_reward_model_is_no_language_model(assets: Path) -> None:
    with pytest.raises(SteerbenchError, match="no causal language model"):
        LanguageModel.load(str(assets / "models" / "minilm-hh-reward"))


def test_end_ids_come_from_checkpoint_tokenizer_and_template() -> None:
    lm = tiny.language_model()
    for declared, expected in ((None, [2]), (7, [2, 7]), ([9, 2, 7], [2, 7, 9])):
        lm.model.generation_config = GenerationConfig(eos_token_id=declared)
        assert LanguageModel(lm.model, tiny.tokenizer()).end_ids == expected


def test_pad_id() -> None:
    lm = tiny.language_model()
    made = tiny.tokenizer()
    assert LanguageModel(lm.model, made).pad_id == 0
    made.pad_token = None
    assert LanguageModel(lm.model, made).pad_id == 2
    made.eos_token = None
    lm.model.generation_config = GenerationConfig()
    assert LanguageModel(lm.model, made).pad_id == 0


def test_batches(llama: LanguageModel) -> None:
    left = llama.left_padded([Tokens((5, 6, 7)), Tokens((8,))])
    assert left.input_ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert left.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert left.prompt_ends == [3, 3]
    right = llama.right_padded([Tokens((5,), (6, 7)), Tokens((8, 9))])
    assert right.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert right.attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert right.prompt_ends == [1, 2]


def test_a_real_pad_token_in_the_text_is_not_masked(llama: LanguageModel) -> None:
    assert llama.left_padded([Tokens((0, 5, 0))]).attention_mask.tolist() == [[1, 1, 1]]


def test_by_length_covers_every_index_longest_first() -> None:
    lengths, cpu = [3, 10, 6, 2, 8], torch.device("cpu")
    batches = list(by_length(lengths, 2, 0, cpu))
    assert [len(b) for b in batches] == [2, 2, 1]
    flat = [i for b in batches for i in b]
    assert sorted(flat) == list(range(5))
    assert flat == [1, 4, 2, 0, 3]
    assert list(by_length([], 2, 0, cpu)) == []


def test_a_cpu_gets_pieces_that_it_does_not_choke_on() -> None:
    """As many rows as keep the largest tensor below 8 MiB, but one at least; a GPU gets what is asked for."""
    lengths, size = [100, 90, 50, 50, 50, 300], 2**15  # 32 KiB per token: 256 tokens at once
    assert list(by_length(lengths, 4, size, torch.device("cpu"))) == [[5], [0, 1], [2, 3, 4]]
    assert list(by_length(lengths, 4, size, torch.device("cuda"))) == [[5, 0, 1, 2], [3, 4]]
    assert list(by_length(lengths, 2, size, torch.device("cpu"))) == [[5], [0, 1], [2, 3], [4]]


def test_replies_are_limited_in_tokens(llama: LanguageModel) -> None:
    whole = llama.tokens(user("Hi"), "Hello there")
    for limit in (0, 1, 5, 10**6):
        assert llama.tokens(user("Hi"), "Hello there", limit) == Tokens(whole.prompt, whole.response[:limit])
    assert llama.tokens(user("Hi"), "Hello there", None) == whole


def test_a_tokenizer_that_closes_with_eos(llama: LanguageModel) -> None:
    """A prompt that ends in EOS would make every model begin a new document."""
    made = tiny.tokenizer()
    backend = made.backend_tokenizer
    backend.post_processor = TemplateProcessing("<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)])
    lm = LanguageModel(llama.model, made)
    prompt, reply = lm.tokens(user("Hi"), "Yes")
    assert (prompt[0], prompt[1:]) == (1, llama.tokens(user("Hi")).prompt)
    assert reply == llama.tokens(user("Hi"), "Yes").response
    assert 2 not in prompt + reply


def test_a_reply_that_fuses_with_the_prompt_is_split_cleanly(assets: Path) -> None:
    """Where the tokenizer merges across the seam, the prompt's tokens stay those of generation."""
    for name in ("tinytalk-3m-chat", "stories260K-llama", "tinystories-656k"):
        lm = LanguageModel.load(str(assets / "models" / name))
        for reply in ("Yes.", ": no", "s", "\n\nx", "'s"):
            prompt, response = lm.tokens(user("Is it?"), reply)
            assert prompt == lm.tokens(user("Is it?")).prompt
            text = lm.tokenizer.decode(list(prompt + response), skip_special_tokens=True)
            assert text.endswith(reply.lstrip()), name


def test_context_length(family: str, assets: Path) -> None:
    assert tiny.language_model(family).context_length == tiny.CONTEXT
    if family == "llama":
        assert LanguageModel.load(str(assets / "models" / "stories260K-llama")).context_length == 512


def test_a_model_whose_tokens_see_what_follows_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=259, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    model = BertLMHeadModel(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.5)
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(SteerbenchError, match="no causal language model: its tokens see what follows"):
        LanguageModel.load(str(tmp_path))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    tiny.language_model("llama").model.save_pretrained(tmp_path)
    backend = tiny.tokenizer().backend_tokenizer
    state = json.loads(backend.to_str())
    state["model"]["vocab"]["another"] = 259
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SteerbenchError, match="ids up to 259 and the model 259 embeddings"):
        LanguageModel.load(str(tmp_path))


def test_added_tokens_without_an_embedding_matter_only_in_a_text(tmp_path: Path) -> None:
    """As in Gemma 3, whose tokenizer has a token for images; here the pad token is one, too."""
    tiny.language_model("gpt2").model.save_pretrained(tmp_path)
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "pad_token": "<filler>"})
    tokenizer.save_pretrained(tmp_path)
    lm = LanguageModel.load(str(tmp_path))
    prompts = [user("Hi"), user("How do I bake bread?")]
    assert generate(lm, prompts, decoding=FEW) == [generate(lm, [p], decoding=FEW)[0] for p in prompts]
    with pytest.raises(SteerbenchError, match=r"a text holds '<image>', token 260, and model .* has 259 embeddings"):
        generate(lm, [user("What is in <image>?")], decoding=FEW)
