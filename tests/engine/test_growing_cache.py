"""A cache with room holds what that of transformers holds, whatever is done to it between the tokens."""

import random

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from steerbench.engine.growing_cache import ROOM, GrowingLayer, growing_cache


def columns(rows: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, n, 4), torch.randn(rows, 2, n, 6)


def change(layer: DynamicLayer, what: str, pick: random.Random) -> None:
    """Do to a layer what is done to those of a batch."""
    rows = len(layer.keys)
    if what == "rows":
        chosen = torch.tensor([pick.randrange(rows) for _ in range(pick.randint(1, 4))])
        layer.keys, layer.values = layer.keys.index_select(0, chosen), layer.values.index_select(0, chosen)
    elif what == "front":
        layer.keys, layer.values = layer.keys[:, :, 1:], layer.values[:, :, 1:]
    elif what == "crop":
        layer.crop(-2)
    elif what == "write":
        layer.keys[0], layer.values[0] = 1.0, 2.0


def test_it_holds_what_that_of_transformers_holds() -> None:
    torch.manual_seed(0)
    for seed in range(20):
        pick, mine, theirs = random.Random(seed), GrowingLayer(), DynamicLayer()
        for layer in (mine, theirs):
            torch.manual_seed(seed)
            layer.update(*columns(3, 9))
        for step in range(40):
            what = pick.choice(("token", "token", "token", "tokens", "rows", "front", "crop", "write"))
            if what in {"token", "tokens"} or mine.keys.shape[2] < 4:
                new = columns(len(mine.keys), 3 if what == "tokens" else 1)
                for found, wanted in zip(mine.update(*new), theirs.update(*new), strict=True):
                    assert torch.equal(found, wanted), (seed, step)
            else:
                state = pick.getstate()
                change(mine, what, pick)
                pick.setstate(state)
                change(theirs, what, pick)
            assert torch.equal(mine.keys, theirs.keys), (seed, step, what)
            assert torch.equal(mine.values, theirs.values), (seed, step, what)
            assert mine.get_seq_length() == theirs.get_seq_length()


def test_a_token_copies_nothing() -> None:
    layer = GrowingLayer()
    layer.update(*columns(2, 5))
    places = []
    for _ in range(3 * (ROOM + 1)):
        keys, _ = layer.update(*columns(2, 1))
        places.append(keys.data_ptr())
    assert len(set(places)) == 3
    layer.update(*columns(2, 1))
    room = layer.keys.untyped_storage().data_ptr()
    layer.keys = layer.keys[:, :, 2:]
    assert layer.update(*columns(2, 1))[0].untyped_storage().data_ptr() == room  # nor does what has left in front


def test_every_layer_of_a_cache_grows() -> None:
    cache = growing_cache()
    assert isinstance(cache, DynamicCache)
    for layer in range(2):
        cache.update(*columns(1, 4), layer)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer, GrowingLayer]
