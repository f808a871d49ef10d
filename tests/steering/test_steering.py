"""A steering is a value: it composes, hashes, and comes back from its files as it was; files are never code."""

import json
import random
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from steerbench import Decoding, LanguageModel, Reward, SteerbenchError, Steering, add_plugin, generate
from steerbench.data import Dialogue, user
from steerbench.edits import (
    Ablate,
    Add,
    AddInFront,
    Ascent,
    Edit,
    Gated,
    PerPosition,
    PlacedEdit,
    RemoveBoost,
    Site,
)
from steerbench.learn import Tokens, log_probs
from steerbench.plugins import registry
from steerbench.progress import Progress, silent

PLUGIN = '''
    """One part of each kind."""
    from collections.abc import Mapping
    from dataclasses import dataclass
    from typing import Any, ClassVar
    import torch
    from transformers import LogitsProcessor
    from steerbench import Steerer, Steering
    from steerbench.data import Turn
    from steerbench.edits import DecodePart, Edit, LogitsPart, PromptPart

    class Prefix(PromptPart):
        def __init__(self, text, examples):
            self.text, self.examples = text, examples
        def __call__(self, dialogue):
            return (Turn("system", self.text + str(self.examples)), *dialogue)

    class Mix(Edit):
        """h + sum of w_i v_i, then times a scale; the number of vectors is free."""
        def __init__(self, vectors, weights, scale, note=None):
            super().__init__()
            self.n = len(vectors)
            for i, vector in enumerate(vectors):
                self.register_buffer(f"v{i}", vector)
            self.register_buffer("weights", weights)
            self.scale, self.note = scale, note
        @property
        def vectors(self):
            return [getattr(self, f"v{i}") for i in range(self.n)]
        def forward(self, h, state):
            for weight, vector in zip(self.weights, self.vectors):
                h = h + weight * vector
            return h * self.scale

    class Flip(Edit):
        def forward(self, h, state):
            return -h

    class Bias(LogitsPart):
        def __init__(self, bias):
            self.bias = bias
        def processor(self, lm, prompt_ids, mask):
            part = self
            class Processor(LogitsProcessor):
                def __call__(self, input_ids, scores):
                    return scores + part.bias
            return Processor()

    class Best(DecodePart):
        def __init__(self, candidates, worst):
            self.candidates, self.worst = candidates, worst
        def choose(self, dialogue, candidates, reward):
            scores = reward.score([dialogue] * len(candidates), candidates)
            return int(scores.argmin() if self.worst else scores.argmax())

    @dataclass
    class Pick(DecodePart):
        candidates: int
        def __post_init__(self):
            if self.candidates < 1:
                raise ValueError("give 1 or more")
        def choose(self, dialogue, candidates, reward):
            return 0

    @dataclass(frozen=True, kw_only=True)
    class Toy(Steerer):
        off: ClassVar[Mapping[str, Any]] = {}
        def fit(self, context):
            return Steering()
'''
DIALOGUES = [user("Hi"), user("How do I bake a cake?")]
SAMPLED = Decoding(max_new_tokens=6, temperature=1.0)


class Length(Reward):
    name, revision = "length", "1"

    def score(self, dialogues: Any, responses: Any, progress: Progress = silent) -> Tensor:
        return torch.tensor([float(sum(map(ord, r))) for r in responses])


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a plugin's module with a part of each kind."""
    monkeypatch.setattr(registry, "_files", {})
    (tmp_path / "toy_parts.py").write_text(textwrap.dedent(PLUGIN))
    add_plugin(tmp_path / "toy_parts.py")
    yield sys.modules["steerbench_plugins.toy_parts"]
    del sys.modules["steerbench_plugins.toy_parts"]


def add(value: float = 1.0, strength: float = 1.0, layer: int = 1, scope: Any = "response") -> Steering:
    return Steering(edits=(PlacedEdit(Site("resid_post", layer), Add(torch.full((32,), value), strength), scope),))


