"""Of edits that compete, the right ones act on each prompt: as chosen one prompt at a time, by the unsteered model."""

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from steerbench import Decoding, LanguageModel, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.generate import _generate_batch
from steerbench.engine.ranked import decided
from steerbench.learn import Tokens, activations, response_logits
from steerbench.models.sites import SITE_NAMES
from steerbench.steering.parts import RankedEdit

SEQUENCES = [
    Tokens((5,), (6, 7, 8)),
    Tokens((30, 9, 10, 11), (12,)),
    Tokens((13, 14), (15, 16)),
    Tokens((2, 40, 2, 17, 90), (18, 19)),
    Tokens((201, 100, 120), (21, 22, 23)),
]
FEW = Decoding(max_new_tokens=4)


class Push(RankedEdit):
    """Adds a vector where it is chosen; its score is the query's component along another one."""

    begun: ClassVar[list[tuple[str, Tensor, Tensor]]] = []

    def __init__(self, along: Tensor, vector: Tensor, contest: str = "push", keep: int = 1, name: str = "") -> None:
        super().__init__()
        self.register_buffer("along", along.float())
        self.register_buffer("vector", vector.float())
        self.contest, self.keep, self.name = contest, keep, name

    def score(self, query: Tensor) -> Tensor:
        return query @ torch.as_tensor(self.along)

    def begin(self, query: Tensor, chosen: Tensor) -> Any:
        self.begun.append((self.name, query.clone(), chosen.clone()))
        return chosen[:, None, None].float()

    def forward(self, h: Tensor, state: Any) -> Tensor:
        edited: Tensor = h + state * self.vector
        return edited


class Fail(Push):
    """Raises where its name says."""

    def score(self, query: Tensor) -> Tensor:
        self._fail("score")
        return super().score(query)

    def begin(self, query: Tensor, chosen: Tensor) -> Any:
        self._fail("begin")
        return super().begin(query, chosen)

    def forward(self, h: Tensor, state: Any) -> Tensor:
        self._fail("forward")
        return super().forward(h, state)

    def _fail(self, where: str) -> None:
        if where == self.name:
            raise KeyError(where)


@pytest.fixture(autouse=True)
def forget() -> None:
    Push.begun.clear()


def pushes(
    lm: LanguageModel, sites: Sequence[Site], keep: int = 1, contest: str = "push", scope: Any = "response"
) -> tuple[PlacedEdit, ...]:
    generator = torch.Generator().manual_seed(7)
    edits = []
    for site in sites:
        n = activations(lm, site, [Tokens((3,))], "last_prompt")[0].shape[0]
        along, vector = torch.randn(2, n, generator=generator)
        edits.append(PlacedEdit(site, Push(along, vector * 2, contest, keep, str(site)), scope))
    return tuple(edits)


def at_layers(lm: LanguageModel, name: str = "mlp_out") -> list[Site]:
    return [Site(name, layer) for layer in range(lm.n_layers)]  # type: ignore[arg-type]


def naive_winners(lm: LanguageModel, edits: Sequence[PlacedEdit], prompt: tuple[int, ...], keep: int) -> list[int]:
    """Return which edits win for one prompt: its own last state, read alone."""
    scores = []
    for p in edits:
        query = activations(lm, p.site, [Tokens(prompt)], "last_prompt")[0]
        scores.append(float((query * p.edit.along).sum()))  # type: ignore[operator]
    return sorted(range(len(edits)), key=lambda i: (-scores[i], i))[:keep]


def plain(p: PlacedEdit) -> PlacedEdit:
    """Return the edit as one that always acts."""
    return PlacedEdit(p.site, Add(p.edit.vector), p.scope)  # type: ignore[arg-type]


