"""A vocabulary of a quarter million tokens: what a study computes for each token stays within a bound of memory."""

import subprocess
import sys

import pytest

BOUND = 2 * 2**30
"""Bytes over the weights."""
PROGRAM = """
from resource import RUSAGE_SELF, getrusage

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from steerbench import Decoding, LanguageModel, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.effect import effect
from steerbench.engine.kept_prompts import KeptPrompts
from steerbench.engine.logits import log_probs
from steerbench.learn import Tokens
from steerbench.models.response import Response

config = LlamaConfig(
    vocab_size=262_144, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
    max_position_embeddings=512, tie_word_embeddings=True,
)
model = LlamaForCausalLM(config).eval().requires_grad_(False)
lm = LanguageModel(model, tiny.tokenizer(), name="large", revision="0")
lm.end_ids = []
prompts = [user("Why? " * 26) for _ in range(24)]
before = getrusage(RUSAGE_SELF).ru_maxrss
generate(lm, prompts[:2], decoding=Decoding(max_new_tokens=4), batch_size=24)
ids = [tuple(range(1000 * i, 1000 * i + 48)) for i in range(24)]
rows = [Tokens(lm.tokens(prompt).prompt, response) for prompt, response in zip(prompts, ids, strict=True)]
assert max(len(row.prompt) + len(row.response) for row in rows) >= 180
shift = Steering(edits=(PlacedEdit(Site("final"), Add(torch.ones(8)), "{scope}"),))
log_probs(lm, rows, shift, batch_size=24)
given = [Response("", row.response, "length") for row in rows]
effect(lm, prompts, given, shift, batch_size=24, kept=KeptPrompts(lm))
print((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("scope", ["all", pytest.param("response", marks=pytest.mark.slow)])
def test_probabilities_of_a_large_vocabulary_stay_within_the_bound(scope: str) -> None:
    """24 rows of 180 positions, whose logits alone would be 4.5 GB; behind kept prompts where edits leave them."""
    program = PROGRAM.replace("{scope}", scope)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < BOUND
