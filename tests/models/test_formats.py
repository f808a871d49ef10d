"""Folders and files that are no plain checkpoint: adapters, GGUF, quantised weights, and weights that nothing reads."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from steerbench import Decoding, LanguageModel, SteerbenchError, Steering, generate
from steerbench.contract import tiny
from steerbench.data import user
from steerbench.edits import Add, PlacedEdit, Site
from steerbench.engine.hooks import hook
from steerbench.engine.logits import response_logits
from steerbench.learn import Tokens
from steerbench.models import checkpoint, self_check
from steerbench.models.encoder import SentenceEncoder
from steerbench.models.revision import folder_revision
from steerbench.models.reward import RewardModel
from steerbench.models.self_check import check_causal

GIVEN = Tokens((5, 60, 7, 8), (20, 21, 22))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-qwen2"
    lm = tiny.language_model("qwen2")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)
    return folder


def check_against_plain_hooks(lm: LanguageModel) -> None:
    """Compare the logits under an edit at each kind of site with those under a hook of our own."""
    for name in ("resid_post", "mlp_out", "z"):
        site = Site(name, 1)
        more = torch.randn(32, generator=torch.Generator().manual_seed(1))
        steering = Steering(edits=(PlacedEdit(site, Add(more, 1.0), "all"),))
        ((_, found),) = response_logits(lm, [GIVEN], steering)
        handle = hook(lm.anatomy.place(site), lambda h, more=more: (h.float() + more).to(h.dtype))
        with torch.no_grad():
            ids = torch.tensor([GIVEN.prompt + GIVEN.response])
            plain = lm.model(input_ids=ids, use_cache=False).logits[0, 3:6]
        handle.remove()
        torch.testing.assert_close(found, plain.float(), rtol=1e-4, atol=1e-4)


def adapter(folder: Path, base: Path) -> Path:
    """Write an adapter with weights that are not zero."""
    peft = pytest.importorskip("peft", reason="the extra steerbench[peft] is not installed")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    adapted.save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_is_merged_into_its_model(base: Path, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", base)
    from peft import PeftModel

    lm, whole = LanguageModel.load(str(folder)), LanguageModel.load(str(base))
    ids = torch.tensor([GIVEN.prompt])
    with torch.no_grad():
        merged = lm.model(input_ids=ids).logits
        unmerged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()(input_ids=ids)
        torch.testing.assert_close(merged, unmerged.logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged, whole.model(input_ids=ids).logits, atol=1e-2)
    assert lm.name == "lora"
    assert lm.revision not in (whole.revision, folder_revision(folder))
    check_against_plain_hooks(lm)


def test_an_adapter_needs_its_model_and_a_folder_of_its_own(base: Path, tmp_path: Path) -> None:
    config = json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")})
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(config)
    with pytest.raises(SteerbenchError, match=r"there is no model folder at '.*gone'"):
        LanguageModel.load(str(tmp_path / "lora"))
    both = Path(shutil.copytree(base, tmp_path / "both"))
    (both / "adapter_config.json").write_text(config)
    with pytest.raises(SteerbenchError, match=r"'both' holds a model \(model.safetensors\) and an adapter"):
        LanguageModel.load(str(both))


def eight_bits(base: Path, folder: Path) -> Path:
    """Write a checkpoint with int8 weights."""
    pytest.importorskip("bitsandbytes", reason="the extra steerbench[quantized] is not installed")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings, dtype=torch.float32)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def test_a_quantised_checkpoint_is_steered(base: Path, tmp_path: Path) -> None:
    lm = LanguageModel.load(str(eight_bits(base, tmp_path / "int8")))
    assert lm.anatomy.place(Site("z", 1)).module.weight.dtype == torch.int8
    assert lm.largest_batch is None
    check_against_plain_hooks(lm)
    prompts = [user("How do I bake bread?"), user("Hi")]
    assert [r.text for r in generate(lm, prompts, decoding=Decoding(max_new_tokens=3))]


def test_eight_bits_hide_no_model_that_sees_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """What rounding is taken for in int8 is far less than what a mask that hides nothing does."""
    lm = tiny.language_model("qwen2")
    check_causal(lm.model, "right")
    monkeypatch.setattr(self_check, "_has_eight_bits", lambda model: True)
    check_causal(lm.model, "right")
    forward = lm.model.forward
    monkeypatch.setattr(lm.model, "forward", partial(seeing_all, forward))
    with pytest.raises(SteerbenchError, match="its tokens see what follows them"):
        check_causal(lm.model, "wrong")


def seeing_all(forward: Any, input_ids: Tensor, attention_mask: Tensor, **more: Any) -> Any:
    """Run a model in which each token sees all others."""
    n = input_ids.shape[1]
    return forward(input_ids=input_ids, attention_mask=torch.zeros(len(input_ids), 1, n, n), **more)


def test_a_gguf_file_is_steered(tmp_path: Path, world: Path) -> None:
    pytest.importorskip("gguf", reason="the extra steerbench[gguf] is not installed")
    pytest.importorskip("accelerate", reason="transformers loads GGUF files with accelerate, which is not installed")
    from gguf_file import write_gguf

    rounded = write_gguf(tmp_path / "tiny.Q8_0.gguf")
    lm = LanguageModel.load(str(tmp_path / "tiny.Q8_0.gguf"))
    assert lm.largest_batch is None
    ids = torch.tensor([GIVEN.prompt + GIVEN.response])
    with torch.no_grad():
        torch.testing.assert_close(lm.model(input_ids=ids).logits, rounded(input_ids=ids).logits)
    check_against_plain_hooks(lm)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gguf", "int8"])
def test_formats_run_to_a_table(kind: str, base: Path, world: Path, tmp_path: Path, cli: Any) -> None:
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    if kind == "gguf":
        pytest.importorskip("gguf", reason="the extra steerbench[gguf] is not installed")
        from gguf_file import write_gguf

        write_gguf(model := tmp_path / "tiny.Q8_0.gguf")
    else:
        model = eight_bits(base, tmp_path / "int8")
    parts = ("--reward-model", world / "reward", "--encoder", world / "encoder", "--data", world / "hh_rlhf.jsonl")
    sizes = ("--n-examples", 4, "--n-train", 8, "--max-new-tokens", 6, "--out", tmp_path / "runs")
    done = cli("run", "--methods", "caa,re_control,static_prompt", "--model", model, *parts, *sizes)
    assert done.exit_code == 0, done.stderr
    assert "4 records in" in done.stdout


def test_a_gguf_file_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tiny.Q4_1.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(SteerbenchError, match=r"has no config.json; give the path of a file in it: tiny.Q4_1.gguf"):
        checkpoint.find(str(tmp_path))
    source = checkpoint.find(str(file))
    assert (source.name, source.folder, source.gguf) == ("tiny.Q4_1.gguf", tmp_path, "tiny.Q4_1.gguf")
    file.write_bytes(b"GGUF2")
    assert checkpoint.find(str(file)).revision != source.revision
    monkeypatch.setattr(checkpoint, "find_spec", lambda name: None)
    with pytest.raises(SteerbenchError, match=r"package gguf is not installed; install it: pip install 'steerbench\[g"):
        LanguageModel.load(str(file))


def with_weight(folder: Path, source: Path, name: str, shape: tuple[int, ...]) -> Path:
    """Return a copy of a checkpoint with one weight more."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {name: torch.ones(shape)}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name", ["lm_head.bias", "model.layers.1.self_attn.q_norm.weight", "model.layers.0.mlp.up_proj.lora_A.weight"]
)
def test_weights_of_the_model_that_nothing_reads_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match=f"has weights that Qwen2ForCausalLM does not read, such as {name}"):
        LanguageModel.load(str(with_weight(tmp_path / "x", base, name, (32,))))


