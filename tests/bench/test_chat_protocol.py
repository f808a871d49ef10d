"""What chat templates decide stands in the protocol, and a reward that cannot read the prompts is told of at once."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from click.testing import Result

from steerbench import Options, Protocol, SteerbenchError, run
from steerbench.bench import run as harness
from steerbench.bench.setup import load_bench
from steerbench.engine.timing import latency
from steerbench.models.language_model import LanguageModel

EACH = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }};{% endfor %}"
THINKS = EACH + "{% if add_generation_prompt %}[assistant] <think>{% endif %}"
DATED = "{{ strftime_now('%Y') }} " + EACH


def with_template(model: Path, template: str, folder: Path) -> str:
    """Return a copy of a model, with a chat template."""
    shutil.copytree(model, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


def test_what_becomes_of_thoughts_is_in_the_key(
    protocol: Protocol, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "latency", partial(latency, new_tokens=2, rounds=1))
    thinks = replace(protocol, model=with_template(world / "lm", THINKS, tmp_path / "lm"), thinking="strip")
    (record,) = run(thinks, "unsteered", Options(out=tmp_path / "runs")).records
    assert record.protocol["thinking"] == "strip"
    assert set(record.examples["response"]) == {""}  # six tokens of noise never close the tag
    assert record.metrics["truncated"] == record.metrics["empty"] == 1
    plain = load_bench(replace(protocol, thinking="strip"), Options())
    assert plain.key == load_bench(protocol, Options()).key
    assert "thinking" not in plain.key


def test_the_date_that_a_reward_reads_is_in_the_key(protocol: Protocol, world: Path, tmp_path: Path) -> None:
    dated = replace(protocol, reward_model=with_template(world / "reward", DATED, tmp_path / "reward"))
    assert load_bench(dated, Options()).key["reward_prompt_date"] == "26 Jul 2024"
    assert "reward_prompt_date" not in load_bench(protocol, Options()).key


def test_a_reward_that_refuses_the_prompts_ends_the_run_before_it_begins(
    protocol: Protocol, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = "{% if messages[-2]['content'] | length > 7 %}{{ raise_exception('too long') }}{% endif %}" + EACH
    monkeypatch.setattr(harness, "generate_samples", lambda *_, **__: pytest.fail("it has begun"))
    refused = replace(protocol, reward_model=with_template(world / "reward", refuses, tmp_path / "judge"))
    with pytest.raises(SteerbenchError, match="of reward model 'judge' refuses the dialogue: too long"):
        run(refused, "unsteered", Options(out=tmp_path / "runs"))


def test_a_loaded_model_must_think_as_the_protocol_says(protocol: Protocol, world: Path, tmp_path: Path) -> None:
    lm = LanguageModel.load(with_template(world / "lm", THINKS, tmp_path / "lm"), thinking="keep")
    chosen = replace(protocol, model=lm.name, thinking="strip")
    with pytest.raises(SteerbenchError, match="thinking is strip and that of lm keep; load it with"):
        run(chosen, "unsteered", Options(out=tmp_path / "runs"), lm=lm)


def test_the_command_line_knows_the_three_choices(run_cli: Callable[..., Result]) -> None:
    refused = run_cli("--thinking", "no")
    assert refused.exit_code == 2
    assert "unknown thinking 'no'" in " ".join(refused.output.split())
