"""The reference of what methods and tasks are given and give, made from docstrings.

`python -m steerbench.contract.interface_page docs` writes it into the two pages on writing methods and tasks.
"""

import argparse
import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import FunctionType

from steerbench.lazy_names import homes
from steerbench.records.markdown import table_line, write_between

START, END = "<!-- interface: written by make interface -->", "<!-- end of interface -->"
PAGES = {
    "writing_methods.md": {
        "steerbench": "Steerer FitContext Steering LanguageModel Reward",
        "steerbench.learn": (
            "Rollout Response Pair Tokens Pool PairSource contrast contrasts Contrast difference_of_means "
            "principal_difference singular_directions at_relative_norm middle_layer block_at Condition PromptClass "
            "prompt_class prompt_states held_out_measures best_threshold label_scores States "
            "train_edits EditTraining TrainedEdits Trial leaf DPO BidirectionalDPO ScaledSimPO imitation "
            "Range Whole Count Positive NotNegative Share Layer Heads"
        ),
        "steerbench.edits": (
            "Site PlacedEdit Scope Edit PerPosition RankedEdit Gate GatePool ConditionGate Add AddInFront Ablate Gated "
            "Transport Rotate PromptPart Instruction Shown AskedPart Routed LogitsPart Reweighting Step Twin "
            "DecodePart Blocks Candidate rewards_of bound_of pick DecodingContext Companion"
        ),
    },
    "writing_tasks.md": {
        "steerbench": "Task Example",
        "steerbench.data": "Dialogue Turn user parse_hh text_field field_of Unusable TaskData load_data Range",
    },
}
"""For each page the names of each namespace that it explains, in their order."""


def reference(page: str) -> str:
    """Return what a page says of every name, in Markdown."""
    named = [(namespace, name) for namespace, names in PAGES[page].items() for name in names.split()]
    return "\n\n".join(_section(namespace, name) for namespace, name in named)


def _section(namespace: str, name: str) -> str:
    thing = getattr(importlib.import_module(namespace), name)
    if not isinstance(thing, type | FunctionType):
        return _alias(namespace, name)
    node = ast.parse(dedent(inspect.getsource(thing))).body[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef)
    head = [f"### {name}", f"`from {namespace} import {name}`"]
    if isinstance(node, ast.FunctionDef):
        return "\n\n".join([*head, f"`{_signature(node)}`", inspect.cleandoc(ast.get_docstring(node) or "")])
    rows = [table_line([f"`{label}`", text]) for label, text in members(node)]
    table = ["\n".join([table_line(["", ""]), table_line(["---", "---"]), *rows])] if rows else []
    return "\n\n".join([*head, ast.get_docstring(node) or "", *table])


def _alias(namespace: str, name: str) -> str:
    """Return the section of a name that stands for a type, with the text below its assignment."""
    home = importlib.import_module(homes(namespace)[name])
    body = ast.parse(inspect.getsource(home)).body
    (at,) = (i for i, node in enumerate(body) if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name)
    heads = [f"### {name}", f"`from {namespace} import {name}`", f"`{ast.unparse(body[at])}`"]
    return "\n\n".join([*heads, inspect.cleandoc(_text_at(body, at + 1))])


def members(cls: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the public fields, properties and functions of a class, as they are written, and what they are."""
    for i, node in enumerate(cls.body):
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_"):
            value = f" = {ast.unparse(node.value)}" if node.value and "field(" not in ast.unparse(node.value) else ""
            label = f"{ast.unparse(node.target)}: {_type(node.annotation)}{value}"
            yield label, " ".join(_text_at(cls.body, i + 1).split())
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            kinds = {ast.unparse(decorator) for decorator in node.decorator_list}
            label = (
                f"{node.name}: {_type(node.returns)}" if kinds & {"property", "cached_property"} else _signature(node)
            )
            yield label, " ".join((ast.get_docstring(node) or "").split())


def _signature(node: ast.FunctionDef) -> str:
    for argument in node.args.args:
        argument.annotation = argument.annotation and ast.Name(_type(argument.annotation))
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix("cls").removeprefix(", ")
    return f"{node.name}({arguments}) -> {_type(node.returns)}"


def _type(node: ast.expr | None) -> str:
    return ast.unparse(node).strip("'") if node else ""


def _text_at(body: list[ast.stmt], i: int) -> str:
    """Return the text that stands alone at a place of a body; empty if there is none."""
    node = body[i] if i < len(body) else None
    alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return str(node.value.value) if alone else ""  # type: ignore[union-attr]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the reference of what methods and tasks are given and give.")
    parser.add_argument("folder", type=Path, help="folder with the two pages, such as docs")
    folder = parser.parse_args().folder
    for page in PAGES:
        write_between(folder / page, START, END, reference(page))