def rich(parts: Any) -> Steering:
    """Return a steering with every part, shared memory and more than ten tensors in a list."""
    matrix = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    mix = parts.Mix(list(matrix), torch.linspace(-1, 1, 12), 1.5, {"layers": [1, 2], "on": True, "name": "né"})
    return Steering(
        prompt=(parts.Prefix("Be kind. ", ["a", 1, None]),),
        edits=(
            PlacedEdit(Site("resid_post", 0), mix, "all"),
            PlacedEdit(Site("final"), Add(matrix[3].bfloat16(), 0.25), "response"),
            PlacedEdit(Site("resid_post", 0), mix, "prompt"),
        ),
        logits=(parts.Bias(torch.linspace(0, 2, 259)), parts.Bias(0.5)),
        decode=parts.Best(3, worst=True),
    )


def test_composition_keeps_the_order_and_is_associative(parts: Any) -> None:
    a, b, c = rich(parts), add(2.0), add(3.0) + Steering(logits=(parts.Bias(1),), prompt=(parts.Prefix("x", []),))
    assert ((a + b) + c) == (a + (b + c))
    assert (a + b).edits == a.edits + b.edits
    assert (b + a).edits == b.edits + a.edits
    assert (a + c).prompt == a.prompt + c.prompt
    assert (a + c).logits == a.logits + c.logits
    assert (a + c).decode is (c + a).decode is a.decode


def test_unsteered_is_the_identity(parts: Any) -> None:
    steering = rich(parts)
    assert Steering() + steering == steering + Steering() == steering
    assert (Steering() + steering).digest() == steering.digest()


def test_two_ways_to_choose_cannot_be_joined(parts: Any) -> None:
    with pytest.raises(SteerbenchError, match="each choose among candidates"):
        rich(parts) + rich(parts)


def test_order_matters_where_it_should(llama: LanguageModel, parts: Any) -> None:
    double = Steering(
        edits=(PlacedEdit(Site("resid_post", 1), parts.Mix([torch.zeros(32)], torch.ones(1), 2.0), "all"),)
    )
    tokens = [Tokens((5, 6), (7, 8))]
    first, second = (log_probs(llama, tokens, s)[0] for s in (add() + double, double + add()))
    assert not torch.allclose(first, second)


def test_prompts_apply_in_order(parts: Any) -> None:
    steering = Steering(prompt=(parts.Prefix("inner", []),)) + Steering(prompt=(parts.Prefix("outer", []),))
    assert [t.text for t in steering.apply_prompt(user("Hi"))] == ["outer[]", "inner[]", "Hi"]
    assert Steering().apply_prompt(user("Hi")) == user("Hi")


def test_a_steering_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        add().edits = ()  # type: ignore[misc]


def test_unknown_scope() -> None:
    with pytest.raises(SteerbenchError, match=r"unknown scope 'responses'\. Did you mean 'response'"):
        add(scope="responses")


def test_a_loaded_steering_generates_the_same(llama: LanguageModel, parts: Any, tmp_path: Path) -> None:
    steering = rich(parts)
    steering.save(tmp_path / "new" / "folder")
    loaded = Steering.load(tmp_path / "new" / "folder")
    assert loaded.digest() == steering.digest()
    assert [(p.site, p.scope) for p in loaded.edits] == [(p.site, p.scope) for p in steering.edits]
    saved: Any = steering.edits[0].edit
    back: Any = loaded.edits[0].edit
    assert torch.equal(torch.stack(back.vectors), torch.stack(saved.vectors))
    assert (back.note, back.scale) == (saved.note, saved.scale)
    assert loaded.decode is not None
    for seed in (0, 1):
        first, second = (generate(llama, DIALOGUES, s, SAMPLED, seed=seed, reward=Length()) for s in (steering, loaded))
        assert first == second
    assert first != generate(llama, DIALOGUES, decoding=SAMPLED, seed=1)


