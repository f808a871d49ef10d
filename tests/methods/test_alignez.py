"""AlignEZ against its formulas written out naively, one prompt and one position at a time."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from thorough import mostly_slow
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from steerbench import Decoding, Example, FitContext, LanguageModel, SteerbenchError, Steering, generate, load
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Gated, Site
from steerbench.learn import Contrast, Pair, Tokens, fit_ccs, response_logits, self_generated
from steerbench.learn.self_generation import SelfGenerated

QUERIES = ["Hi", "Why?", "How do I bake?", "Tell me.", "Who?", "Sing", "Is tea hot?", "Count."]
PROMPTS = ["Hello", "What is it?", "A", "Run 3 miles!", "Who?"]
"""They differ in the layers and in the directions that act on them."""
GREEDY = Decoding(max_new_tokens=6)
STRONG: dict[str, Any] = {"strength": 3.0, "n_layers": 2}
Move = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def written() -> FitContext:
    """A context in which the model has written its pairs."""
    examples = [Example(str(i), str(i), user(q), "Yes.", "No.") for i, q in enumerate(QUERIES)]
    lm = tiny.language_model("llama")
    return FitContext(lm=lm, examples=examples, reward=tiny.VowelReward(), decoding=GREEDY, batch_size=1)


def fit(context: FitContext, **fields: Any) -> tuple[Steering, dict[str, Any]]:
    """With the published step unless another is given."""
    own = replace(context, report={})
    published: dict[str, Any] = {"n_queries": 8, "relative_norm": None}
    return load("methods", "alignez")(**(published | fields)).fit(own), own.report


def directions(steering: Steering) -> dict[int, Tensor]:
    """Layer -> directions, (k, width)."""
    found = {}
    for placed in steering.edits:
        assert isinstance(placed.edit, Gated)
        assert placed.site.layer is not None
        found[placed.site.layer] = placed.edit.directions
    return found


def prompts(lm: LanguageModel) -> list[Tokens]:
    """Return ragged prompts with ragged responses."""
    return [Tokens(lm.tokens(user(p)).prompt, tuple(range(60, 61 + i))) for i, p in enumerate(PROMPTS)]


# The naive form


def run(lm: LanguageModel, ids: Sequence[int], site: str, moves: Mapping[int, Move], first: int) -> Any:
    """Return the logits and, layer by layer, the states at a site, with the moves made from position `first` on."""
    seen: dict[int, Tensor] = {}
    handles = []
    for layer, block in enumerate(lm.model.model.layers):
        module = {"mlp_out": block.mlp, "mlp_pre": block.mlp.gate_proj, "resid_post": block}[site]

        def note(module: Any, args: Any, output: Tensor, layer: int = layer) -> Tensor:
            seen[layer] = output[0].double()
            if layer not in moves:
                return output
            rows = [moves[layer](x) if i >= first else x for i, x in enumerate(output[0].double())]
            return torch.stack(rows)[None].float()

        handles.append(module.register_forward_hook(note))
    with torch.no_grad():
        logits = lm.model(torch.tensor([list(ids)])).logits[0]
    for handle in handles:
        handle.remove()
    return logits, seen


def naive_sides(
    context: FitContext,
    *,
    site: str = "mlp_out",
    pool: str = "last_response",
    good: str = "helpful",
    bad: str = "useless",
    end_token: bool = False,
    **other: Any,
) -> dict[int, Contrast]:
    """Read every answer by itself, behind the plain query; 2 is the end token."""
    sides: list[dict[int, list[Tensor]]] = [{}, {}]
    for pair in (generated.pair for generated in self_generated(context, good, bad, 8).kept):
        for tokens, side in zip(pair, sides, strict=True):
            _, states = run(context.lm, tokens.prompt + tokens.response + (2,) * end_token, site, {}, 0)
            for layer, h in states.items():
                pooled = h[-1] if pool == "last_response" else h[len(tokens.prompt) :].mean(0)
                side.setdefault(layer, []).append(pooled)
    return {layer: Contrast(torch.stack(sides[0][layer]), torch.stack(sides[1][layer])) for layer in sides[0]}


def naive_axes(rows: Iterable[Tensor], energy: float) -> Tensor:
    """Return the right singular vectors of rows that hold the energy, each toward the mean of the rows."""
    rows = list(rows)
    _, s, axes = np.linalg.svd(torch.stack(rows).numpy())
    k = next(k for k in range(1, len(s) + 1) if sum(s[:k] ** 2) >= energy * sum(s**2) * (1 - 1e-9))
    return torch.stack([axis if sum(rows) @ axis >= 0 else -axis for axis in torch.tensor(axes[:k])])


def naive_subspace(sides: Contrast, energy: float = 0.9, max_cosine: float = 0.8) -> Tensor:
    """Return the axes of the differences of pairs that differ, toward the good side."""
    return naive_axes([p - o for p, o in zip(*sides, strict=True) if p @ o <= max_cosine * p.norm() * o.norm()], energy)


def naive_ccs(context: FitContext, layer: int, sides: Contrast, **fields: Any) -> tuple[float, Tensor, str]:
    """Return the loss, the unit weight of the probe, and where it points: `good`, `bad`, or nowhere."""
    optimizer = fields.get("optimizer", "lbfgs")
    narrow = Contrast(*(side.float() for side in sides))
    probe = fit_ccs(narrow, context.generator("alignez", layer), optimizer=optimizer)
    good, bad = (float(torch.sigmoid(side.mean(0) @ probe.weight + probe.bias)) for side in narrow)
    pointed = "good" if bad < 0.5 < good else "bad" if good < 0.5 < bad else ""
    return probe.loss, normalize(probe.weight, dim=0).double(), pointed


def gate(s: Tensor, edit: str, sign: str) -> Tensor:
    if edit == "relu":
        return -s.clamp(min=0) if sign == "blind" else (-s).clamp(min=0)
    return torch.tanh(s) if edit == "tanh" else torch.ones_like(s)


def let_through(cosine: float, edit: str, sign: str) -> bool:
    if edit == "relu":
        return cosine > 0 if sign == "blind" else cosine < 0
    return cosine <= 0


def naive_gated(
    lm: LanguageModel,
    tokens: Tokens,
    rows: Mapping[int, Tensor],
    *,
    site: str = "mlp_out",
    edit: str = "tanh",
    sign: str = "fixed",
    filtered: bool = True,
    n_layers: int = 5,
    strength: float = 1.0,
) -> tuple[Tensor, dict[int, list[int]]]:
    """Return the logits of the response, and for the layers chosen which of their directions act."""
    _, seen = run(lm, tokens.prompt, site, {}, 0)
    queries = {layer: seen[layer][-1] / seen[layer][-1].norm() for layer in rows}
    open_ = {
        layer: [j for j, t in enumerate(rows[layer]) if not filtered or let_through(float(q @ t), edit, sign)]
        for layer, q in queries.items()
    }
    scores = {layer: float((rows[layer][open_[layer]] @ q).square().sum().sqrt()) for layer, q in queries.items()}
    chosen = sorted(scores, key=lambda layer: -scores[layer])[:n_layers]

    def move(layer: int) -> Move:
        def moved(x: Tensor) -> Tensor:
            for t in rows[layer][open_[layer]]:
                x = x + strength * gate(x @ t, edit, sign) * t
            return x

        return moved

    start = len(tokens.prompt) - 1
    logits, _ = run(lm, tokens.prompt + tokens.response, site, {layer: move(layer) for layer in chosen}, start)
    return logits[start:-1], {layer: open_[layer] for layer in chosen}


def logits(lm: LanguageModel, steering: Steering, tokens: Sequence[Tokens], batch_size: int = 4) -> list[Tensor]:
    found = dict(response_logits(lm, tokens, steering, batch_size=batch_size))
    return [found[i] for i in range(len(tokens))]


def assert_close(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-3)


# Version 2

GATED: list[dict[str, Any]] = [
    {},
    {"edit": "relu"},
    {"edit": "add"},
    {"sign": "blind"},
    {"sign": "blind", "edit": "relu"},
    {"sign": "blind", "edit": "add"},
    {"filtered": False},
    {"filtered": False, "edit": "relu"},
    {"site": "mlp_pre"},
    {"site": "resid_post", "n_layers": 1},
    {"pool": "response_mean"},
    {"identify": "ccs"},
    {"identify": "ccs", "edit": "relu"},
    {"identify": "ccs", "edit": "relu", "sign": "blind"},
    {"identify": "ccs", "edit": "add", "optimizer": "adamw"},
    {"end_token": True},
    {"energy": 0.5, "n_layers": 3},
    {"max_cosine": 0.1, "edit": "add"},
]


def naive_rows(context: FitContext, fields: Mapping[str, Any], fitted: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Return the directions of each layer toward the good side; under sign=blind each with the sign it was given."""
    sides = naive_sides(context, **fields)
    if fields.get("identify") == "ccs":
        probes = {layer: naive_ccs(context, layer, s, **fields)[1:] for layer, s in sides.items()}
        if fields.get("sign") == "blind":
            return {layer: weight[None] for layer, (weight, _) in probes.items()}
        return {layer: -w[None] if pointed == "bad" else w[None] for layer, (w, pointed) in probes.items() if pointed}
    given = {name: fields[name] for name in ("energy", "max_cosine") if name in fields}
    rows = {layer: naive_subspace(s, **given) for layer, s in sides.items()}
    if fields.get("sign") == "blind":
        return {layer: t * (t * fitted[layer].double()).sum(1, keepdim=True).sign() for layer, t in rows.items()}
    return rows


