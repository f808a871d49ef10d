"""Tables in whole lines: what gives way on a narrow terminal, and in which order."""

import io
from typing import Any

import pandas as pd
import pytest
from made_records import make
from rich.console import Console

from steerbench.cli import tables
from steerbench.cli.console import say
from steerbench.cli.latency_table import show_latency
from steerbench.cli.layout import Cell, number, print_table

LONG = "re_control:td_lambda=0.95+static_prompt"
RANKED = pd.DataFrame(
    {
        "task": "hh_rlhf",
        "rank": [1, 2, 3],
        "method": [LONG, "caa:strength=2", "unsteered"],
        "reward": [1.2345, 0.9876, -0.0254],
        "held_out_reward": [-10.5, -11.25, -12.0],
        "gold": [0.3333, 0.25, 0.125],
        "win_rate": [0.875, 0.75, 0.5],
        "kl": [0.0521, 0.0412, 0.0],
        "diversity": [0.9123, 0.9, 0.95],
        "coherence": [0.4567, 0.5, 0.55],
        "length": [31.25, 28.0, 30.5],
        "decode_ratio": [1.7512, 1.0312, 1.0],
        "decode_floor": [None, None, None],
        "matched": [None, None, None],
        "fits": [2, 1, 1],
        "device": "cpu",
        "reward_gain": [1.2599, 1.013, 0],
        "reward_gain_low": [1.1, 0.9, 0],
        "reward_gain_high": [1.4, 1.1111, 0],
        "held_out_reward_gain": [1.5, 0.75, 0],
        "held_out_reward_gain_low": [1.25, None, 0],
        "held_out_reward_gain_high": [1.75, None, 0],
        "gold_gain": [0.2083, 0.125, 0],
        "gold_gain_low": [0.1, -0.0001, 0],
        "gold_gain_high": [0.3, 0.25, 0],
    }
)


def console_of(width: int | None) -> Console:
    """Return a terminal of that width; for None, what is no terminal."""
    return Console(file=io.StringIO(), width=width or 80, force_terminal=width is not None, color_system=None)


