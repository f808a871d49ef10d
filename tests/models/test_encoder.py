"""Sentence encoders against a naive oracle: one unpadded text at a time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from steerbench.contract import tiny
from steerbench.errors import SteerbenchError
from steerbench.models.encoder import SentenceEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
TEXTS = ["a", "a b c d", "", "h g f e d c b a", "c c"]


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")


def bert(folder: Path, cls: Callable[[BertConfig], Any] = BertModel) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=200, initializer_range=0.5)
    cls(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def declare(folder: Path, *modes: str, max_length: int | None = None, dense: bool = False) -> None:
    """Write the files of sentence-transformers."""
    (folder / "1_Pooling").mkdir()
    flags = {f"pooling_mode_{mode}": mode in modes for mode in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **flags}))
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), "Normalize"]
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{k}"} for k in kinds]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))


def declare_by_name(folder: Path, mode: str | list[str], *, max_length: int = 200) -> None:
    """Write the files of sentence-transformers 5.4 and later: a length of the tokenizer's, and modes by name."""
    declare(folder)
    pooling = {"embedding_dimension": 16, "pooling_mode": mode, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    task = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
    (folder / "sentence_bert_config.json").write_text(json.dumps(task))
    made = tokenizer()
    made.model_max_length = max_length
    made.save_pretrained(folder)


def mean_pooling(folder: Path) -> str:
    declare(bert(folder), "mean_tokens")
    return "mean"


def cls_pooling(folder: Path) -> str:
    declare(bert(folder), "cls_token")
    return "cls"


def named_mean_pooling(folder: Path) -> str:
    declare_by_name(bert(folder), "mean")
    return "mean"


def listed_cls_pooling(folder: Path) -> str:
    declare_by_name(bert(folder), ["cls"])
    return "cls"


def simcse(folder: Path) -> str:
    bert(folder)
    return "pooler"


def no_trained_pooler(folder: Path) -> str:
    bert(folder, BertForMaskedLM)
    return "mean"


@torch.no_grad()
def oracle(folder: Path, kind: str, ids: list[int]) -> torch.Tensor:
    output = AutoModel.from_pretrained(folder).eval()(torch.tensor([ids]))
    hidden = output.last_hidden_state[0]
    vector = {"mean": hidden.mean(0), "cls": hidden[0], "pooler": output.pooler_output[0]}[kind]
    unit: torch.Tensor = vector / vector.norm()
    return unit


BUILDS = [mean_pooling, cls_pooling, named_mean_pooling, listed_cls_pooling, simcse, no_trained_pooler]


@pytest.mark.parametrize("build", BUILDS)
def test_a_batch_equals_the_oracle_one_by_one(build: Callable[[Path], str], tmp_path: Path) -> None:
    kind = build(tmp_path)
    fast = AutoTokenizer.from_pretrained(tmp_path)
    expected = torch.stack([oracle(tmp_path, kind, fast(text)["input_ids"]) for text in TEXTS])
    for batch_size in (1, 2, 16):
        vectors = SentenceEncoder.load(str(tmp_path), batch_size=batch_size).encode(TEXTS)
        assert (vectors.dtype, vectors.shape) == (torch.float32, (5, 16))
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-5)
    assert (expected @ expected.T).min() < 0.9  # the oracle tells texts apart


@pytest.mark.parametrize(("declared", "length"), [(None, 200), (20, 20), (4000, 200)])
def test_a_long_text_is_cut_on_the_side_asked_for(declared: int | None, length: int, tmp_path: Path) -> None:
    declare(bert(tmp_path), "mean_tokens", max_length=declared)
    encoder = SentenceEncoder.load(str(tmp_path))
    assert encoder.max_length == length
    body = [4 + i % 8 for i in range(300)]
    text = " ".join(WORDS[i] for i in body)
    room = length - 2
    left = oracle(tmp_path, "mean", [2, *body[-room:], 3])
    right = oracle(tmp_path, "mean", [2, *body[:room], 3])
    torch.testing.assert_close(encoder.encode(["a", text], truncate="left")[1], left, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoder.encode([text, "a"])[0], right, rtol=0, atol=1e-5)
    assert encoder.truncated == 2
    assert not torch.allclose(left, right, atol=1e-3)


