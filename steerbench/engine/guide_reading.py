"""The guide on texts that share their beginnings: each token that they share is read once.

Candidates for a next token make texts that differ at their ends, and the texts of the next step begin as these did. A
reward that is a decoder keeps what they share in a cache. The rest of a row is a tree of tokens, whose nodes are
columns of one pass under a mask that shows to each the path that leads to it, at the position that it has in its text.
The head is linear: of a token that was read its value is held, and a score is the last one or the mean over the reply.
Another reward reads all texts from their beginning.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from steerbench.data.dialogue import Dialogue
from steerbench.engine.branches import keeps_columns
from steerbench.engine.forward_passes import CACHE, turns_by_length
from steerbench.errors import SteerbenchError
from steerbench.models.batching import pad
from steerbench.models.reward import Reward, RewardModel
from steerbench.models.reward_text import READ, REPLY

_AT_ONCE = 256
"""Texts of a row, or columns of what they share, in one pass."""
_SPARE = 64
"""Columns of the cache that may be out of use besides those that are in use."""
_tried: "WeakKeyDictionary[PreTrainedModel, dict[torch.dtype, bool]]" = WeakKeyDictionary()

Ids = Sequence[int]
Marks = Sequence[int]


class Text(NamedTuple):
    """What a reward reads for a response."""

    ids: Ids
    marks: Marks

    def up_to_the_end(self) -> "Text":
        """Leave out what stands behind a reply that is marked: it counts for nothing."""
        end = len(self.ids) - next((i for i, mark in enumerate(reversed(self.marks)) if mark == REPLY), 0)
        return Text(self.ids[:end], self.marks[:end])


class GuideReader:
    """Scores the texts of the rows of a batch, step by step: `GuideReader(reward)`."""

    def __init__(self, reward: Reward) -> None:
        self._reward = reward
        self._shared = SharedReading(reward) if isinstance(reward, RewardModel) and can_share(reward) else None

    def scores(self, dialogues: Sequence[Dialogue], texts: Sequence[Sequence[str]]) -> Tensor:
        """Return the reward of each text after the dialogue of its row, row by row, (all texts,), on the CPU."""
        flat = [text for row in texts for text in row]
        prompts = [d for d, row in zip(dialogues, texts, strict=True) for _ in row]
        if not flat:
            return torch.zeros(0)
        if self._shared is None or not isinstance(self._reward, RewardModel):
            return self._reward.score(prompts, flat)
        found = iter(map(Text, *self._reward.marked(prompts, flat)))
        rows = [[next(found) for _ in row] for row in texts]
        return self._reward.finite(self._read(self._reward, self._shared, rows))

    def _read(self, reward: RewardModel, shared: "SharedReading", rows: Sequence[Sequence[Text]]) -> Tensor:
        """Read texts from what is held; those at the limit, cut on the left, from beginnings that none shares."""
        cut = [[reward.limit is not None and len(text.ids) >= reward.limit for text in row] for row in rows]
        pairs = [list(zip(*pair, strict=True)) for pair in zip(rows, cut, strict=True)]
        whole = [[text.up_to_the_end() for text, c in row if not c] for row in pairs]
        alone = [text for row in pairs for text, c in row if c]
        if not alone:
            return shared.scores(whole)
        is_cut = torch.tensor([c for row in cut for c in row])
        scores = torch.zeros(len(is_cut))
        scores[is_cut] = reward.read([list(text.ids) for text in alone], [list(text.marks) for text in alone])
        if any(whole):
            scores[~is_cut] = shared.scores(whole)
        return scores

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows."""
        if self._shared is not None:
            self._shared.keep(rows)


class _Tree(NamedTuple):
    """Token ids of several texts, each beginning stored once."""

    tokens: list[int]
    paths: list[list[int]]
    """Of each node: the nodes that lead to it, itself at last."""
    ends: list[int]
    """The node at which each text ends."""

    @classmethod
    def of(cls, texts: Sequence[Ids]) -> "_Tree":
        """Make it of texts that have a token each."""
        known: dict[tuple[int, int], int] = {}
        tree = cls([], [], [])
        for text in texts:
            node = -1
            for token in text:
                below = known.setdefault((node, token), len(tree.tokens))
                if below == len(tree.tokens):
                    tree.tokens.append(token)
                    tree.paths.append([*(tree.paths[node] if node >= 0 else []), below])
                node = below
            tree.ends.append(node)
        return tree