def test_saving_twice_gives_the_same_bytes(parts: Any, tmp_path: Path) -> None:
    rich(parts).save(tmp_path / "a")
    Steering.load(tmp_path / "a").save(tmp_path / "b")
    for name in (Steering.JSON, Steering.TENSORS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_empty_steering_round_trips(tmp_path: Path) -> None:
    Steering().save(tmp_path)
    assert Steering.load(tmp_path) == Steering()


def test_a_steering_joined_with_itself_can_be_saved(tmp_path: Path) -> None:
    (add() + add()).save(tmp_path)
    both = add(3.0)
    (both + both).save(tmp_path)
    assert Steering.load(tmp_path).digest() == (both + both).digest() == (add(3.0) + add(3.0)).digest()


def test_every_value_is_in_the_digest(parts: Any) -> None:
    nearly = torch.full((32,), 1.0)
    nearly[31] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    variants = [
        Steering(),
        add(),
        add(2.0),
        add(strength=0.5),
        add(layer=2),
        add(scope="all"),
        add() + add(),
        Steering(edits=(PlacedEdit(Site("attn_out", 1), Add(torch.full((32,), 1.0))),)),
        Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(nearly)),)),
        Steering(edits=(PlacedEdit(Site("resid_post", 1), Add(torch.full((31,), 1.0))),)),
        add() + add(2.0),
        add(2.0) + add(),
        Steering(prompt=(parts.Prefix("a", []),)),
        Steering(prompt=(parts.Prefix("b", []),)),
        Steering(prompt=(parts.Prefix("a", [1]),)),
        Steering(logits=(parts.Bias(1.0),)),
        Steering(logits=(parts.Bias(torch.tensor(1.0)),)),
        Steering(decode=parts.Best(2, False)),
        Steering(decode=parts.Best(2, True)),
        Steering(decode=parts.Best(3, True)),
    ]
    digests = [s.digest() for s in variants]
    assert len(set(digests)) == len(variants)
    assert add().digest() == add().digest()


def test_a_part_outside_of_a_plugin_cannot_be_saved() -> None:
    class Local(Edit):
        def forward(self, h: Tensor, state: Any) -> Tensor:
            return h

    with pytest.raises(SteerbenchError, match="cannot be saved"):
        Steering(edits=(PlacedEdit(Site("final"), Local()),)).digest()


def test_a_part_without_arguments_round_trips(tmp_path: Path, parts: Any) -> None:
    steering = Steering(edits=(PlacedEdit(Site("final"), parts.Flip()),))
    steering.save(tmp_path)
    assert Steering.load(tmp_path).digest() == steering.digest()


def edit_of(record: Any) -> Any:
    return record["edits"][0]["edit"]