def lines_of(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


LEADERBOARD = {
    80: """\
hh_rlhf
#  method                                   reward     held   gold    win     KL
────────────────────────────────────────────────────────────────────────────────
1  re_control:td_lambda=0.95+static_prompt   1.234  -10.500  0.333  0.875  0.052
2  caa:strength=2                            0.988  -11.250  0.250  0.750  0.041
3  unsteered                                -0.025  -12.000  0.125  0.500  0.000
Not shown, for want of width: div., coh., length, time ×. All columns are in
runs/leaderboard.csv.

over unsteered, 95 % interval
method                                              reward               gold
─────────────────────────────────────────────────────────────────────────────
re_control:td_lambda=0.95+static_prompt  +1.3 (1.1 to 1.4)  +0.2 (0.1 to 0.3)
caa:strength=2                           +1.0 (0.9 to 1.1)  +0.1 (0.0 to 0.2)
Not shown, for want of width: held. All columns are in runs/leaderboard.csv.
m on 20 test prompts, seeds [0, 1]; reward r; encoder e.
time ×: decoding beside the unsteered model, batch 1, on cpu.
Intervals: over the prompts, in clusters (posts or openings), and over the seeds
where these gave several steerings; what other training data would change is not
in them.
Left out: 1 empty reply.

""",
    100: """\
hh_rlhf
#  method                                   reward    held  gold   win    KL  div.  length  time ×
──────────────────────────────────────────────────────────────────────────────────────────────────
1  re_control:td_lambda=0.95+static_prompt    1.23  -10.50  0.33  0.88  0.05  0.91   31.25    1.75
2  caa:strength=2                             0.99  -11.25  0.25  0.75  0.04  0.90   28.00    1.03
3  unsteered                                 -0.03  -12.00  0.12  0.50  0.00  0.95   30.50    1.00
Not shown, for want of width: coh. All columns are in runs/leaderboard.csv.

over unsteered, 95 % interval
method                                              reward                held               gold
─────────────────────────────────────────────────────────────────────────────────────────────────
re_control:td_lambda=0.95+static_prompt  +1.3 (1.1 to 1.4)   +1.5 (1.2 to 1.8)  +0.2 (0.1 to 0.3)
caa:strength=2                           +1.0 (0.9 to 1.1)  +0.8 (no interval)  +0.1 (0.0 to 0.2)
m on 20 test prompts, seeds [0, 1]; reward r; encoder e.
time ×: decoding beside the unsteered model, batch 1, on cpu.
Intervals: over the prompts, in clusters (posts or openings), and over the seeds where these gave
several steerings; what other training data would change is not in them.
Left out: 1 empty reply.

""",
    140: """\
hh_rlhf
#  method                                   reward     held   gold    win     KL   div.   coh.  length  time ×
──────────────────────────────────────────────────────────────────────────────────────────────────────────────
1  re_control:td_lambda=0.95+static_prompt   1.234  -10.500  0.333  0.875  0.052  0.912  0.457  31.250   1.751
2  caa:strength=2                            0.988  -11.250  0.250  0.750  0.041  0.900  0.500  28.000   1.031
3  unsteered                                -0.025  -12.000  0.125  0.500  0.000  0.950  0.550  30.500   1.000

over unsteered, 95 % interval
method                                                    reward                     held                     gold
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────
re_control:td_lambda=0.95+static_prompt  +1.260 (1.100 to 1.400)  +1.500 (1.250 to 1.750)  +0.208 (0.100 to 0.300)
caa:strength=2                           +1.013 (0.900 to 1.111)     +0.750 (no interval)  +0.125 (0.000 to 0.250)
m on 20 test prompts, seeds [0, 1]; reward r; encoder e.
time ×: decoding beside the unsteered model, batch 1, on cpu.
Intervals: over the prompts, in clusters (posts or openings), and over the seeds where these gave several steerings; what other training
data would change is not in them.
Left out: 1 empty reply.

""",  # noqa: E501 - whole lines
}
PIPED = LEADERBOARD[140].replace("training\ndata", "training data")


@pytest.mark.parametrize(("width", "wanted"), [*LEADERBOARD.items(), (None, PIPED)])
def test_the_leaderboard_line_by_line(width: int | None, wanted: str) -> None:
    console = console_of(width)
    tables.show(console, RANKED, [make("unsteered", task="hh_rlhf")], "All columns are in runs/leaderboard.csv.")
    assert lines_of(console) == wanted.splitlines()


def test_what_is_far_from_the_unsteered_model_is_named() -> None:
    console = console_of(None)
    tables.show(console, RANKED.assign(kl=[4.27, 0.04, 0.0]), [make("unsteered", task="hh_rlhf")])
    (found,) = (line for line in lines_of(console) if line.startswith("More than 1 nat per token"))
    assert found.endswith("mostly other tokens: re_control:td_lambda=0.95+static_prompt.")


def arm(method: str, prompt: int, prefill: float, token: float, ratio: float | None) -> dict[str, Any]:
    ends = {} if ratio is None else {"median": ratio, "low": ratio - 0.0123, "high": ratio + 0.0123}
    return {
        "method": method,
        "prompt_tokens": prompt,
        "prefill_ms": prefill,
        "decode_ms_per_token": token,
        "peak_memory_mb": 512.4,
        "ratios": {name: ends for name in ("prefill", "decode", "total") if ends},
    }


TIMED: dict[str, Any] = {
    "model": {"name": "small", "parameters": 1e6, "dtype": "float32", "attention": "sdpa", "weights": "trained"},
    "memory": "process",
    "device": "cpu",
    "grid": {"new_tokens": 64, "rounds": 10},
    "choosing": [],
    "cells": [
        {
            "batch_size": 8,
            "prompt_tokens": 128,
            "arms": [arm("unsteered", 128, 12.34, 5.678, None), arm(LONG, 160, 15.0, 11.0, 1.9371)],
        }
    ],
}
LATENCY = {
    80: """\
small: batch 8, 128 prompt tokens
method                                   ms/token                 total ×
─────────────────────────────────────────────────────────────────────────
unsteered                                    5.68
re_control:td_lambda=0.95+static_prompt     11.00  1.937 (1.925 to 1.949)
Not shown, for want of width: prompt, prefill ms, prefill ×, decode ×, MB. All
numbers are in runs/latency/x.json.
""",
    100: """\
small: batch 8, 128 prompt tokens
method                                   ms/token                decode ×                 total ×
─────────────────────────────────────────────────────────────────────────────────────────────────
unsteered                                    5.68
re_control:td_lambda=0.95+static_prompt     11.00  1.937 (1.925 to 1.949)  1.937 (1.925 to 1.949)
Not shown, for want of width: prompt, prefill ms, prefill ×, MB. All numbers are in
runs/latency/x.json.
""",
    140: """\
small: batch 8, 128 prompt tokens
method                                   prompt  prefill ms            prefill ×  ms/token             decode ×              total ×   MB
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
unsteered                                   128        12.3                           5.68                                            512
re_control:td_lambda=0.95+static_prompt     160        15.0  1.94 (1.92 to 1.95)     11.00  1.94 (1.92 to 1.95)  1.94 (1.92 to 1.95)  512
""",  # noqa: E501 - whole lines
    None: """\
small: batch 8, 128 prompt tokens
method                                   prompt  prefill ms               prefill ×  ms/token                decode ×                 total ×   MB
──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
unsteered                                   128        12.3                              5.68                                                  512
re_control:td_lambda=0.95+static_prompt     160        15.0  1.937 (1.925 to 1.949)     11.00  1.937 (1.925 to 1.949)  1.937 (1.925 to 1.949)  512
""",  # noqa: E501 - whole lines
}


def test_the_floor_stands_beside_the_time_where_it_is_known() -> None:
    console = console_of(200)
    arms = [{**one, "decode_floor": least} for one, least in zip(TIMED["cells"][0]["arms"], (1.0, 1.234), strict=True)]
    show_latency(console, {**TIMED, "cells": [{**TIMED["cells"][0], "arms": arms}]})
    lines = lines_of(console)
    assert "decode ×  floor ×" in lines[1]
    end = lines[1].index("floor ×") + len("floor ×")
    assert [line[end - 4 : end] for line in lines[3:5]] == ["1.00", "1.23"]
    assert any(line.startswith("Floor: the least") for line in lines)


@pytest.mark.parametrize("width", LATENCY)
def test_times_line_by_line(width: int | None) -> None:
    console = console_of(width)
    show_latency(console, TIMED, "All numbers are in runs/latency/x.json.")
    cell = LATENCY[width].splitlines()
    assert lines_of(console)[: len(cell) + 1] == [*cell, ""]


POWER = pd.DataFrame(
    {
        "task": "shp",
        "method": [LONG],
        "sd": [1.2345],
        "n_examples": [256],
        "smallest": [0.2162],
        "smallest_2x": [0.1529],
        "smallest_4x": [0.1081],
    }
)


def test_two_methods_line_by_line() -> None:
    table = pd.DataFrame(
        {
            "task": "shp",
            "metric": ["reward", "kl"],
            "seeds": 3,
            "first": [1.5, 0.02],
            "second": [1.0, 0.01],
            "difference": [0.5, None],
            "low": [0.25, None],
            "high": [0.75, None],
            "p": [0.01, None],
            "higher": [0.75, None],
        }
    )
    console = console_of(80)
    tables.show_paired(console, table, "re_control", "caa")
    assert lines_of(console) == [
        "shp, 3 seeds",
        "metric  re_control    caa               difference      p  higher",
        "─────────────────────────────────────────────────────────────────",
        "reward       1.500  1.000  +0.500 (0.250 to 0.750)  0.010   0.750",
        "KL           0.020  0.010                        –      –       –",
        "",
    ]


def test_power_line_by_line() -> None:
    console = console_of(80)
    tables.show_power(console, POWER)
    assert lines_of(console) == [
        "shp",
        "method                                      SD  prompts  smallest    2 ×    4 ×",
        "───────────────────────────────────────────────────────────────────────────────",
        "re_control:td_lambda=0.95+static_prompt  1.234      256     0.216  0.153  0.108",
        "",
    ]
    console = console_of(60)
    tables.show_power(console, POWER)
    assert lines_of(console) == [
        "shp",
        "method                                   smallest    4 ×",
        "────────────────────────────────────────────────────────",
        "re_control:td_lambda=0.95+static_prompt     0.216  0.108",
        "Not shown, for want of width: SD, prompts, 2 ×.",
        "",
    ]


def test_blocks_where_not_even_the_least_columns_fit() -> None:
    """The name is whole even where it is longer than the line; nothing is left out."""
    columns: dict[str, list[Cell]] = {
        "rank": ["1", "2"],
        "method": [LONG, "caa"],
        "reward": [number(1.5), number(float("nan"))],
    }
    console = console_of(30)
    print_table(console, "hh_rlhf", columns, yields=["rank"], elsewhere="All columns are in a.csv.")
    assert lines_of(console) == [
        "hh_rlhf",
        LONG,
        "  rank    1",
        "  reward  1.500",
        "caa",
        "  rank    2",
        "  reward  –",
    ]


def test_replies_keep_their_lines_and_drive_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    console = console_of(80)
    monkeypatch.setattr("steerbench.cli.console.out", console)
    say("a\tb\n  c\x1b[2J\x07\r\x9b\u202e\u2066 é 日本 \U0001f469\u200d\U0001f373 [bold]")
    assert lines_of(console) == ["a       b", r"  c\x1b[2J\x07\x0d\x9b\u202e\u2066 é 日本 👩‍🍳 [bold]"]


def test_a_name_cannot_break_the_table_or_drive_the_terminal() -> None:
    columns = {"method": ["a\nb\x1b[31m\u202ec", "[bold]d"], "reward": ["1", "2"]}
    console = console_of(None)
    print_table(console, "t\x9b", columns)
    assert lines_of(console) == [
        r"t\x9b",
        "method               reward",
        "───────────────────────────",
        r"a\nb\x1b[31m\u202ec       1",
        "[bold]d                   2",
    ]