class SharedReading:
    """What a reward that is a decoder has read of the rows of a batch."""

    def __init__(self, reward: RewardModel) -> None:
        if reward.backbone is None:
            raise SteerbenchError(f"reward model {reward.name!r} is no decoder; it reads each text from its beginning.")
        self._reward, self._dtype, self._device = reward, reward.backbone.dtype, reward.device
        self._forget(0)

    def _forget(self, rows: int) -> None:
        self._cache: Any = DynamicCache()
        self._size = 0
        self._held: list[list[int]] = [[] for _ in range(rows)]
        self._values = [torch.zeros(0) for _ in range(rows)]
        """Of each token that is held of a row."""
        self._columns: list[list[int]] = [[] for _ in range(rows)]
        """Where in the cache what is held of a row stands; the other columns are out of use."""

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Go on with some of the rows, if any was read."""
        if not self._held:
            return
        self._held, self._columns = [self._held[i] for i in rows], [self._columns[i] for i in rows]
        self._values = [self._values[i] for i in rows]
        self._cache.batch_select_indices(torch.tensor(rows, device=self._device))

    @torch.inference_mode()
    def scores(self, rows: Sequence[Sequence[Text]]) -> Tensor:
        """Return the score of each text, row by row, (all texts,), float32 on the CPU; a row may have none."""
        longest = max((len(text.ids) for row in rows for text in row), default=0)
        if len(rows) != len(self._held) or self._size > 2 * longest + _SPARE:
            self._forget(len(rows))
        found: list[list[Tensor]] = [[] for _ in rows]
        for start in range(0, max(map(len, rows)), _AT_ONCE):
            for of_row, scores in zip(found, self._next([r[start : start + _AT_ONCE] for r in rows]), strict=True):
                of_row.append(scores)
        return torch.cat([scores for of_row in found for scores in of_row])

    def _next(self, rows: Sequence[Sequence[Text]]) -> list[Tensor]:
        """Return the scores of some texts of each row, and hold what they share, but for the last of their tokens."""
        stems: list[list[int]] = []
        trees = []
        for i, row in enumerate(rows):
            texts = [text.ids for text in row]
            shared = _shared(texts)[: min(map(len, texts), default=1) - 1]
            known = len(_shared([self._held[i], shared])) if texts else len(self._held[i])
            self._held[i], self._columns[i] = self._held[i][:known], self._columns[i][:known]
            self._values[i] = self._values[i][:known]
            stems.append(shared[known:])
            trees.append(_Tree.of([ids[len(shared) :] for ids in texts]))
        while max(map(len, stems)) > _AT_ONCE:
            self._read([stem[:_AT_ONCE] for stem in stems], [_Tree.of([])] * len(stems))
            stems = [stem[_AT_ONCE:] for stem in stems]
        values = self._read(stems, trees)
        return [
            self._weighed([torch.cat([held, own[tree.paths[end]]]) for end in tree.ends], [text.marks for text in row])
            for row, tree, held, own in zip(rows, trees, self._values, values, strict=True)
        ]

    def _weighed(self, values: Sequence[Tensor], marks: Sequence[Marks]) -> Tensor:
        """Return the score of each text, (texts,), from the values and the marks of its tokens."""
        if not values:
            return torch.zeros(0)
        weights = self._reward.weights(pad(marks, 0)[0])
        return torch.where(weights > 0, weights * pad_sequence(list(values), batch_first=True), 0.0).sum(1)

    def _read(self, stems: Sequence[list[int]], trees: Sequence[_Tree]) -> Tensor:
        """Read the next tokens of each row, hold them, and return the values of what branches off behind them."""
        stem, n = max(map(len, stems)), max(len(tree.tokens) for tree in trees)
        ids, places, sees = self._pass(stems, trees, stem, n)
        hidden = torch.zeros(sees.shape, dtype=self._dtype).masked_fill(~sees, torch.finfo(self._dtype).min)[:, None]
        ids, places, hidden = (t.to(self._device) for t in (ids, places, hidden))
        more = {"position_ids": places, "use_cache": True, CACHE: self._cache}
        values = self._reward.values(input_ids=ids, attention_mask=hidden, **more).float().cpu()
        if n:
            self._cache.crop(-n)
        for i, new in enumerate(stems):
            self._held[i] += new
            self._values[i] = torch.cat([self._values[i], values[i, : len(new)]])
            self._columns[i] += range(self._size, self._size + len(new))
        self._size += stem
        return values[:, stem:]

    def _pass(
        self, stems: Sequence[list[int]], trees: Sequence[_Tree], stem: int, n: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids, positions, (rows, stem + n), and what each sees, (rows, stem + n, cached + stem + n)."""
        rows, size = len(stems), self._size
        ids = torch.zeros(rows, stem + n, dtype=torch.long)
        places = torch.zeros_like(ids)
        sees = torch.zeros(rows, stem + n, size + stem + n, dtype=torch.bool)
        sees[:, :, size:] |= torch.eye(stem + n, dtype=torch.bool)  # padding sees itself: no row may see nothing
        for i, (new, tree) in enumerate(zip(stems, trees, strict=True)):
            begun, end = len(self._held[i]), stem + len(tree.tokens)
            ids[i, : len(new)] = torch.tensor(new, dtype=torch.long)
            ids[i, stem:end] = torch.tensor(tree.tokens, dtype=torch.long)
            places[i, : len(new)] = torch.arange(begun, begun + len(new))
            places[i, stem:end] = torch.tensor([begun + len(new) + len(p) - 1 for p in tree.paths], dtype=torch.long)
            sees[i, :, self._columns[i]] = True
            sees[i, : len(new), size : size + len(new)] |= torch.ones(len(new), len(new), dtype=torch.bool).tril()
            sees[i, stem:, size : size + len(new)] = True
            pairs = [(node, above) for node, path in enumerate(tree.paths) for above in path]
            nodes, above = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
            sees[i, stem + nodes, size + stem + above] = True
        return ids, places, sees