def test_a_folder_that_leaves_the_length_to_the_tokenizer(tmp_path: Path) -> None:
    declare_by_name(bert(tmp_path), "mean", max_length=150)
    assert SentenceEncoder.load(str(tmp_path)).max_length == 150


def test_a_simcse_checkpoint_reads_128_tokens(tmp_path: Path) -> None:
    simcse(tmp_path)
    assert SentenceEncoder.load(str(tmp_path)).max_length == 128


def test_name_revision_and_no_texts(tmp_path: Path) -> None:
    mean_pooling(tmp_path / "x")
    encoder = SentenceEncoder.load(str(tmp_path / "x"))
    assert encoder.name == "x"
    assert encoder.revision.startswith("sha256:")
    assert encoder.encode([]).shape == (0, 16)
    (tmp_path / "x" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert SentenceEncoder.load(str(tmp_path / "x")).revision != encoder.revision


def max_pooling(folder: Path) -> None:
    declare(bert(folder), "max_tokens")


def two_poolings(folder: Path) -> None:
    declare(bert(folder), "mean_tokens", "cls_token")


def named_max_pooling(folder: Path) -> None:
    declare_by_name(bert(folder), "max")


def two_named_poolings(folder: Path) -> None:
    declare_by_name(bert(folder), ["mean", "cls"])


def a_dense_module(folder: Path) -> None:
    declare(bert(folder), "mean_tokens", dense=True)


def a_hole(folder: Path) -> None:
    weights = load_file(bert(folder) / "model.safetensors")
    del weights["encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors")


def no_tokenizer(folder: Path) -> None:
    for file in bert(folder).glob("tokenizer*"):
        file.unlink()


REFUSED: dict[Callable[[Path], None], str] = {
    max_pooling: r"encoder 'x' pools by \['pooling_mode_max_tokens'\]",
    two_poolings: "pools by .*cls_token.*mean_tokens",
    named_max_pooling: r"encoder 'x' pools by \['max'\]",
    two_named_poolings: r"encoder 'x' pools by \['cls', 'mean'\]",
    a_dense_module: r"encoder 'x' has modules \['Dense'\]",
    a_hole: r"'x' is not a complete encoder: its checkpoint lacks encoder\.layer\.1\.output\.dense\.weight",
    no_tokenizer: "'x' has no tokenizer files",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_refused(build: Callable[[Path], None], tmp_path: Path) -> None:
    build(tmp_path / "x")
    with pytest.raises(SteerbenchError, match=REFUSED[build]):
        SentenceEncoder.load(str(tmp_path / "x"))


def test_the_real_encoder_puts_a_paraphrase_nearer(assets: Path) -> None:
    encoder = SentenceEncoder.load(str(assets / "models" / "minilm-encoder"))
    assert encoder.max_length == 256
    sentence, paraphrase, unrelated = encoder.encode(
        ["How do I bake bread?", "What is the way to make a loaf?", "The train to Oslo leaves at nine."]
    )
    assert sentence @ paraphrase > 0.5
    assert sentence @ unrelated < 0.2
    torch.testing.assert_close(sentence.norm(), torch.tensor(1.0))


def test_a_token_without_an_embedding_matters_only_in_a_text(tmp_path: Path) -> None:
    made = tokenizer()
    made.add_tokens(["i"])
    made.save_pretrained(bert(tmp_path))
    encoder = SentenceEncoder.load(str(tmp_path))
    assert encoder.encode(["a b"]).isfinite().all()
    with pytest.raises(SteerbenchError, match=r"a text holds 'i', token 12, and model .* has 12 embeddings"):
        encoder.encode(["a b", "a i"])


def test_a_language_model_is_no_encoder(tmp_path: Path) -> None:
    lm = tiny.language_model("llama")
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SteerbenchError, match=r"is a language model \(LlamaForCausalLM\), no sentence encoder"):
        SentenceEncoder.load(str(tmp_path))


@pytest.mark.parametrize("file", ["config.json", "1_Pooling/config.json", "modules.json", "sentence_bert_config.json"])
def test_a_damaged_file_of_the_folder_is_told_in_a_sentence(tmp_path: Path, file: str) -> None:
    declare(bert(tmp_path), "mean_tokens")
    (tmp_path / file).write_text("{")
    with pytest.raises(SteerbenchError, match=f"{file} cannot be read as JSON.*write or download it again"):
        SentenceEncoder.load(str(tmp_path))
