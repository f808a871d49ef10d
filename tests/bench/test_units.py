"""Units are plain values: any process can measure one, and gets the record that the run would have made."""

import json
import multiprocessing
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from steerbench import Decoding, Options, Protocol, Store, run
from steerbench.bench import run as harness
from steerbench.bench.units import Unit, units
from steerbench.engine.timing import latency
from steerbench.errors import SteerbenchError

MEASURE = """
import sys
from functools import partial
from pathlib import Path
from steerbench import Options
from steerbench.bench import run as harness
from steerbench.bench.units import Unit
from steerbench.engine.timing import latency

harness.latency = partial(latency, new_tokens=2, rounds=1)
harness.run_unit(Unit.from_json(sys.argv[1]), Options(out=Path(sys.argv[2])))
"""


@pytest.fixture(autouse=True)
def short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "latency", partial(latency, new_tokens=2, rounds=1))


def test_units_are_every_protocol_seed_and_method_in_order() -> None:
    protocols = [Protocol(task=task, seeds=(0, 1)) for task in ("hh_rlhf", "shp:min_ratio=2")]
    found = units(protocols, "caa,caa:strength=1,static_prompt")
    assert [(u.protocol.task, u.seed, u.method) for u in found] == [
        (task, seed, method)
        for task in ("hh_rlhf", "shp:min_ratio=2")
        for seed in (0, 1)
        for method in ("unsteered", "caa", "static_prompt")
    ]
    assert [u.method for u in units([Protocol()], "caa:layer=0", swept=True)][:3] == [
        "unsteered",
        "caa:layer=0:relative_norm=0.05",
        "caa:layer=0:relative_norm=0.1",
    ]


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("sph", "Did you mean 'shp'"),
        ("shp:min_ratoi=2", "Did you mean 'min_ratio'"),
        ("hh_rlhf,shp", "is more than one; give each a run of its own"),
        ("shp+hh_rlhf", "or the end .*found '[+]' at column 4"),
    ],
)
def test_a_wrong_task_is_told_before_anything_is_loaded(task: str, says: str) -> None:
    with pytest.raises(SteerbenchError, match=says):
        units([Protocol(), Protocol(task=task)], "caa")


def test_a_unit_survives_pickle_and_json() -> None:
    protocol = Protocol(
        task="shp:min_ratio=2",
        data=Path("some where"),
        seeds=(3, 4),
        match_kl=0.1,
        decoding=Decoding(max_new_tokens=5, temperature=0.5),
    )
    unit = Unit(protocol=protocol, method='static_prompt:text="a, b"', seed=4)
    assert Unit.from_json(unit.to_json()) == unit
    assert pickle.loads(pickle.dumps(unit)) == unit
    bare = Unit(protocol=Protocol(), method="unsteered", seed=0)
    assert Unit.from_json(json.dumps(json.loads(bare.to_json()))) == bare


@pytest.mark.slow
def test_another_process_measures_the_same_record(protocol: Protocol, tmp_path: Path) -> None:
    """In the other order too: no record needs that of the unsteered model."""
    here, there = tmp_path / "here", tmp_path / "there"
    expected = {r.identity: r for r in run(protocol, "caa:strength=4", Options(out=here)).records}
    for unit in reversed(units([protocol], "caa:strength=4")):
        subprocess.run([sys.executable, "-c", MEASURE, unit.to_json(), str(there)], check=True)
    found = {r.identity: r for r in Store(there).records()}
    assert found.keys() == expected.keys()
    for identity, record in found.items():
        assert record.metrics == pytest.approx(expected[identity].metrics, abs=1e-4)
        assert record.steering == expected[identity].steering
        assert list(record.examples["response"]) == list(expected[identity].examples["response"])


@pytest.mark.slow
def test_a_unit_is_carried_by_a_pool(protocol: Protocol, tmp_path: Path) -> None:
    (unit,) = units([replace(protocol, n_examples=2)], "unsteered")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        (record,) = pool.starmap(harness.run_unit, [(unit, Options(out=tmp_path))])
    assert harness.run_unit(unit, Options(out=tmp_path)) == record


def test_a_unit_is_found_the_second_time(protocol: Protocol, tmp_path: Path) -> None:
    (unit,) = units([replace(protocol, n_examples=2)], "unsteered")
    record = harness.run_unit(unit, Options(out=tmp_path))
    (path,) = tmp_path.glob("*/record.json")
    before = path.stat().st_mtime_ns
    assert harness.run_unit(unit, Options(out=tmp_path)) == record
    assert path.stat().st_mtime_ns == before
