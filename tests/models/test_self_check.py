"""What is assumed of a model is tried out on it: right ones pass, others run one by one or are refused."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from thorough import mostly_slow
from tokenizers.processors import TemplateProcessing
from transformers import (
    BartConfig,
    BartForCausalLM,
    BartForSequenceClassification,
    CanineConfig,
    CanineForSequenceClassification,
    CTRLConfig,
    CTRLForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    FNetModel,
    LlamaForCausalLM,
    ReformerConfig,
    ReformerModelWithLMHead,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForSequenceClassification,
)

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate
from steerbench.bench.protocol import Protocol
from steerbench.bench.setup import Options, load_bench
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.forward_passes import given_cache
from steerbench.engine.guidance import rows_at_once
from steerbench.engine.steered import steered
from steerbench.learn import activations
from steerbench.models.batching import position_limit
from steerbench.models.encoder import SentenceEncoder
from steerbench.models.reward import RewardModel
from steerbench.models.self_check import check_causal, scorer_batch
from steerbench.steering.parts import LogitsPart

PROMPTS = [user("Why?"), user("How do I bake bread with a long and sour starter?"), user("Tell me more.")]
FEW = Decoding(max_new_tokens=6)
SIZES = dict(vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
BART = dict(vocab_size=259, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4)
BART |= dict(decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=256)
BART |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, num_labels=1)
CTRL = dict(vocab_size=259, n_embd=32, n_layer=2, n_head=4, dff=64, n_positions=256, num_labels=1)


class ReadsPadding(LlamaForCausalLM):
    """Leaves its mask out, as RWKV does."""

    def forward(self, *args: Any, attention_mask: Any = None, position_ids: Any = None, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class LosesCount(LlamaForCausalLM):
    """Takes a decoding step to stand one position further."""

    def forward(self, *args: Any, position_ids: Any = None, **kwargs: Any) -> Any:
        cache = given_cache(kwargs)
        if cache is not None and cache.get_seq_length():
            position_ids = position_ids + 1
        return super().forward(*args, position_ids=position_ids, **kwargs)


class NeedsMore(LlamaForCausalLM):
    """Cannot run on text alone."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise ValueError("no image was given")


class Named(LogitsPart):
    """Names another model."""

    @property
    def models(self) -> dict[str, str]:
        return {"guide": "theirs"}


def wild(model: Any) -> Any:
    """Give a model weights large enough that everything it reads shows."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    return model.eval()


def handed_over(kind: type[LlamaForCausalLM]) -> LanguageModel:
    """Wrap the tiny llama, run by another class."""
    model = tiny.language_model().model
    model.__class__ = kind
    return LanguageModel(model, tiny.tokenizer(), name="theirs")


def saved(folder: Path, model: Any, *, pad: bool = True, closing: bool = False) -> str:
    """Save a model with the tiny tokenizer, without a pad token or with an EOS behind each text."""
    made = tiny.tokenizer()
    if not pad:
        made.pad_token = None
    if closing:
        ends = TemplateProcessing("$A <eos>", special_tokens=[("<eos>", 2)])
        made.backend_tokenizer.post_processor = ends
    wild(model).save_pretrained(folder)
    made.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def silence() -> Iterator[None]:
    """Take a warning for a failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# language models


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("silence")
def test_right_models_take_any_batch(family: str, dtype: torch.dtype) -> None:
    model = tiny.language_model(family).model.to(dtype)
    assert LanguageModel(model, tiny.tokenizer()).largest_batch is None


TRAINED = ["testbed", "tinystories-656k", "stories260K-llama", "tinytalk-3m-chat"]