def spoil(change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Return a function that applies a change to the JSON of a saved steering."""

    def write(folder: Path) -> None:
        record = json.loads((folder / Steering.JSON).read_text())
        replaced = change(record)
        (folder / Steering.JSON).write_text(json.dumps(record if replaced is None else replaced))

    return write


def without_tensors(folder: Path) -> None:
    save_file({}, folder / Steering.TENSORS)


def with_a_stranger(folder: Path) -> None:
    path = folder / Steering.TENSORS
    save_file(load_file(path) | {"edits.0.stranger": torch.ones(1)}, path)


SPOILED: dict[str, Callable[[Path], Any]] = {
    "no json": lambda f: (f / Steering.JSON).unlink(),
    "no tensors": lambda f: (f / Steering.TENSORS).unlink(),
    "half json": lambda f: (f / Steering.JSON).write_text('{"schema_version": 1,'),
    "binary json": lambda f: (f / Steering.JSON).write_bytes(b"\xff\xfe\x00"),
    "garbage tensors": lambda f: (f / Steering.TENSORS).write_bytes(b"\x80\x04garbage" * 9),
    "empty tensors": lambda f: (f / Steering.TENSORS).write_bytes(b""),
    "tensor missing": without_tensors,
    "tensor too many": with_a_stranger,
    "a list": spoil(lambda r: [1, 2]),
    "null": spoil(lambda r: "steering"),
    "old schema": spoil(lambda r: r.update(schema_version=0)),
    "new schema": spoil(lambda r: r.update(schema_version=2)),
    "no schema": spoil(lambda r: r.pop("schema_version") and None),
    "no edits": spoil(lambda r: r.pop("edits") and None),
    "edits no list": spoil(lambda r: r.update(edits=7)),
    "site": spoil(lambda r: r["edits"][0].update(site="resid_post.x")),
    "unknown site": spoil(lambda r: r["edits"][0].update(site="nowhere.1")),
    "scope": spoil(lambda r: r["edits"][0].update(scope="everything")),
    "value too many": spoil(lambda r: edit_of(r)["values"].update(foo=1)),
    "values no object": spoil(lambda r: edit_of(r).update(values=3)),
    "class no text": spoil(lambda r: edit_of(r).update({"class": 3})),
    "part of another kind": spoil(lambda r: r.update(prompt=[edit_of(r)])),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_refused(tmp_path: Path, name: str) -> None:
    add().save(tmp_path)
    SPOILED[name](tmp_path)
    with pytest.raises(SteerbenchError):
        Steering.load(tmp_path)


def ascent() -> Ascent:
    torch.manual_seed(0)
    weights = [torch.randn(4, 3), torch.randn(4, 4), torch.randn(1, 4)]
    return Ascent(weights, [torch.randn(4), torch.randn(4), torch.randn(1)], 0.5, 3)


def gallery(parts: Any) -> Steering:
    """Return a steering with each of our edits, and parts of a plugin."""
    one, two = torch.tensor([1.0, 2, 3]), torch.tensor([3.0, 1, 2])
    edits = [Add(one), AddInFront(one[None]), Ablate(one), RemoveBoost(one, two), Gated(torch.eye(3)[:2]), ascent()]
    placed = tuple(PlacedEdit(Site("resid_post", 1), edit) for edit in edits)
    return Steering((parts.Prefix("x", ["a"]),), placed, (parts.Bias(one),), parts.Pick(3))


def with_tensor(name: str, tensor: Tensor) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / Steering.TENSORS
        save_file(load_file(path) | {name: tensor}, path)

    return write


def with_value(edit: int, **values: Any) -> Callable[[Path], None]:
    return spoil(lambda r: r["edits"][edit]["edit"]["values"].update(values))


MISFITS: dict[str, tuple[Callable[[Path], None], str]] = {
    "two dimensions": (with_tensor("edits.0.vector", torch.ones(2, 3)), r"edits\.0 .*Add: vector is .*\(2, 3\)"),
    "integers": (with_tensor("edits.0.vector", torch.ones(3).long()), r"edits\.0 .*int64"),
    "no number": (with_tensor("edits.0.vector", torch.tensor([1, torch.nan])), r"edits\.0 .*vector holds NaN"),
    "infinite": (with_tensor("edits.2.direction", torch.tensor([1, torch.inf])), r"edits\.2 .*direction holds an inf"),
    "empty": (with_tensor("edits.1.vectors", torch.ones(0, 3)), r"edits\.1 .*vectors .*\(0, 3\)"),
    "two widths": (with_tensor("edits.3.boost", torch.ones(4)), r"edits\.3 .*RemoveBoost: remove has the shape"),
    "a broken chain": (with_tensor("edits.5.weights.1", torch.ones(4, 5)), r"edits\.5 .*weights\[0\] has 4 outputs"),
    "a bias too long": (with_tensor("edits.5.biases.2", torch.ones(2)), r"edits\.5 .*biases\[2\] 2, not 1"),
    "text for a number": (with_value(0, strength="1"), r"edits\.0 .*strength is '1', not float"),
    "no number as a value": (with_value(0, strength=float("nan")), r"edits\.0 .*strength holds NaN"),
    "beyond float32": (with_value(0, strength=1e39), r"edits\.0 .*strength holds a number that is too large"),
    "a broken number": (with_value(5, n_steps=1.5), r"edits\.5 .*n_steps is 1\.5, not int"),
    "a number for a switch": (with_value(3, one_sided=1), r"edits\.3 .*one_sided is 1, not bool"),
    "an unknown form": (with_value(4, form="sine"), r"edits\.4 .*form is 'sine', not typing\.Literal"),
    "a tensor for a value": (with_tensor("edits.0.strength", torch.ones(1)), "strength is there as a tensor and as a"),
    "a gap": (with_tensor("edits.5.weights.7", torch.ones(1, 4)), r"edits\.5 .*weights\.3"),
    "a stray tensor": (with_tensor("edits.9.vector", torch.ones(3)), r"no part has the tensor 'edits\.9\.vector'"),
    "a plugin's type": (spoil(lambda r: r["decode"]["values"].update(candidates="3")), "decode .*candidates is '3'"),
    "a plugin's check": (spoil(lambda r: r["decode"]["values"].update(candidates=0)), "decode .*Pick: give 1 or more"),
    "a plugin's number": (with_tensor("logits.0.bias", torch.tensor(torch.nan)), r"logits\.0 .*bias holds NaN"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_its_class_is_told_with_file_and_part(tmp_path: Path, parts: Any, name: str) -> None:
    gallery(parts).save(tmp_path)
    change, says = MISFITS[name]
    change(tmp_path)
    with pytest.raises(SteerbenchError, match=says) as caught:
        Steering.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_logits_may_be_infinite(tmp_path: Path, parts: Any) -> None:
    """A token that must not come has minus infinity."""
    steering = Steering(logits=(parts.Bias(torch.tensor([0.0, -torch.inf])),))
    steering.save(tmp_path)
    assert Steering.load(tmp_path).digest() == steering.digest()


@pytest.mark.parametrize("seed", [0, 1, 2, pytest.param(range(60, 1000), marks=pytest.mark.slow)])
def test_a_mutated_steering_is_refused_or_works(tmp_path: Path, parts: Any, seed: int | range) -> None:
    gallery(parts).save(tmp_path)
    text, tensors = (tmp_path / Steering.JSON).read_text(), load_file(tmp_path / Steering.TENSORS)
    for one in seed if isinstance(seed, range) else range(20 * seed, 20 * seed + 20):
        draw = random.Random(one)
        record, changed = json.loads(text), dict(tensors)
        mutate_value(draw, record) if draw.random() < 0.5 else mutate_tensor(draw, changed)
        (tmp_path / Steering.JSON).write_text(json.dumps(record))
        save_file(changed, tmp_path / Steering.TENSORS)
        try:
            steering = Steering.load(tmp_path)
        except SteerbenchError:
            continue
        use(steering)


def mutate_value(draw: random.Random, record: Any) -> None:
    """Replace one value, at any depth."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
            places.append((value, key))
            if isinstance(inner, dict | list):
                walk(inner)

    walk(record)
    holder, key = draw.choice(places)
    strange = [None, True, 0, -1, 1.5, 2**70, 1e300, float("nan"), float("inf"), "", "x", [], [1], {}, {"a": 1}]
    holder[key] = draw.choice(strange)


def mutate_tensor(draw: random.Random, tensors: dict[str, Tensor]) -> None:
    name = draw.choice(sorted(tensors))
    found = tensors[name]
    shapes = [(), (0,), (1,), (2,), (3,), (4,), (1, 3), (3, 3), (2, 2, 2)]
    change = draw.choice(["drop", "shape", "type", "nan", "name"])
    if change in ("drop", "name"):
        del tensors[name]
    if change == "shape":
        tensors[name] = torch.ones(draw.choice(shapes))
    elif change == "type":
        tensors[name] = found.to(draw.choice([torch.bool, torch.int64, torch.float64, torch.bfloat16, torch.uint8]))
    elif change == "nan":
        tensors[name] = found * draw.choice([torch.nan, torch.inf])
    elif change == "name":
        tensors[name + draw.choice([".0", "x", ".x"])] = found


def use(steering: Steering) -> None:
    """Let every edit act on states of its own width, which only the model knows."""
    for placed in steering.edits:
        edit: Any = placed.edit
        tensors = [t for name, t in edit.named_buffers() if name != "gram" and not name.startswith("bias")]
        h, mask = torch.randn(2, 5, tensors[0].shape[-1]), torch.ones(2, 5, dtype=torch.bool)
        state = edit.start(h, mask)
        state = state.columns(0, 5) if isinstance(state, PerPosition) else state
        assert edit(h, state).shape == h.shape
    steering.digest()


def test_the_schema_is_named(tmp_path: Path) -> None:
    add().save(tmp_path)
    spoil(lambda r: r.update(schema_version=2))(tmp_path)
    with pytest.raises(SteerbenchError, match="has schema 2, not 1"):
        Steering.load(tmp_path)


@pytest.mark.parametrize(
    "reference",
    [
        "os:system",
        "builtins:eval",
        "subprocess:Popen",
        "evil:Edit",
        "steerbench.steering:Edit",
        "steerbench.steering:Steering",
        "steerbench.steering:nn",
        "steerbench.edits:Nope",
        "steerbench.nope:Add",
        "steerbench.edits:Add.forward",
        "steerbench.cli:main",
        "methods/caa:CAA",
        "methods/nope:Edit",
        "methods/../evil:Edit",
        "__main__:Edit",
        "",
        ":",
    ],
)
def test_no_class_outside_of_the_registry_is_touched(
    tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path(__file__).with_name('pwned').touch()\n")
    monkeypatch.syspath_prepend(tmp_path)
    add().save(tmp_path)
    spoil(lambda r: edit_of(r).update({"class": reference, "values": {}}))(tmp_path)
    with pytest.raises(SteerbenchError):
        Steering.load(tmp_path)
    assert not (tmp_path / "pwned").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize("reference", ["methods/toy_parts:Bias", "methods/toy_parts:Prefix"])
def test_a_class_of_another_kind_is_not_constructed(tmp_path: Path, parts: Any, reference: str) -> None:
    Steering(edits=(PlacedEdit(Site("final"), parts.Flip()),)).save(tmp_path)
    values = {"name": "final"} if reference.endswith("Site") else {"text": "x", "examples": []}
    spoil(lambda r: edit_of(r).update({"class": reference, "values": values}))(tmp_path)
    with pytest.raises(SteerbenchError, match=f"{reference} is no Edit"):
        Steering.load(tmp_path)


@pytest.mark.parametrize(
    "former", ["steerbench.edits:Add", "steerbench.projections:Ablate", "steerbench.ascent:Ascent"]
)
def test_our_edits_are_saved_under_their_public_names(tmp_path: Path, former: str) -> None:
    """Wherever their files lie, and lay when the steering was saved."""
    one = torch.ones(4)
    edits: dict[str, Edit] = {"Add": Add(one), "Ablate": Ablate(one), "Ascent": Ascent([one[None]], [one[:1]], 1.0, 1)}
    steering = Steering(edits=(PlacedEdit(Site("final"), edits[name := former.partition(":")[2]]),))
    steering.save(tmp_path)
    assert edit_of(json.loads((tmp_path / Steering.JSON).read_text()))["class"] == f"steerbench.edits:{name}"
    spoil(lambda r: edit_of(r).update({"class": former}))(tmp_path)
    assert Steering.load(tmp_path).digest() == steering.digest()


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    add().save(tmp_path)
    torch.save({"edits.0.vector": torch.ones(32)}, tmp_path / Steering.TENSORS)
    with pytest.raises(SteerbenchError, match="holds no saved steering"):
        Steering.load(tmp_path)


def test_prompt_part_must_change_a_dialogue_only(llama: LanguageModel, parts: Any) -> None:
    """The seed of a draw belongs to the task's dialogue, so that methods are compared on the same draws."""
    steering = Steering(prompt=(parts.Prefix("Be kind.", []),))
    direct: Dialogue = steering.apply_prompt(DIALOGUES[0])
    greedy = Decoding(max_new_tokens=6)
    assert generate(llama, [DIALOGUES[0]], steering, greedy) == generate(llama, [direct], decoding=greedy)
