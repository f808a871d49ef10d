"""Replies that are worth little, whatever a reward makes of them: what text comes to when steering goes too far."""

from collections.abc import Callable, Mapping
from typing import Final

from steerbench.testbed import phrases as say
from steerbench.testbed.draw import Draw
from steerbench.testbed.world import Scene, World

Wreck = Callable[[World, Draw, Scene], str]


def shuffled(draw: Draw, text: str) -> str:
    """Return the words of a text in a random order."""
    words = text.split()
    return " ".join(draw.rng.sample(words, len(words)))


def _shuffled(world: World, draw: Draw, scene: Scene) -> str:
    return shuffled(draw, world.reply(draw, scene))


def _off_topic(world: World, draw: Draw, scene: Scene) -> str:
    other = world.scene(draw)
    return world.reply(draw, other)


def _echoed(_: World, __: Draw, scene: Scene) -> str:
    return scene.prompt[-1].text


def _empty(_: World, __: Draw, ___: Scene) -> str:
    return ""


def _repeated(world: World, draw: Draw, scene: Scene) -> str:
    """Say one part of a reply over and over: a sentence of it, or a few words."""
    reply = world.reply(draw, scene)
    if draw.rng.random() < 0.5:
        part = draw.rng.choice(reply.replace("! ", "!|").replace(". ", ".|").split("|"))
    else:
        words = reply.split()
        start = draw.rng.randrange(len(words))
        part = " ".join(words[start : start + draw.rng.randint(1, 4)])
    return " ".join([part] * draw.rng.randint(3, 8))


def _merely_polite(_: World, draw: Draw, __: Scene) -> str:
    return " ".join(draw.rng.sample(say.OPENERS["polite"] + say.CLOSERS["polite"], 3))


WRECKS: Final[Mapping[str, Wreck]] = {
    "shuffled": _shuffled,
    "off topic": _off_topic,
    "echoed": _echoed,
    "empty": _empty,
    "repeated": _repeated,
    "merely polite": _merely_polite,
}
"""Kinds of wrecks: what writes one to a scene, from the scene's own replies or from another scene's."""