@pytest.mark.parametrize("name", mostly_slow(TRAINED, "testbed".__eq__))
@pytest.mark.usefixtures("silence")
def test_trained_models_take_any_batch(name: str, assets: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        source = name if name == "testbed" else str(assets / "models" / name)
        assert LanguageModel.load(source, dtype=dtype).largest_batch is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_reads_its_padding_runs_one_by_one(dtype: torch.dtype) -> None:
    lm = handed_over(ReadsPadding)
    lm.model.to(dtype)
    with pytest.warns(UserWarning, match="theirs gives other logits in a padded batch than alone; it takes one"):
        together = generate(lm, PROMPTS, decoding=FEW, batch_size=3)
    assert together == generate(lm, PROMPTS, decoding=FEW, batch_size=1)
    assert list(lm.batches([lm.tokens(p) for p in PROMPTS], 16)) == [[1], [2], [0]]


def test_a_record_says_what_ran_one_by_one(protocol: Protocol) -> None:
    lm = handed_over(ReadsPadding)
    unnamed = Protocol(**{**vars(protocol), "model": lm.name})
    with pytest.warns(UserWarning, match="theirs gives other logits"):
        bench = load_bench(unnamed, Options(batch_size=8), lm)
    assert bench.batch_sizes == {"batch_size": 8, "one_at_a_time": ["model"]}
    lm.largest_batch = None
    assert bench.batch_sizes == {"batch_size": 8}


def test_a_named_model_that_reads_its_padding_holds_the_batch_at_one(
    monkeypatch: pytest.MonkeyPatch, llama: LanguageModel
) -> None:
    guide = handed_over(ReadsPadding)
    monkeypatch.setattr("steerbench.engine.guidance.loaded", lambda *_: guide)
    assert rows_at_once([LogitsPart()], llama, 8) == 8
    with pytest.warns(UserWarning, match="theirs"):
        assert rows_at_once([Named()], llama, 8) == 1


def test_a_cache_that_loses_count_is_refused() -> None:
    lm = handed_over(LosesCount)
    with pytest.raises(SteerbenchError, match=r"theirs has other logits where .* because of its key-value cache"):
        generate(lm, PROMPTS, decoding=FEW)


def test_a_model_that_scores_at_other_positions_is_refused(tmp_path: Path) -> None:
    """RoBERTa counts its positions from the ids that it is given, so that a step without a past begins again."""
    config = RobertaConfig(**SIZES, max_position_embeddings=128, is_decoder=True, pad_token_id=0)
    with pytest.raises(SteerbenchError, match="has other logits where it generates a response than where it reads"):
        LanguageModel.load(saved(tmp_path, RobertaForCausalLM(config)))


def test_a_model_whose_code_fails_is_refused_in_a_sentence() -> None:
    with pytest.raises(
        SteerbenchError, match=r"^NeedsMore fails on a short text: no image was given\. Use another model"
    ):
        activations(handed_over(NeedsMore), Site("resid_post", 0), [tiny.language_model().tokens(PROMPTS[0])], "all")


def test_weights_that_are_no_numbers_are_not_taken_for_another_kind_of_model() -> None:
    model = tiny.language_model().model
    model.model.layers[1].mlp.up_proj.weight.data.fill_(torch.inf)
    with pytest.raises(SteerbenchError, match="theirs gives logits that are not finite; its weights are damaged"):
        check_causal(model, "theirs")


def test_the_decoder_of_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, BartForCausalLM(BartConfig(**BART)))
    with pytest.raises(SteerbenchError, match=r"is the decoder of an encoder-decoder: \S+encoder_attn attends"):
        LanguageModel.load(folder)


@pytest.mark.parametrize("kinds", [["local", "lsh"], ["local", "local"]])
def test_reformer_is_refused(kinds: list[str], tmp_path: Path) -> None:
    sizes = dict(hidden_size=32, num_attention_heads=4, attention_head_size=8, feed_forward_size=64, num_buckets=2)
    chunks = dict(local_attn_chunk_length=8, lsh_attn_chunk_length=8, axial_pos_shape=(8, 8))
    more = dict(vocab_size=259, is_decoder=True, attn_layers=kinds, axial_pos_embds_dim=(16, 16), hash_seed=0)
    model = ReformerModelWithLMHead(ReformerConfig(**sizes, **chunks, **more, max_position_embeddings=64))
    with pytest.raises(SteerbenchError, match=r"^'?\S+'? is a Reformer: it pads a text .* use another model\.$"):
        LanguageModel.load(saved(tmp_path, model))
    bare = pytest.raises(SteerbenchError, match=r"^ReformerModelWithLMHead is a Reformer: .* use another model\.$")
    with bare, steered(model, Steering()):
        pass


def test_weights_that_are_not_in_memory_are_refused() -> None:
    model = tiny.language_model().model
    model.model.layers[1].to("meta")
    with pytest.raises(SteerbenchError, match=r"weights that are not in memory, such as model\.layers\.1\."):
        LanguageModel(model, tiny.tokenizer())
    edit = Steering(edits=(PlacedEdit(Site("resid_post", 0), Add(torch.ones(tiny.WIDTH), 1.0), "all"),))
    with pytest.raises(SteerbenchError, match="weights that are not in memory"), steered(model, edit):
        pass


