"""Reward models against a naive oracle: one unpadded text at a time through the plain modules."""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.utils import logging

from steerbench.data.dialogue import Turn, parse_hh, plain_text, user
from steerbench.errors import SteerbenchError
from steerbench.models import checkpoint as pretrained
from steerbench.models.revision import display_name, folder_revision, split_name
from steerbench.models.reward import RewardModel
from steerbench.progress import Advance

LIMIT, WIDTH = 96, 16
DIALOGUES = [
    user("hi"),
    (*user("how do I bake bread?"), Turn("assistant", "slowly"), *user("why?")),
    user("a b c"),
    user("x"),
    user("tell me more"),
]
RESPONSES = ["hello there", "because yeast is slow", "", "y <eos> z <eos>", "no"]
TEMPLATE = "<bos>{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}<eos>"


def tokenizer(*, pad: str | None = "<pad>", bos: bool = False, **options: Any) -> PreTrainedTokenizerFast:
    """Bytes and three special tokens; `bos` puts <bos> first, as Llama does."""
    vocabulary = {t: i for i, t in enumerate(["<pad>", "<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    specials = {"bos_token": "<bos>", "eos_token": "<eos>", **({"pad_token": pad} if pad else {})}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **specials, **options)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    fast = tokenizer()
    backend = fast.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")


def llama_config(**more: Any) -> LlamaConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaConfig(**sizes, vocab_size=259, max_position_embeddings=LIMIT, initializer_range=0.3, **more)


def bert_config(**more: Any) -> BertConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    return BertConfig(**sizes, vocab_size=259, max_position_embeddings=LIMIT, initializer_range=0.3, **more)


def gpt2_config(**more: Any) -> GPT2Config:
    return GPT2Config(n_embd=WIDTH, n_layer=2, n_head=2, vocab_size=259, n_positions=LIMIT, **more)


def save(folder: Path, model: Any, fast: PreTrainedTokenizerFast | None) -> Path:
    model.save_pretrained(folder)
    if fast is not None:
        fast.save_pretrained(folder)
    return folder


def bert(folder: Path) -> Path:
    return save(folder, BertForSequenceClassification(bert_config(num_labels=1)), bert_tokenizer())


def llama(folder: Path) -> Path:
    return save(folder, LlamaForSequenceClassification(llama_config(num_labels=1, pad_token_id=0)), tokenizer(bos=True))


def llama_without_pad(folder: Path) -> Path:
    return save(folder, LlamaForSequenceClassification(llama_config(num_labels=1)), tokenizer(pad=None))


def gpt2_pad_is_eos(folder: Path) -> Path:
    config = gpt2_config(num_labels=1, pad_token_id=2, eos_token_id=2, initializer_range=0.3)
    return save(folder, GPT2ForSequenceClassification(config), tokenizer(pad="<eos>"))


def ultra(folder: Path) -> Path:
    """Write the form of openbmb/UltraRM-13b: keys `model.*` and `regression_head.weight`, class of a causal model."""
    backbone = LlamaModel(llama_config())
    weights = {f"model.{key}": value for key, value in backbone.state_dict().items()}
    weights["regression_head.weight"] = torch.randn(1, WIDTH)
    save(folder, backbone, tokenizer(bos=True))
    save_file(weights, folder / "model.safetensors")
    return folder


def ultra_pickled(folder: Path) -> Path:
    weights = load_file(ultra(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def ultra_in_shards(folder: Path) -> Path:
    weights = load_file(ultra(folder) / "model.safetensors")
    (folder / "model.safetensors").unlink()
    shards = [f"pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
    where = {key: shards[key.startswith("regression")] for key in weights}
    for shard in shards:
        torch.save({k: v for k, v in weights.items() if where[k] == shard}, folder / shard)
    index = {"metadata": {}, "weight_map": where}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    f.__name__: f for f in (bert, llama, llama_without_pad, gpt2_pad_is_eos, ultra, ultra_pickled, ultra_in_shards)
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: build(tmp_path_factory.mktemp("models") / name) for name, build in FORMS.items()}


@pytest.fixture(params=sorted(FORMS))
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@torch.no_grad()
def oracle(folder: Path, ids: list[int]) -> float:
    """One unpadded sequence, the value at its last position (a decoder) or the model's own pooling (BERT)."""
    batch = torch.tensor([ids])
    if (folder / "pytorch_model.bin.index.json").is_file() or folder.name.startswith("ultra"):
        weights: dict[str, torch.Tensor] = {}
        for file in [*folder.glob("*.bin"), *folder.glob("*.safetensors")]:
            weights |= torch.load(file, weights_only=True) if file.suffix == ".bin" else load_file(file)
        head = weights.pop("regression_head.weight")
        backbone = LlamaModel(LlamaConfig.from_pretrained(folder)).eval()
        backbone.load_state_dict({k.removeprefix("model."): v for k, v in weights.items()})
        return float(head @ backbone(batch).last_hidden_state[0, -1])
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if folder.name == "bert":
        return float(model(batch).logits)
    return float(model.score(model.base_model(batch).last_hidden_state[0, -1]))


def test_a_batch_equals_the_oracle_one_by_one(folder: Path) -> None:
    tokenize = AutoTokenizer.from_pretrained(folder)
    texts = [plain_text(d, r) for d, r in zip(DIALOGUES, RESPONSES, strict=True)]
    expected = torch.tensor([oracle(folder, tokenize(text)["input_ids"]) for text in texts])
    assert expected.std() > 0.1  # the oracle tells texts apart
    scores = RewardModel.load(str(folder)).score(DIALOGUES, RESPONSES)
    assert (scores.dtype, scores.device.type, scores.shape) == (torch.float32, "cpu", (5,))
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_the_batch_size_changes_no_score(folder: Path) -> None:
    one, two, all_ = (RewardModel.load(str(folder), batch_size=n).score(DIALOGUES, RESPONSES) for n in (1, 2, 16))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)
    torch.testing.assert_close(all_, one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["bert", "llama", "gpt2_pad_is_eos", "ultra"])
def test_the_pad_token_changes_no_score(folders: dict[str, Path], tmp_path: Path, form: str) -> None:
    other = Path(shutil.copytree(folders[form], tmp_path / "other"))
    fast = AutoTokenizer.from_pretrained(other)
    fast.pad_token = "e"  # occurs in the texts
    fast.save_pretrained(other)
    before, after = (RewardModel.load(str(f)).score(DIALOGUES, RESPONSES) for f in (folders[form], other))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_the_pooling_of_transformers_would_be_misled(folders: dict[str, Path]) -> None:
    """The fault this package avoids: text that ends in the pad token is read too early."""
    folder = folders["gpt2_pad_is_eos"]
    ids = AutoTokenizer.from_pretrained(folder)(plain_text(DIALOGUES[3], RESPONSES[3]), return_tensors="pt")
    assert ids["input_ids"][0, -1] == 2
    with torch.no_grad():
        theirs = float(AutoModelForSequenceClassification.from_pretrained(folder).eval()(**ids).logits)
    ours = float(RewardModel.load(str(folder)).score(DIALOGUES[3:4], RESPONSES[3:4]))
    assert abs(theirs - ours) > 1e-3


def test_a_long_dialogue_loses_its_beginning(folder: Path) -> None:
    model, fast = RewardModel.load(str(folder)), AutoTokenizer.from_pretrained(folder)
    assert model.limit == LIMIT
    dialogue, response = user("0123456789" * 20), "the end"
    ids = fast(plain_text(dialogue, response), verbose=False)["input_ids"]
    start = int(ids[0] == 1)  # a special token in front stays
    kept = ids[:start] + ids[start - LIMIT :]
    assert len(kept) == LIMIT < len(ids)
    scores = model.score([user("hi"), dialogue], ["ho", response])
    assert scores[1].item() == pytest.approx(oracle(folder, kept), abs=1e-5)
    assert model.truncated == 1


def test_a_smaller_limit_of_the_tokenizer_wins(tmp_path: Path) -> None:
    save(tmp_path, LlamaForSequenceClassification(llama_config(num_labels=1)), tokenizer(model_max_length=40))
    assert RewardModel.load(str(tmp_path)).limit == 40


def test_positions_that_roberta_reserves_are_not_used(tmp_path: Path) -> None:
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(**sizes, vocab_size=259, max_position_embeddings=66, num_labels=1, pad_token_id=1)
    save(tmp_path, RobertaForSequenceClassification(config), tokenizer())
    model = RewardModel.load(str(tmp_path))
    assert model.limit == 64
    assert model.score([user("x" * 200)], ["y"]).isfinite().all()


def test_the_chat_template_writes_text_and_special_tokens(tmp_path: Path) -> None:
    fast = tokenizer(bos=True)
    fast.chat_template = TEMPLATE
    save(tmp_path / "ultra", ultra_model := LlamaForSequenceClassification(llama_config(num_labels=1)), fast)
    model = RewardModel.load(str(tmp_path / "ultra"))
    text = model.text((Turn("system", "be kind"), *user("hi")), "hello")
    assert text == "<bos>[system] be kind [user] hi [assistant] hello <eos>"
    ids = fast(text, add_special_tokens=False)["input_ids"]
    assert ids.count(1) == 1
    with torch.no_grad():
        expected = float(ultra_model.eval().score(ultra_model.model(torch.tensor([ids])).last_hidden_state[0, -1]))
    score = model.score([(Turn("system", "be kind"), *user("hi"))], ["hello"])
    assert score.item() == pytest.approx(expected, abs=1e-5)


def test_a_template_that_refuses_a_dialogue_is_reported(tmp_path: Path) -> None:
    fast = tokenizer()
    fast.chat_template = "{{ raise_exception('no system role') }}"
    save(tmp_path / "strict", LlamaForSequenceClassification(llama_config(num_labels=1)), fast)
    with pytest.raises(SteerbenchError, match="'strict' refuses the dialogue: no system role"):
        RewardModel.load(str(tmp_path / "strict")).score([user("hi")], ["ho"])


def test_progress_and_no_texts(folders: dict[str, Path]) -> None:
    seen: list[int] = []

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Advance]:
        assert (label, total) == ("score with bert", 5)
        yield seen.append

    model = RewardModel.load(str(folders["bert"]), batch_size=2)
    model.score(DIALOGUES, RESPONSES, progress)
    assert seen == [2, 2, 1]
    assert model.score([], []).shape == (0,)
    with pytest.raises(ValueError, match="zip"):
        model.score(DIALOGUES, ["one"])


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_scores_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    folder = ultra(tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["regression_head.weight"][:] = 0
    weights["regression_head.weight"][0, 0] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(SteerbenchError, match="1 of 1 scores that are not finite"):
        RewardModel.load(str(folder)).score(DIALOGUES[:1], RESPONSES[:1])


def test_half_precision_stays_near(folders: dict[str, Path]) -> None:
    full, half = (RewardModel.load(str(folders["ultra"]), dtype=d) for d in (None, torch.bfloat16))
    a, b = full.score(DIALOGUES, RESPONSES), half.score(DIALOGUES, RESPONSES)
    assert b.dtype == torch.float32
    assert (a - b).abs().max() > 0
    torch.testing.assert_close(b, a, rtol=0.1, atol=0.3)


# what must be refused, and why


def several_labels(folder: Path) -> None:
    save(folder, BertForSequenceClassification(bert_config(num_labels=3)), bert_tokenizer())


def causal_lm(folder: Path) -> None:
    save(folder, LlamaForCausalLM(llama_config(num_labels=1)), tokenizer())


def plain_encoder(folder: Path) -> None:
    save(folder, BertModel(bert_config(num_labels=1)), bert_tokenizer())


def no_tokenizer(folder: Path) -> None:
    save(folder, BertForSequenceClassification(bert_config(num_labels=1)), None)


def ultra_of_two(folder: Path) -> None:
    weights = load_file(ultra(folder) / "model.safetensors")
    save_file(weights | {"regression_head.weight": torch.ones(2, WIDTH)}, folder / "model.safetensors")


def ultra_with_a_hole(folder: Path) -> None:
    weights = load_file(ultra(folder) / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def broken_weights(folder: Path) -> None:
    (bert(folder) / "model.safetensors").write_bytes(b"\xff" * 50)


def no_weights(folder: Path) -> None:
    (bert(folder) / "model.safetensors").unlink()


def unknown_architecture(folder: Path) -> None:
    (bert(folder) / "config.json").write_text('{"model_type": "nobody-knows"}')


def not_a_model(folder: Path) -> None:
    folder.mkdir()


def nothing_there(folder: Path) -> None:
    pass


REFUSED: dict[Callable[[Path], Any], str] = {
    several_labels: "'x' is a classifier with 3 labels",
    causal_lm: r"'x' is not a trained reward model: its checkpoint lacks score\.weight",
    plain_encoder: r"'x' is not a trained reward model: its checkpoint lacks classifier\.bias",
    no_tokenizer: "'x' has no tokenizer files",
    ultra_of_two: "'x' has 2 outputs",
    ultra_with_a_hole: r"its checkpoint lacks layers\.1\.mlp\.up_proj\.weight",
    broken_weights: r"model\.safetensors of model 'x' cannot be read",
    no_weights: "'x' has no weights",
    unknown_architecture: "nobody-knows",
    not_a_model: r"x' is not a model folder: it has no config\.json",
    nothing_there: "there is no model folder at '.*x'",
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda build: build.__name__)
def test_refused(build: Callable[[Path], Any], tmp_path: Path) -> None:
    build(tmp_path / "x")
    with pytest.raises(SteerbenchError, match=REFUSED[build]) as caught:
        RewardModel.load(str(tmp_path / "x"))
    assert "\n" not in str(caught.value)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    folder = ultra_pickled(tmp_path / "x")
    torch.save({"regression_head.weight": Evil(tmp_path / "trace")}, folder / "pytorch_model.bin")
    with pytest.raises(SteerbenchError, match=r"pytorch_model\.bin of model 'x' cannot be read"):
        RewardModel.load(str(folder))
    assert not (tmp_path / "trace").exists()


# names and revisions


def test_the_revision_is_of_the_files_not_of_the_path(folders: dict[str, Path], tmp_path: Path) -> None:
    first = RewardModel.load(str(folders["bert"]))
    copy = Path(shutil.copytree(folders["bert"], tmp_path / "copy"))
    (copy / "README.md").write_text("unimportant")
    assert first.revision == folder_revision(copy)
    assert first.revision.startswith("sha256:")
    assert (first.name, RewardModel.load(str(copy)).name) == ("bert", "copy")
    for file in ("model.safetensors", "config.json", "tokenizer.json"):
        content = (copy / file).read_bytes()
        (copy / file).write_bytes(content + b" ")
        assert folder_revision(copy) != first.revision, file
        (copy / file).write_bytes(content)
    (copy / "tokenizer.json").rename(copy / "other.json")
    assert folder_revision(copy) != first.revision


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert split_name("org/x@abc") == ("org/x", "abc")
    assert split_name("gpt2") == ("gpt2", None)
    assert split_name("./models@home/x") == ("./models@home/x", None)
    assert display_name("org/x@abc") == "org/x"
    assert display_name("~/secret/x/") == "x"
    (tmp_path / "here@v1").mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_name("here@v1") == ("here@v1", None)
    assert display_name("here@v1") == "here@v1"


def test_a_model_of_the_hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The download is replaced by one that has only pickled weights, fetched when nothing better is there."""
    snapshot = Path(shutil.copytree(folders["ultra_pickled"], tmp_path / ("c" * 40)))
    asked: list[tuple[str | None, list[str]]] = []

    def download(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert repository == "org/x"
        asked.append((revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    model = RewardModel.load("org/x@v1")
    assert (model.name, model.revision) == ("org/x", "c" * 40)
    assert asked[0][0] == "v1"
    assert not any("bin" in pattern for pattern in asked[0][1])
    assert asked[1:] == [("c" * 40, ["pytorch_model*.bin"])]


def test_an_unreachable_hub_is_one_sentence_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise FileNotFoundError("no network\nwhatever")

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    with pytest.raises(
        SteerbenchError, match=r"'org/x' is neither a local folder nor .* \(no network whatever\)\. Check"
    ):
        RewardModel.load("org/x")


def test_a_hub_that_may_not_be_asked_is_told_by_the_name_of_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder")

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    monkeypatch.setattr(pretrained, "HF_HUB_OFFLINE", True)
    says = (
        r"^model 'org/x' is no local folder, and HF_HUB_OFFLINE lets nothing be fetched\. Check the name, unset "
        r"HF_HUB_OFFLINE, or pass the path of a downloaded folder\.$"
    )
    with pytest.raises(SteerbenchError, match=says):
        RewardModel.load("org/x")
    monkeypatch.setattr(pretrained, "HF_HUB_OFFLINE", False)
    with pytest.raises(SteerbenchError, match=r"could it be fetched from the Hub \(Cannot find"):
        RewardModel.load("org/x")


def test_loading_is_quiet_and_restores_the_users_settings(
    folders: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    level = logging.get_verbosity()
    logging.set_verbosity_info()
    logging.enable_progress_bar()
    try:
        RewardModel.load(str(folders["ultra"]))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(level)
    assert capfd.readouterr() == ("", "")


# a real reward model on real pairs


@pytest.fixture(scope="module")
def real(assets: Path) -> RewardModel:
    return RewardModel.load(str(assets / "models" / "minilm-hh-reward"))


def test_the_real_model_gives_the_score_of_its_readme(real: RewardModel, assets: Path) -> None:
    folder = assets / "models" / "minilm-hh-reward"
    fast = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    long = (*user("word " * 400), Turn("assistant", "Yes."), *user("How do I bake bread?"))
    dialogues, responses = [user("How do I bake bread?"), long], ["Mix flour and water.", "Mix flour."]
    texts = [plain_text(d, r) for d, r in zip(dialogues, responses, strict=True)]
    with torch.no_grad():
        expected = model(**fast(texts, padding=True, truncation=True, return_tensors="pt")).logits[:, 0]
    torch.testing.assert_close(real.score(dialogues, responses), expected, rtol=0, atol=1e-5)
    assert (real.limit, real.truncated) == (256, 1)


@pytest.mark.slow
def test_the_real_model_prefers_the_preferred_reply(real: RewardModel, hh_pairs: list[tuple[str, str]]) -> None:
    parsed = [(parse_hh(chosen), parse_hh(rejected)) for chosen, rejected in hh_pairs]
    chosen, rejected = (
        real.score([d[side][:-1] for d in parsed], [d[side][-1].text for d in parsed]) for side in (0, 1)
    )
    assert 0.58 < (chosen > rejected).float().mean() < 0.9  # its card: 0.633 held out, 0.740 on training pairs


@pytest.fixture
def hh_pairs(assets: Path) -> list[tuple[str, str]]:
    with gzip.open(assets / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    short = [(row["chosen"], row["rejected"]) for row in rows if len(row["chosen"]) + len(row["rejected"]) < 600]
    return short[:200]


def test_a_token_without_an_embedding_matters_only_in_a_text(tmp_path: Path) -> None:
    fast = tokenizer()
    fast.add_tokens(["<image>"])
    save(tmp_path, GPT2ForSequenceClassification(gpt2_config(num_labels=1)), fast)
    reward = RewardModel.load(str(tmp_path))
    assert reward.score([user("Hi")], ["Hello"]).isfinite().all()
    with pytest.raises(SteerbenchError, match=r"a text holds '<image>', token 259, and model .* has 259 embeddings"):
        reward.score([user("Hi"), user("An <image>")], ["Hello", "Yes"])
