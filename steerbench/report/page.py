"""The page: a template filled with what the records say. Everything is in the one file, and nothing is fetched."""

import base64
import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from steerbench.plugins.spec import UNSTEERED
from steerbench.records.record import Record
from steerbench.records.verdicts import Verdict
from steerbench.report import details
from steerbench.report.answer import sentences
from steerbench.report.choice_curves import choice_panels, steerability_table
from steerbench.report.curves import sweeps
from steerbench.report.dot_plot import dot_plot
from steerbench.report.figures import scatters, sweep_panels, trial_panels
from steerbench.report.generations import as_json, generations
from steerbench.report.groups import Group
from steerbench.report.ranking_table import ranking
from steerbench.report.timings import Timing
from steerbench.report.tradeoff import tradeoff_table, tradeoffs
from steerbench.report.verdict_table import verdict_table
from steerbench.version import __version__

_BRIEF = ("model", "methods", "seeds", "measured")
"""Facts that stand above the answer; all of them stand below."""


def page(
    groups: Sequence[Group], timings: Sequence[Timing], n_examples: int | None = None, verdicts: Sequence[Verdict] = ()
) -> str:
    """Return the HTML of records, timings and verdicts; what `n_examples` means stands at `generations`."""
    environment = Environment(
        loader=PackageLoader("steerbench.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # a line may end between the pieces of a method's name
    environment.filters["pieces"] = lambda name: re.findall(r"[^:+]+[:+]*|[:+]+", name)
    script = _text("page.js")
    records = [record for group in groups for record in group.records]
    embedded = generations(groups, n_examples)
    sections = [_section(group, _facts(records)) for group in groups]
    return environment.get_template("template.html").render(
        policy=_policy(script),
        style=_text("style.css"),
        script=script,
        facts=_facts(records),
        brief=[fact for fact in _facts(records) if fact[0] in _BRIEF],
        groups=sections,
        has_dots=any(section["dots"] for section in sections),
        timings=timings,
        machines=details.machines(records),
        reported=details.reported(),
        verdicts=verdict_table(verdicts),
        browsable=[{**one, "shown": len(one["prompts"])} for one in embedded],
        is_sampled=n_examples is None and len(embedded) < len(groups),
        data=as_json(embedded),
        is_testbed=any(group.is_testbed for group in groups),
        version=__version__,
    )


def _section(group: Group, known: Sequence[tuple[str, str]]) -> dict[str, Any]:
    record, swept = group.first, sweeps(group)
    fits = tradeoffs(group, swept)
    return {
        "group": group,
        "record": record,
        "facts": [fact for fact in _facts(group.records) if fact not in known],
        "sentences": sentences(group),
        "dots": dot_plot(group) if group.is_main else None,
        "ranking": ranking(group),
        "scatters": scatters(group),
        "sweeps": sweep_panels(group, swept, fits),
        "tradeoffs": tradeoff_table(swept, fits),
        "choices": choice_panels(group, swept),
        "steerability": steerability_table(group, swept),
        "trials": trial_panels(group),
        "protocol": details.protocol(group),
        "tunings": details.tunings(group),
        "left_out": details.left_out(group),
        "clipped": max(one.truncated for one in group.records),
        "fingerprint": group.rows[0].values["protocol"],
    }


def _facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return what was measured, on what, where and when."""
    labels = {
        "task": "task",
        "model": "model",
        "reward (guide)": "reward_model",
        "held-out reward": "held_out_reward",
        "encoder": "encoder",
    }
    found = [(name, _joined(record.labels.get(key) or "" for record in records)) for name, key in labels.items()]
    days = sorted(record.created[:10] for record in records)
    return [
        *((name, text) for name, text in found if text),
        ("device", _joined(str(record.environment.get("device", "")) for record in records)),
        ("measured", days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}"),
        ("records", str(len(records))),
        ("methods", _counted({record.method for record in records})),
        ("seeds", ", ".join(map(str, sorted({record.seed for record in records})))),
        ("steerbench", _joined(record.steerbench for record in records)),
    ]


def _counted(methods: set[str]) -> str:
    steered = len(methods - {UNSTEERED})
    return f"{steered}, and the unsteered model" if UNSTEERED in methods else str(steered)


def _joined(values: Any) -> str:
    return " · ".join(sorted({value for value in values if value}))


def _policy(script: str) -> str:
    """Return a policy under which the page's own script runs, and nothing is fetched or sent."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"base-uri 'none'; form-action 'none'"
    )


def _text(name: str) -> str:
    return files("steerbench.report").joinpath(name).read_text(encoding="utf-8")
