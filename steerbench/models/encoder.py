"""Sentence encoders: one unit vector for a text, as sentence-transformers and SimCSE compute it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModel

from steerbench.errors import SteerbenchError
from steerbench.files import read_json, read_object
from steerbench.models.batching import Side, check_ids, in_batches, padding_id, position_limit, tokenize
from steerbench.models.checkpoint import Source, find, load_model, load_tokenizer
from steerbench.models.pieces import inner_size
from steerbench.models.self_check import scorer_batch, trial_rows
from steerbench.progress import Progress, silent

Pooling = Callable[[Any, torch.Tensor], torch.Tensor]  # model output, mask (batch, seq) -> (batch, d)

_SIMCSE_MAX_LENGTH = 128  # simcse 0.4, simcse/tool.py


class SentenceEncoder:
    """An encoder in float32. It pools as its `1_Pooling/config.json` says (mean or first token).

    Without that file it takes the trained pooler of the checkpoint, as the SimCSE tool does, else the mean. Texts are
    cut at `max_length` tokens: `max_seq_length` of `sentence_bert_config.json`, or what tokenizer and model take where
    that file leaves it open, as sentence-transformers does; without the file 128, the SimCSE tool's choice.
    """

    truncated: int = 0
    """How many of the texts encoded so far were cut."""
    largest_batch: int | None = None
    """How many texts it takes at once: 1 if padding changes its vectors, None for any number."""

    def __init__(
        self, source: Source, model: Any, tokenizer: Any, pooling: Pooling, *, max_length: int, batch_size: int
    ) -> None:
        self.name, self.revision = source.name, source.revision
        self.max_length, self.batch_size = max_length, batch_size
        self._model, self._tokenizer, self._pooling = model, tokenizer, pooling

    @classmethod
    def load(cls, name: str, *, device: torch.device | str = "cpu", batch_size: int = 32) -> "SentenceEncoder":
        """Load a local folder or `org/name[@revision]` of the Hub. Raises SteerbenchError if it is not an encoder."""
        source = find(name)
        _check_kind(source)
        tokenizer = load_tokenizer(source)
        model, missing = load_model(AutoModel, source, torch.float32)
        pooling = _pooling(source, model, missing)
        limit = _max_length(source, position_limit(model, tokenizer))
        made = cls(source, model.to(device), tokenizer, pooling, max_length=limit, batch_size=batch_size)
        rows = trial_rows(tokenizer, limit, model)
        of, pad_id = f"encoder {source.name!r}", made._pad_id
        made.largest_batch = scorer_batch(of, made._embed, rows, pad_id, model.device, torch.float32)
        return made

    @property
    def _pad_id(self) -> int:
        return padding_id(self._tokenizer, self._model)

    def encode(self, texts: Sequence[str], truncate: Side = "right", progress: Progress = silent) -> torch.Tensor:
        """Return (N, d) float32 vectors of length 1, on the CPU.

        `truncate` says which side of a long text is lost. `left` keeps the end, for a dialogue its last user turn;
        the published coherence always keeps the beginning.
        """
        if not texts:
            return torch.zeros(0, self._model.config.hidden_size)
        tokens = tokenize(self._tokenizer, texts, limit=self.max_length, cut=truncate)
        check_ids(tokens.rows, self._tokenizer, self._model, self.name)
        self.truncated += tokens.truncated
        with progress(f"encode with {self.name}", len(texts)) as advance:
            return in_batches(
                tokens.rows,
                self._embed,
                batch_size=self.largest_batch or self.batch_size,
                pad_id=self._pad_id,
                device=self._model.device,
                advance=advance,
                size=inner_size(self._model),
            )

    def _embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        output = self._model(input_ids=ids, attention_mask=mask)
        return functional.normalize(self._pooling(output, mask), dim=-1)


def _check_kind(source: Source) -> None:
    """Refuse language models: their states are no sentence embeddings, and nothing in the figures would show it."""
    config = _read(source, "config.json", {})
    kinds = config.get("architectures") or []
    if config.get("is_encoder_decoder") or any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds):
        raise SteerbenchError(
            f"{source.name!r} is a language model ({', '.join(kinds)}), no sentence encoder; "
            "use a sentence-transformers or SimCSE checkpoint."
        )


def _mean(output: Any, mask: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = output.last_hidden_state  # (batch, seq, d)
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _first(output: Any, mask: torch.Tensor) -> torch.Tensor:
    hidden: torch.Tensor = output.last_hidden_state
    return hidden[:, 0]


def _pooler(output: Any, mask: torch.Tensor) -> torch.Tensor:
    pooled: torch.Tensor = output.pooler_output
    return pooled


def _pooling(source: Source, model: Any, missing: set[str]) -> Pooling:
    untrained = sorted(key for key in missing if not key.startswith("pooler."))
    if untrained:
        raise SteerbenchError(
            f"{source.name!r} is not a complete encoder: its checkpoint lacks {', '.join(untrained[:3])}. "
            "Use a sentence-transformers or SimCSE checkpoint."
        )
    if (source.folder / "1_Pooling" / "config.json").is_file():
        return _declared_pooling(source)
    has_pooler = getattr(model, "pooler", None) is not None and not missing
    return _pooler if has_pooler else _mean


def _declared_pooling(source: Source) -> Pooling:
    """Return the pooling of a sentence-transformers folder; refuse modules and modes that would change the vectors."""
    modes = _pooling_modes(read_object(source.folder / "1_Pooling" / "config.json"))
    listed = source.folder / "modules.json"
    modules = read_json(listed) if listed.is_file() else []
    kinds = {str(module["type"]).rpartition(".")[2] for module in modules}
    if extra := kinds - {"Transformer", "Pooling", "Normalize"}:
        raise SteerbenchError(f"encoder {source.name!r} has modules {sorted(extra)}; use one without them.")
    if len(modes) != 1 or not modes <= _POOLINGS.keys():
        raise SteerbenchError(f"encoder {source.name!r} pools by {sorted(modes)}; use one with mean or CLS pooling.")
    return _POOLINGS[modes.pop()]


_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": _mean,
    "pooling_mode_cls_token": _first,
    "mean": _mean,
    "cls": _first,
}


def _pooling_modes(config: dict[str, Any]) -> set[str]:
    """Return the modes of a pooling file: one switch for each, or since sentence-transformers 5.4 a name or a list."""
    named = config.get("pooling_mode", [])
    switched = {key for key, on in config.items() if key.startswith("pooling_mode_") and on is True}
    return {named} if isinstance(named, str) else {*named} or switched


def _max_length(source: Source, readable: int | None) -> int:
    """Return how many tokens are read: what the folder declares, if tokenizer and model take as many."""
    simcse = {"max_seq_length": _SIMCSE_MAX_LENGTH}
    declared = _read(source, "sentence_bert_config.json", simcse).get("max_seq_length")
    return min((int(n) for n in (declared, readable) if n), default=_SIMCSE_MAX_LENGTH)


def _read(source: Source, file: str, default: dict[str, Any]) -> dict[str, Any]:
    path = source.folder / file
    return read_object(path) if path.is_file() else default
