"""What an engine cannot carry is told before anything is loaded, and again from what a fit returned."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from checked_methods import METHODS, named

from steerbench import FitContext, SteerbenchError, Steering, load
from steerbench.bench.engines import check_engine, engine_of
from steerbench.bench.protocol import Protocol
from steerbench.bench.run import run
from steerbench.bench.setup import Options
from steerbench.contract import tiny
from steerbench.decoding import Decoding
from steerbench.edits import Add, AddInFront, PlacedEdit, Site
from steerbench.engine.backends import vllm_engine
from steerbench.engine.backends.vllm_engine import VllmEngine

TOLD = ["args", "blockwise_decoding", "cards", "classifier_free", "controlled_decoding", "deal", "dexperts", "genarm"]
TOLD += ["nudging", "rtd", "transfer_q"]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "check_installed", lambda: None)


def test_methods_say_so_themselves() -> None:
    names = [text.partition(":")[0] for text in METHODS]
    assert [name for name in names if "vllm" not in load("methods", name).engines] == sorted(TOLD)


@pytest.mark.usefixtures("installed")
def test_a_run_with_a_method_that_cannot_be_carried_loads_nothing(
    protocol: Protocol, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steerbench.bench.setup.LanguageModel.load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(SteerbenchError, match=r"engine vllm cannot carry ARGS, DeAL: it carries prompts, edits"):
        run(replace(protocol, engine="vllm"), "caa,args,deal", Options(out=tmp_path))


def test_without_the_package_a_run_says_how_to_get_it(protocol: Protocol, tmp_path: Any) -> None:
    if find_spec("vllm"):
        pytest.skip("vllm is installed here")
    with pytest.raises(SteerbenchError, match="needs the package vllm, in an environment of its own"):
        run(replace(protocol, engine="vllm"), "caa", Options(out=tmp_path))


@pytest.mark.usefixtures("installed")
def test_a_model_is_not_spread_beside_an_engine_that_places_its_own(protocol: Protocol, tmp_path: Any) -> None:
    options = Options(out=tmp_path, device_map="auto")
    with pytest.raises(SteerbenchError, match="--device-map spreads transformers' model, and vllm places its own"):
        run(replace(protocol, engine="vllm"), "caa", options)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(SteerbenchError, match=r"unknown engine 'vlm'.*vllm"):
        Protocol(engine="vlm")


def test_transformers_is_no_engine_beside_itself() -> None:
    assert engine_of("transformers", "testbed") is None
    check_engine("transformers", named("args").steerers)


# What stands in a steering decides, whatever the method says


FITTED = {*TOLD[:3], "best_of_n", "caa", "re_control", "act_add", "cast"}


@pytest.mark.parametrize("text", [text for text in METHODS if text.partition(":")[0] in FITTED])
def test_a_fit_is_carried_where_its_method_says_so(text: str) -> None:
    context = FitContext(
        lm=tiny.language_model(),
        examples=tiny.examples()[:12],
        reward=tiny.VowelReward(),
        decoding=Decoding(max_new_tokens=4),
    )
    method = named(text)
    fault = VllmEngine("testbed").fault(method.fit(context))
    assert (fault is None) == ("vllm" in method.steerers[0].engines), fault


def test_what_a_steering_has_that_cannot_be_carried_is_named() -> None:
    (best,) = named("best_of_n:n=4:reject_every=2").steerers
    rejecting = best.fit(None)  # type: ignore[arg-type]  # it learns nothing
    engine = VllmEngine("testbed")
    with pytest.raises(SteerbenchError, match="cannot carry the part Best, which chooses in the middle of a response"):
        engine.check(rejecting)
    vectors = torch.ones(2, 8)
    site = Site("resid_pre", 0)
    engine.check(Steering(edits=(PlacedEdit(site, AddInFront(vectors)), PlacedEdit(site, Add(vectors[0])))))
