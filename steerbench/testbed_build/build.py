"""Build a testbed from a seed: data, tokenizer, language model, encoder, rewards, and the manifest."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from steerbench.errors import SteerbenchError
from steerbench.files import write_whole
from steerbench.models.checkpoint import quiet
from steerbench.models.machine import environment, pick_device
from steerbench.progress import Progress, silent
from steerbench.seeds import seed_for
from steerbench.testbed import Testbed
from steerbench.testbed import preferences as records
from steerbench.testbed.instructions import MEANINGS
from steerbench.testbed.world import World
from steerbench.testbed_build import manifest, quality
from steerbench.testbed_build.language import KINDS, READING_WEIGHT, SHARPNESS, texts, train_lm
from steerbench.testbed_build.rewards import (
    ASKED_WEIGHT,
    ENCODER_WIDTH,
    WRECKED,
    train_encoder,
    train_guide,
    train_held_out,
)
from steerbench.testbed_build.tokenizer import CONTEXT, learn
from steerbench.testbed_build.training import Recipe, Setting, Trained
from steerbench.version import __version__

RECIPES: Final = {
    "lm": Recipe(steps=3000, batch=3072, rate=0.02),
    "encoder": Recipe(steps=600, batch=64, rate=0.02),
    "questions": Recipe(steps=600, batch=32, rate=0.02),
    "reward": Recipe(steps=900, batch=32, rate=0.005),
    "held_out_reward": Recipe(steps=900, batch=32, rate=0.005),
}
SETTINGS: Final = {
    "optimiser": "Muon for matrices; AdamW, rate 0.003, for embeddings, norms and heads; in bf16 where it is fast",
    "schedule": "warm-up over 5 % of the steps, then linear to zero",
    "texts": KINDS,
    "sharpness": SHARPNESS,
    "instructions": MEANINGS,
    "reading": f"cross-entropy of two linear maps, weight {READING_WEIGHT}",
    "wrecks": WRECKED,
    "judges": f"Bradley-Terry with temperature {records.NOISE}",
}
"""What the manifest says of the training beside the recipes."""


def build(
    out: Path,
    seed: int = 0,
    device: str = "auto",
    progress: Progress = silent,
    recipes: Mapping[str, Recipe] = RECIPES,
    n_quality: int = 500,
) -> dict[str, Any]:
    """Build a testbed and return its manifest. Until all of it is there, the folder has another name.

    Raises SteerbenchError if the folder holds something or cannot be made.
    """
    chosen = pick_device(device)
    out = out.expanduser().absolute()
    partial_out = _empty(out)
    builder = _Builder(partial_out, World(seed), chosen, progress, recipes)
    builder.all()
    sections = {
        "steerbench": __version__,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": environment(builder.device),
        "training": builder.log,
        "settings": SETTINGS | {"questions": asdict(recipes["questions"]) | {"weight": ASKED_WEIGHT}},
    }
    manifest.write(partial_out, seed, **sections)  # by which the folder can be measured as a testbed
    figures = quality.measure(partial_out, seed, progress, n_quality, device)
    manifest.write(partial_out, seed, quality=figures, **sections)
    partial_out.rename(out)
    return Testbed(out).manifest


def _empty(out: Path) -> Path:
    """Return a new folder beside the wanted one, which must not hold anything; what an interrupted build left goes."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise SteerbenchError(f"{out} is not empty; give a new folder with --out.")
        partial_out = out.with_name(f".{out.name}.partial")
        shutil.rmtree(partial_out, ignore_errors=True)
        partial_out.mkdir(parents=True)
    except OSError as error:
        raise SteerbenchError(
            f"cannot make {out}: {error.strerror or error}; give another folder with --out."
        ) from error
    return partial_out


@dataclass
class _Builder:
    """Makes the parts in the order in which they grow out of each other, and saves each as soon as it is there."""

    out: Path
    world: World
    device: torch.device
    progress: Progress
    recipes: Mapping[str, Recipe]
    log: dict[str, Any] = field(default_factory=dict)

    def all(self) -> None:
        """Make all parts."""
        held = records.write(self.world, self.out / "data")
        setting = Setting(self.world, held, self.device, self.progress)
        learned = learn(turn.text for text in texts(self.world, "tokenizer", 20_000) for turn in text.dialogue)
        questions = self.recipes["questions"]
        lm = self._make("lm", partial(train_lm, setting, learned))
        self._make("reward", partial(train_guide, setting, lm.model, lm.tokenizer, questions))
        encoder = self._make("encoder", partial(train_encoder, setting, learned))
        self._make("held_out_reward", partial(train_held_out, setting, encoder.model, encoder.tokenizer, questions))
        _describe_pooling(self.out / "encoder")

    def _make(self, part: str, train: Callable[[Recipe], Trained]) -> Trained:
        start = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(seed_for(self.world.seed, part))
            trained = train(self.recipes[part])
        seconds = round(time.perf_counter() - start)
        n_parameters = sum(p.numel() for p in trained.model.parameters())
        self.log[part] = {
            "parameters": n_parameters,
            **asdict(self.recipes[part]),
            "loss": trained.loss,
            "seconds": seconds,
        }
        with quiet():
            trained.model.half().save_pretrained(self.out / part)
            trained.tokenizer.save_pretrained(self.out / part)
            trained.model.float()  # rounded, as whoever loads it sees it
        for file in (self.out / part).iterdir():
            file.chmod(0o644)  # weights are written for their owner alone, which no installed file may be
        return trained


def _describe_pooling(folder: Path) -> None:
    """Write the files by which sentence-transformers knows how to pool."""
    files: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": CONTEXT, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": ENCODER_WIDTH, "pooling_mode_mean_tokens": True},
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, json.dumps(content, indent=1) + "\n")