@pytest.mark.parametrize("fields", mostly_slow(GATED, lambda fields: fields in (GATED[0], GATED[-1])), ids=str)
def test_version_2_is_its_formula(written: FitContext, fields: dict[str, Any]) -> None:
    fields = STRONG | {"edit": "tanh"} | fields
    steering, _ = fit(written, **fields)
    fitted, tokens = directions(steering), prompts(written.lm)
    rows = naive_rows(written, fields, fitted)
    turned = -1 if fields.get("edit") == "relu" and fields.get("sign") != "blind" else 1
    for layer, t in rows.items():
        torch.testing.assert_close(fitted[layer], turned * t.float(), rtol=1e-2, atol=1e-3)
    rows = {layer: turned * fitted[layer].double() for layer in rows}
    options = {
        k: v
        for k, v in fields.items()
        if k not in ("identify", "pool", "energy", "max_cosine", "optimizer", "end_token")
    }
    expected = [naive_gated(written.lm, t, rows, **options) for t in tokens]
    assert_close(logits(written.lm, steering, tokens), [e for e, _ in expected])
    base = logits(written.lm, Steering(), tokens)
    assert sum(not torch.allclose(a, b, atol=1e-2) for a, (b, _) in zip(base, expected, strict=True)) > 2
    assert [p.site for p in steering.edits] == [Site(fields.get("site", "mlp_out"), layer) for layer in rows]
    assert {p.scope for p in steering.edits} == {"response"}


