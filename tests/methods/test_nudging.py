"""Nudging: a guide with another tokenizer says words, which are written in the model's tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steerbench import Decoding, FitContext, LanguageModel, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.learn import Tokens, response_logits

PROMPTS = [user("How do I bake a cake?"), user("Hi"), user("x")]
SAMPLED = Decoding(max_new_tokens=12, temperature=1.0)
SAYS = [" Yes,", "\n日本", " of", " course."]


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose every token is the next one of `SAYS`, and then the end; with a vocabulary of whole words."""
    folder = tmp_path_factory.mktemp("guide")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(["<pad>", "<eos>", *alphabet])}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")
    tokenizer.add_tokens([word for word in SAYS])
    size = len(tokenizer)
    shape = dict(hidden_size=2 * size, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    config = LlamaConfig(vocab_size=size, pad_token_id=0, eos_token_id=1, tie_word_embeddings=False, **shape)
    model = LlamaForCausalLM(config).requires_grad_(False)
    model.model.embed_tokens.weight.copy_(torch.eye(size, 2 * size))
    says = tokenizer.convert_tokens_to_ids(SAYS)
    follows = {before: after for before, after in zip(says, [*says[1:], 1], strict=True)}
    model.lm_head.weight.zero_()
    for before in range(size):
        model.lm_head.weight[follows.get(before, says[0]), before] = 1
    for name, parameter in model.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.zero_()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fit(lm: LanguageModel, **fields: Any) -> Steering:
    context = FitContext(lm=lm, examples=[], reward=tiny.VowelReward())
    steering: Steering = load("methods", "nudging")(**fields).fit(context)
    return steering


def test_words_are_handed_over_whole(llama: LanguageModel, guide: Path) -> None:
    """Always unsure, the model says what the guide does: blanks, new lines and other scripts included."""
    module = __import__(load("methods", "nudging").__module__, fromlist=["next_word"])
    other = LanguageModel.load(str(guide))
    said: list[int] = []
    words = []
    for _ in range(4):
        word = module.next_word(llama, other, PROMPTS[0], said)
        words.append(llama.tokenizer.decode(word))
        said += word
    assert words == SAYS
    assert module.next_word(llama, other, PROMPTS[0], said) == tuple(llama.end_ids)


def test_gamma_zero_is_the_model(llama: LanguageModel, guide: Path) -> None:
    assert generate(llama, PROMPTS, fit(llama, guide=str(guide), gamma=0.0), SAMPLED) == generate(
        llama, PROMPTS, Steering(), SAMPLED
    )


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_it_is_its_loop(llama: LanguageModel, guide: Path, gamma: float) -> None:
    module = __import__(load("methods", "nudging").__module__, fromlist=["next_word"])
    other, greedy = LanguageModel.load(str(guide)), Decoding(max_new_tokens=12)
    steering = fit(llama, guide=str(guide), gamma=gamma)
    together = generate(llama, PROMPTS, steering, greedy)
    assert together != generate(llama, PROMPTS, Steering(), greedy)
    for dialogue, response in zip(PROMPTS, together, strict=True):
        prompt, ids = list(llama.tokens(dialogue).prompt), list[int]()
        while len(ids) < 12 and not set(ids) & set(llama.end_ids):
            with torch.no_grad():
                p = llama.model(torch.tensor([prompt + ids])).logits[0, -1].softmax(-1)
            sure = float(p.max()) >= gamma
            ids += [int(p.argmax())] if sure else module.next_word(llama, other, dialogue, ids)
        assert llama.cut(ids[:12]) == response


def test_a_response_is_scored_as_it_was_drawn(llama: LanguageModel, guide: Path) -> None:
    steering = fit(llama, guide=str(guide))
    drawn = generate(llama, PROMPTS, steering, Decoding(max_new_tokens=12))
    tokens = [Tokens(llama.tokens(d).prompt, r.ids) for d, r in zip(PROMPTS, drawn, strict=True)]
    for i, logits in response_logits(llama, tokens, steering, dialogues=PROMPTS):
        assert tuple(logits.argmax(-1).tolist()) == drawn[i].ids
