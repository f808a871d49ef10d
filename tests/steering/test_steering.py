"""A steering is a value: it composes, hashes, and comes back from its files as it was; files are never code."""

import json
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
from steerbench.edits import Ablate, Add, Ascent, Edit, PlacedEdit, Site
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