def logits(lm: LanguageModel, edits: Sequence[PlacedEdit], tokens: Sequence[Tokens] = SEQUENCES) -> list[Tensor]:
    found = dict(response_logits(lm, tokens, Steering(edits=tuple(edits))))
    return [found[i] for i in range(len(tokens))]


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def n_hooks(lm: LanguageModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


@pytest.mark.parametrize("keep", [1, 2])
def test_each_row_is_edited_by_the_winners_of_its_own_prompt(lm: LanguageModel, keep: int) -> None:
    edits = pushes(lm, at_layers(lm), keep)
    got = logits(lm, edits)
    winners = [naive_winners(lm, edits, t.prompt, keep) for t in SEQUENCES]
    for row, t, best in zip(got, SEQUENCES, winners, strict=True):
        close(row, logits(lm, [plain(edits[i]) for i in best], [t])[0])
    assert n_hooks(lm) == 0


def test_prompts_disagree_on_the_winner() -> None:
    """Otherwise the test above would hold for an engine that decides once for a batch."""
    chosen = []
    for family in tiny.FAMILIES:
        lm = tiny.language_model(family)
        edits = pushes(lm, at_layers(lm))
        chosen.append({naive_winners(lm, edits, t.prompt, 1)[0] for t in SEQUENCES})
    assert sum(len(winners) > 1 for winners in chosen) > len(chosen) / 2


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
def test_generation_and_scoring_choose_alike(lm: LanguageModel, use_cache: bool) -> None:
    """Left padded or right padded, cached or not: the tokens drawn are those that scoring ranks first."""
    edits = pushes(lm, [*at_layers(lm), *at_layers(lm, "resid_post")], keep=2)
    new = _generate_batch(lm, lm.left_padded(SEQUENCES), Steering(edits=edits), FEW, [], use_cache)
    given = [Tokens(t.prompt, tuple(ids)) for t, ids in zip(SEQUENCES, new, strict=True)]
    for t, row in zip(given, logits(lm, edits, given), strict=True):
        stop = next((i for i, token in enumerate(t.response) if token in lm.end_ids), len(t.response))
        assert tuple(row.argmax(-1).tolist())[:stop] == t.response[:stop]
    decoding, scoring = Push.begun[: len(edits)], Push.begun[len(edits) :]
    order = sorted(range(len(given)), key=lambda i: -sum(map(len, given[i])))  # scoring takes the longest first
    for (name, query, chosen), (again, other, others) in zip(decoding, scoring, strict=True):
        assert name == again
        close(query[order], other)
        assert torch.equal(chosen[order], others)


def test_a_batch_equals_single_prompts(lm: LanguageModel) -> None:
    steering = Steering(edits=pushes(lm, at_layers(lm), keep=2))
    dialogues = [user("Hi"), user("How do I bake a cake?"), user("")]
    together = generate(lm, dialogues, steering, FEW)
    assert together == [generate(lm, [d], steering, FEW)[0] for d in dialogues]
    assert together != generate(lm, dialogues, decoding=FEW)


@pytest.mark.parametrize("site", SITE_NAMES)
def test_the_query_is_the_unsteered_state_of_the_last_prompt_position(lm: LanguageModel, site: Any) -> None:
    """Whatever edits stand before it in the network, at its own site, or in a bias."""
    place = Site(site, None if site == "final" else 1)
    (ranked,) = pushes(lm, [place])
    before = [PlacedEdit(Site("resid_pre", 0), Add(torch.full((32,), 3.0)), "all"), plain(ranked)]
    folded = PlacedEdit(Site("attn_out", 0), Add(torch.full((32,), 3.0)), "all")
    batch = lm.left_padded(SEQUENCES)
    _generate_batch(lm, batch, Steering(edits=(*before, folded, ranked)), FEW, [], True)
    ((_, query, chosen),) = Push.begun
    assert query.dtype == torch.float32
    assert chosen.all()
    for row, t in zip(query, SEQUENCES, strict=True):
        close(row, activations(lm, place, [Tokens(t.prompt)], "last_prompt", batch_size=1)[0])


def test_the_query_is_float32_in_a_half_precision_model(llama: LanguageModel) -> None:
    edits = pushes(llama, at_layers(llama))
    llama.model.to(torch.bfloat16)
    logits(llama, edits)
    assert {query.dtype for _, query, _ in Push.begun} == {torch.float32}


@pytest.mark.parametrize("keep", [3, 100])
def test_with_room_for_all_every_edit_acts(lm: LanguageModel, keep: int) -> None:
    edits = pushes(lm, at_layers(lm), keep)
    for a, b in zip(logits(lm, edits), logits(lm, [plain(p) for p in edits]), strict=True):
        close(a, b)


def test_with_room_for_none_no_edit_acts(llama: LanguageModel) -> None:
    edits = pushes(llama, at_layers(llama), keep=0)
    assert all(torch.equal(a, b) for a, b in zip(logits(llama, edits), logits(llama, []), strict=True))


def test_contests_are_held_apart(lm: LanguageModel) -> None:
    first, second = pushes(lm, at_layers(lm), 1, "one"), pushes(lm, at_layers(lm, "attn_out"), 2, "two")
    got = logits(lm, [*first, *second])
    for row, t in zip(got, SEQUENCES, strict=True):
        acting = [first[i] for i in naive_winners(lm, first, t.prompt, 1)]
        acting += [second[i] for i in naive_winners(lm, second, t.prompt, 2)]
        close(row, logits(lm, [plain(p) for p in acting], [t])[0])


def test_edits_of_one_place_do_not_compete(llama: LanguageModel) -> None:
    """A method composed with itself: the k-th edits of all places hold one contest."""
    along, sites = torch.ones(32), (Site("resid_post", 1), Site("mlp_out", 0))
    placed = [PlacedEdit(s, Push(along, torch.ones(32), name=f"{s} {k}")) for k in (0, 1) for s in sites]
    Push.begun.clear()
    logits(llama, placed)
    acting = {name: chosen for name, _, chosen in Push.begun}
    for k in (0, 1):
        assert bool((acting[f"{sites[0]} {k}"] ^ acting[f"{sites[1]} {k}"]).all())
    assert all(torch.equal(acting[f"{s} 0"], acting[f"{s} 1"]) for s in sites)


def test_ties_go_by_the_order_of_the_steering_and_not_by_depth(llama: LanguageModel) -> None:
    """A score of zero everywhere."""
    for layers in ([0, 1, 2], [2, 0, 1]):
        Push.begun.clear()
        logits(
            llama,
            [
                PlacedEdit(Site("mlp_out", i), Push(torch.zeros(32), torch.ones(32), keep=2, name=str(i)))
                for i in layers
            ],
        )
        assert [name for name, _, chosen in Push.begun if chosen.all()] == [str(i) for i in layers[:2]]


def test_the_scopes_hold(llama: LanguageModel) -> None:
    """Of a ranked edit, too: the first response token does not see what acts behind the prompt's last position."""
    site = Site("resid_post", 1)
    for scope in ("all", "prompt", "response"):
        (ranked,) = pushes(llama, [site], scope=scope)
        for a, b in zip(logits(llama, [ranked]), logits(llama, [plain(ranked)]), strict=True):
            close(a, b)


@pytest.mark.parametrize("where", ["score", "begin", "forward"])
def test_an_exception_leaves_the_model_clean(llama: LanguageModel, where: str) -> None:
    before = logits(llama, [])
    constant = PlacedEdit(Site("z", 0), Add(torch.ones(32)), "all")
    failing = PlacedEdit(Site("mlp_out", 1), Fail(torch.ones(32), torch.ones(32), name=where))
    dialogues = [user("Hi"), user("Why?")]
    for edits in ((failing,), (constant, failing)):
        with pytest.raises(KeyError, match=where):
            generate(llama, dialogues, Steering(edits=edits), FEW)
        with pytest.raises(KeyError, match=where):
            logits(llama, edits)
        assert n_hooks(llama) == 0
    assert all(torch.equal(a, b) for a, b in zip(logits(llama, []), before, strict=True))


def test_the_contest_costs_one_pass_that_ends_at_the_last_site(llama: LanguageModel) -> None:
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda m, a, n=name: calls.append(n))
        for name, module in {"model": llama.model, "last": llama.anatomy.blocks[2]}.items()
    ]
    edits = pushes(llama, [Site("mlp_out", 0), Site("mlp_out", 1)])
    calls.clear()
    batch = llama.left_padded(SEQUENCES)
    places = [llama.anatomy.place(p.site) for p in edits]
    calls.clear()
    decided(llama.model, llama.anatomy, edits, places, batch)
    assert calls == ["model"]
    calls.clear()
    decided(llama.model, llama.anatomy, [plain(p) for p in edits], places, batch)
    assert calls == []
    for handle in handles:
        handle.remove()


def test_without_a_contest_an_edit_is_chosen_in_every_row(llama: LanguageModel) -> None:
    """As the contract suite starts it, with padding on either side."""
    (placed,) = pushes(llama, [Site("resid_post", 1)])
    prompt = torch.arange(24.0).reshape(2, 4, 3)
    state = placed.edit.start(prompt, torch.tensor([[False, True, True, False], [True, True, True, True]]))
    ((_, query, chosen),) = Push.begun
    assert query.tolist() == [prompt[0, 2].tolist(), prompt[1, 3].tolist()]
    assert chosen.tolist() == [True, True]
    assert state.flatten().tolist() == [1, 1]