@pytest.mark.parametrize("name", ["model.layers.3.mtp.weight", "value_head.weight", "model.vision_tower.0.weight"])
def test_whole_parts_that_the_model_has_not_are_left_out(name: str, base: Path, tmp_path: Path) -> None:
    lm = LanguageModel.load(str(with_weight(tmp_path / "x", base, name, (32,))))
    few, prompts = Decoding(max_new_tokens=3), [user("Hi")]
    assert generate(lm, prompts, decoding=few) == generate(LanguageModel.load(str(base)), prompts, decoding=few)


def test_the_same_of_rewards_and_encoders(world: Path, tmp_path: Path) -> None:
    with pytest.raises(SteerbenchError, match=r"does not read, such as classifier\.scale"):
        RewardModel.load(str(with_weight(tmp_path / "reward", world / "reward", "classifier.scale", (1,))))
    folder = with_weight(tmp_path / "encoder", world / "encoder", "encoder.layer.1.output.adapter.weight", (32,))
    with pytest.raises(SteerbenchError, match=r"does not read, such as .*layer\.1\.output\.adapter\.weight"):
        SentenceEncoder.load(str(folder))


def changed(folder: Path, base: Path, file: str, **values: Any) -> str:
    """Return a copy of a checkpoint with other values in a JSON file of it."""
    shutil.copytree(base, folder)
    written = json.loads((folder / file).read_text()) if (folder / file).is_file() else {}
    (folder / file).write_text(json.dumps(written | values))
    return str(folder)