# rewards and encoders


def fnet(kind: Callable[..., Any]) -> Any:
    return kind(FNetConfig(**{**SIZES, "max_position_embeddings": 256, "num_labels": 1, "pad_token_id": 0}))


def test_a_reward_that_reads_its_padding_scores_one_by_one(tmp_path: Path) -> None:
    folder = saved(tmp_path, fnet(FNetForSequenceClassification))
    with pytest.warns(UserWarning, match=r"reward model '.*' gives other scores in a padded batch than alone"):
        model = RewardModel.load(folder)
    replies = ["no", "It takes time and patience.", "Because it does"]
    together = model.score(PROMPTS, replies)
    alone = torch.cat([model.score([d], [r]) for d, r in zip(PROMPTS, replies, strict=True)])
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_a_reward_that_refuses_batches_scores_one_by_one(tmp_path: Path) -> None:
    folder = saved(tmp_path, CTRLForSequenceClassification(CTRLConfig(**CTRL)), pad=False)
    with pytest.warns(UserWarning, match="takes one sequence at a time"):
        assert RewardModel.load(folder).score(PROMPTS, ["a", "b c", "d"]).isfinite().all()


def test_an_encoder_decoder_that_counts_its_ends_scores_one_by_one(tmp_path: Path) -> None:
    """BART takes the state at the last EOS, and wants as many of them in every row of a batch."""
    folder = saved(tmp_path, BartForSequenceClassification(BartConfig(**BART)), closing=True)
    with pytest.warns(UserWarning, match="takes one sequence at a time"):
        assert RewardModel.load(folder).score(PROMPTS, ["a", "b <eos> c", "d"]).isfinite().all()


def test_a_reward_that_cannot_score_is_refused_in_a_sentence(tmp_path: Path) -> None:
    made = {
        "roberta": RobertaForSequenceClassification(RobertaConfig(**SIZES, pad_token_id=None, num_labels=1)),
        "bart": BartForSequenceClassification(BartConfig(**BART)),
    }
    for name, model in made.items():
        folder = saved(tmp_path / name, model, pad=name != "roberta")
        with pytest.raises(SteerbenchError, match=f"reward model '{name}' fails on a short text: .* Use another model"):
            RewardModel.load(folder)


def test_an_encoder_that_reads_its_padding_encodes_one_by_one(tmp_path: Path) -> None:
    folder = saved(tmp_path, fnet(FNetModel))
    with pytest.warns(UserWarning, match=r"encoder '.*' gives other vectors in a padded batch than alone"):
        encoder = SentenceEncoder.load(folder)
    texts = ["a", "a much longer text, which pads the other"]
    alone = torch.cat([encoder.encode([text]) for text in texts])
    torch.testing.assert_close(encoder.encode(texts), alone, rtol=0, atol=0)


@pytest.mark.usefixtures("silence")
def test_right_scorers_take_any_batch(world: Path, assets: Path) -> None:
    for folder in (world / "reward", assets / "models" / "minilm-hh-reward"):
        for dtype in (torch.float32, torch.bfloat16):
            assert RewardModel.load(str(folder), dtype=dtype).largest_batch is None
    for folder in (world / "encoder", assets / "models" / "minilm-encoder"):
        assert SentenceEncoder.load(str(folder)).largest_batch is None


@pytest.mark.parametrize("reads_padding", [True, False])
def test_a_mean_over_the_padding_is_told(reads_padding: bool, recwarn: pytest.WarningsRecorder) -> None:
    def mean(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        counted = torch.ones_like(mask) if reads_padding else mask
        return (ids * counted).sum(1).float() / counted.sum(1)

    largest = scorer_batch("mean", mean, [[5, 6, 7, 8], [9]], 0, torch.device("cpu"), torch.float32)
    assert (largest, len(recwarn)) == ((1, 1) if reads_padding else (None, 0))


def test_a_model_without_one_table_of_embeddings_has_a_limit() -> None:
    """CANINE hashes its characters into several tables."""
    config = CanineConfig(**{**SIZES, "max_position_embeddings": 64, "num_hash_buckets": 16, "num_labels": 1})
    assert position_limit(CanineForSequenceClassification(config), tiny.tokenizer()) == 64