def _shared(texts: Sequence[Ids]) -> list[int]:
    """Return what all texts begin with."""
    return [column[0] for column in takewhile(lambda ids: len(set(ids)) == 1, zip(*texts, strict=False))]


def can_share(reward: RewardModel) -> bool:
    """Tell whether a shared reading gives what texts read alone give. Tried out once for each model and data type."""
    backbone = reward.backbone
    if backbone is None or reward.largest_batch is not None:  # what stands beside a text changes its score
        return False
    known = _tried.setdefault(backbone, {})
    if backbone.dtype not in known:
        agrees = keeps_columns(backbone) and not turns_by_length(backbone) and _agrees(reward, backbone.dtype)
        known[backbone.dtype] = agrees
    return known[backbone.dtype]


def _agrees(reward: RewardModel, dtype: torch.dtype) -> bool:
    """Compare both ways over two steps of two rows, of which the second goes back behind what the first has held."""
    first = [[[3, 4, 5, 6, 7], [3, 4, 5, 6, 8, 9], [3, 4, 5, 6, 8, 4]], [[5, 4, 3], [5, 4, 6]]]
    then = [[[3, 4, 5, 8, 7, 5, 4], [3, 4, 5, 8, 7, 6]], [[5, 4, 3, 7, 6], [5, 4, 3, 8]]]
    steps = [[[Text(ids, [READ, *[REPLY] * (len(ids) - 1)]) for ids in row] for row in rows] for rows in (first, then)]
    texts = [text for rows in steps for row in rows for text in row]
    try:
        reading = SharedReading(reward)
        found = torch.cat([reading.scores(rows) for rows in steps])
        wanted = reward.read([list(text.ids) for text in texts], [list(text.marks) for text in texts])
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError, IndexError):
        return False
    return bool((found - wanted).abs().max() <= torch.finfo(dtype).eps ** 0.5 * wanted.abs().max())