def test_a_configuration_with_fewer_blocks_than_the_checkpoint_is_refused(base: Path, tmp_path: Path) -> None:
    kinds = ["full_attention"] * (tiny.LAYERS - 1)
    fewer = changed(tmp_path / "fewer", base, "config.json", num_hidden_layers=len(kinds), layer_types=kinds)
    with pytest.raises(SteerbenchError, match=rf"does not read, such as model\.layers\.{tiny.LAYERS - 1}\.input"):
        LanguageModel.load(fewer)


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("config.json", {"num_attention_heads": 0}, "model 'odd' cannot be loaded as AutoModelForCausalLM"),
        ("config.json", {"hidden_size": "32"}, "Field 'hidden_size' expected int, got str"),
        ("config.json", {"dtype": "float99"}, "has no attribute 'float99'"),
        ("config.json", {"hidden_act": "none"}, r"KeyError\('none'\)"),
        (
            "generation_config.json",
            {"eos_token_id": "</s>"},
            "eos_token_id of odd is '</s>', and not a number or a list",
        ),
        ("tokenizer_config.json", {"chat_template": ["x"]}, "the tokenizer of model 'odd' cannot be loaded"),
    ],
)
def test_a_damaged_configuration_is_told_in_a_sentence(
    base: Path, tmp_path: Path, file: str, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(SteerbenchError, match=says):
        LanguageModel.load(changed(tmp_path / "odd", base, file, **values))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "adapter_config.json cannot be read as JSON"),
        ("[]", "adapter_config.json holds no JSON object"),
        ('{"base_model_name_or_path": 3}', "names no model"),
        ('{"base_model_name_or_path": "FOLDER"}', "names the adapter itself; name its model there"),
    ],
)
def test_a_damaged_adapter_is_told_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text.replace("FOLDER", str(tmp_path)))
    with pytest.raises(SteerbenchError, match=says):
        LanguageModel.load(str(tmp_path))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("renamed", "does"), [("layers.9.", "has weights that its model does"), (None, "lacks weights")]
)
def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path, renamed: str | None, does: str) -> None:
    file = adapter(tmp_path / "lora", base) / "adapter_model.safetensors"
    kept = {key.replace("layers.1.", renamed or "layers.1."): weight for key, weight in load_file(file).items()}
    save_file({key: weight for key, weight in kept.items() if renamed or "layers.1." not in key}, file)
    with pytest.raises(SteerbenchError, match=f"adapter 'lora' {does}"):
        LanguageModel.load(str(file.parent))


def test_a_folder_has_one_revision_however_its_tokenizer_was_loaded_before_it_was_saved(tmp_path: Path) -> None:
    """Offline transformers writes so into the tokenizer's configuration, which changes no token."""
    file = tmp_path / "tokenizer_config.json"
    file.write_text('{\n  "eos_token": "a",\n  "local_files_only": false\n}\n', encoding="utf-8")
    online, plain = folder_revision(tmp_path), hashlib.sha256(file.read_bytes()).hexdigest()
    assert online == f"sha256:{hashlib.sha256(f'tokenizer_config.json{chr(0)}{plain}{chr(10)}'.encode()).hexdigest()}"
    file.write_text(file.read_text(encoding="utf-8").replace("false", "true"), encoding="utf-8")
    assert folder_revision(tmp_path) == online
    file.write_text(file.read_text(encoding="utf-8").replace('"a"', '"b"'), encoding="utf-8")
    assert folder_revision(tmp_path) != online