@pytest.mark.parametrize("edit", ["tanh", "relu", "add"])
def test_generation_is_the_formula_at_each_token(written: FitContext, edit: str) -> None:
    """Greedy and without a cache, one prompt at a time."""
    steering, _ = fit(written, edit=edit, **STRONG)
    rows = naive_rows(written, {}, {})
    acting: list[dict[int, list[int]]] = []
    found = generate(written.lm, [user(p) for p in PROMPTS], steering, GREEDY, batch_size=4)
    for prompt, response in zip(PROMPTS, found, strict=True):
        tokens = written.lm.tokens(user(prompt))
        for step in range(len(response.ids)):
            asked = Tokens(tokens.prompt, (*response.ids[:step], 0))
            scored, active = naive_gated(written.lm, asked, rows, edit=edit, **STRONG)
            assert int(scored[-1].argmax()) == response.ids[step]
        acting.append(active)
    assert len({tuple(sorted(active)) for active in acting}) > 1
    assert len({str(active) for active in acting}) > 2
    assert found != generate(written.lm, [user(p) for p in PROMPTS], decoding=GREEDY)


@pytest.mark.parametrize(
    "fields",
    mostly_slow(({}, {"edit": "relu"}, {"identify": "ccs", "edit": "add"}, {"version": 1}), lambda fields: not fields),
    ids=str,
)
def test_a_batch_is_its_rows_and_off_is_off(written: FitContext, fields: dict[str, Any]) -> None:
    tokens = prompts(written.lm)
    steering, _ = fit(written, **(STRONG | fields))
    assert_close(logits(written.lm, steering, tokens, 4), logits(written.lm, steering, tokens, 1))
    off, _ = fit(written, **(STRONG | fields | {"strength": 0.0}))
    for a, b in zip(logits(written.lm, off, tokens), logits(written.lm, Steering(), tokens), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
def test_the_step_is_a_share_of_the_mean_length_of_the_states(written: FitContext, site: str) -> None:
    steering, _ = fit(written, relative_norm=0.3, site=site)
    sides = naive_sides(written, site=site)
    for placed in steering.edits:
        assert isinstance(placed.edit, Gated)
        rows = [row.norm() for side in sides[placed.site.layer or 0] for row in side]
        assert placed.edit.step == pytest.approx(0.3 * float(sum(rows)) / len(rows), rel=1e-4)
    assert {p.edit.step for p in fit(written, site=site)[0].edits if isinstance(p.edit, Gated)} == {1.0}


def test_swapped_sides_flip_directions_and_change_what_is_let_through(
    written: FitContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted = directions(fit(written)[0])
    kept = [g._replace(pair=Pair(*g.pair[::-1])) for g in self_generated(written, n_queries=8).kept]
    monkeypatch.setattr("steerbench.methods.alignez.self_generated", lambda *args: SelfGenerated(kept, {}))
    swapped = directions(fit(written)[0])
    for layer, t in fitted.items():
        torch.testing.assert_close(swapped[layer], -t)
        (query,) = written.activations(Site("mlp_out", layer), prompts(written.lm)[:1], "last_prompt")
        one, two = (Gated(rows).begin(query[None], torch.tensor([True])) for rows in (t, -t))
        assert torch.equal(one, 1 - two)


@pytest.mark.parametrize("fields", [{}, {"identify": "ccs"}, {"site": "mlp_pre", "energy": 1.0}], ids=str)
def test_directions_are_orthonormal_and_lean_to_the_good_side(written: FitContext, fields: dict[str, Any]) -> None:
    fitted = directions(fit(written, edit="tanh", **fields)[0])  # relu has them turned around
    for layer, sides in naive_sides(written, **fields).items():
        t = fitted[layer].double()
        torch.testing.assert_close(t @ t.T, torch.eye(len(t)).double(), rtol=0, atol=1e-5)
        different = cosine_similarity(*sides) <= 0.8
        assert ((sides.differences[different] @ t.T).mean(0) > -1e-5).all()


@pytest.mark.parametrize(("fields", "side"), [({}, 1), ({"edit": "tanh"}, -1)])
def test_the_default_leaves_the_bad_side_and_the_published_edit_goes_further_to_it(
    written: FitContext, fields: dict[str, Any], side: int
) -> None:
    """Behind the filter a query leans to the bad side of every direction that acts; its state is moved."""
    for placed in fit(written, **fields)[0].edits:
        assert isinstance(placed.edit, Gated)
        good = placed.edit.directions if fields else -placed.edit.directions
        state = -good.sum(0, keepdim=True)
        acting = placed.edit.begin(state, torch.tensor([True]))
        moved = (placed.edit(state[:, None], acting)[:, 0] - state) @ good.T
        assert (side * moved > 0.1).all()


def test_a_random_basis_of_equal_size_takes_the_same_way_to_another_end(written: FitContext) -> None:
    steering, _ = fit(written, **STRONG)
    tokens, draw = prompts(written.lm), torch.Generator().manual_seed(0)
    rows = {
        layer: torch.linalg.qr(torch.randn(t.T.shape, generator=draw)).Q.T for layer, t in directions(steering).items()
    }
    edits = [replace(p, edit=Gated(rows[i], 3.0, contest="control", keep=2)) for i, p in enumerate(steering.edits)]
    control = Steering(edits=tuple(edits))
    found = logits(written.lm, control, tokens)
    doubles = {layer: t.double() for layer, t in rows.items()}
    assert_close(found, [naive_gated(written.lm, t, doubles, **STRONG)[0] for t in tokens])
    for other in (steering, Steering()):
        pairs = zip(found, logits(written.lm, other, tokens), strict=True)
        assert not any(torch.allclose(a, b, atol=1e-2) for a, b in pairs)


# Version 1


def naive_elbow(losses: Mapping[int, float]) -> list[int]:
    order = sorted(losses, key=lambda layer: losses[layer])
    means = [sum(losses[layer] for layer in order[:j]) / j for j in range(1, len(order) + 1)]
    rises = [b - a for a, b in pairwise(means)]
    return order[: rises.index(max(rises)) + 1]


def one_way(x: Tensor, t: Tensor, *, both: bool) -> Tensor:
    """Return the component of a state along a unit vector, or 0 if it leans away."""
    s = x @ t
    return s * t if both or s > 0 else 0 * t


ONE: list[dict[str, Any]] = [
    {},
    {"sign": "blind"},
    {"matrix": "classes"},
    {"matrix": "classes", "sign": "blind"},
    {"identify": "ccs"},
    {"identify": "ccs", "site": "mlp_pre"},
    {"identify": "ccs", "good": "kind", "bad": "rude", "seed": 1},  # one of two below the elbow does not tell
    {"identify": "ccs", "sign": "blind", "seed": 1},  # one of two points to the bad side
]


@pytest.mark.parametrize("fields", mostly_slow(ONE, lambda fields: fields == ONE[0]), ids=str)
def test_version_1_is_its_formula(written: FitContext, fields: dict[str, Any]) -> None:
    context = replace(written, seed=fields.get("seed", 3))
    options = {name: value for name, value in fields.items() if name != "seed"}
    blind, site = fields.get("sign") == "blind", fields.get("site", "mlp_out")
    steering, report = fit(context, version=1, strength=0.8, **options)
    sides = naive_sides(context, **options)
    probes = {layer: naive_ccs(context, layer, s, **options) for layer, s in sides.items()}
    assert report["ccs_losses"] == pytest.approx([loss for loss, *_ in probes.values()], rel=1e-2)
    assert report["layers"] == naive_elbow({layer: loss for layer, (loss, *_) in probes.items()})
    fitted = {p.site.layer: p.edit for p in steering.edits}
    moves: dict[int, Move] = {}
    for layer in report["layers"]:
        _, weight, pointed = probes[layer]
        if fields.get("identify") != "ccs":
            toward = naive_axes(sides[layer].differences, 0.0)[0]
        elif pointed == "bad" or (pointed and not blind):
            toward = weight if pointed == "good" else -weight
        else:
            continue
        axes = [naive_axes(side, 0.0)[0] for side in sides[layer][::-1]]
        expected = axes if fields.get("matrix") == "classes" else [-toward, toward]
        found = [torch.as_tensor(getattr(fitted[layer], name)).double() for name in ("remove", "boost")]
        torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-2, atol=1e-3)

        def move(x: Tensor, remove: Tensor = found[0], boost: Tensor = found[1]) -> Tensor:
            x = x - 0.8 * one_way(x, remove, both=blind)
            return x + 0.8 * one_way(x, boost, both=blind)

        moves[layer] = move
    assert [p.site for p in steering.edits] == [Site(site, layer) for layer in moves]
    tokens = prompts(written.lm)
    whole = [run(written.lm, t.prompt + t.response, site, moves, len(t.prompt) - 1)[0] for t in tokens]
    naive = [rows[len(t.prompt) - 1 : -1] for t, rows in zip(tokens, whole, strict=True)]
    assert_close(logits(written.lm, steering, tokens), naive)


def test_where_no_probe_points_to_the_bad_side_the_user_is_told(written: FitContext) -> None:
    """Documents a failure of the published form, which uses no others."""
    with pytest.raises(SteerbenchError, match="no layer tells good answers from bad ones"):
        fit(replace(written, seed=3), version=1, identify="ccs", sign="blind")
