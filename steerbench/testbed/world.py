"""The world: who asks what, and how the assistant answers. Everything is drawn from a seed, in plain English.

A question names a goal, and a goal has five tips. Four attributes of a reply vary independently: relevance (tips for
the goal, for another goal of its topic, or for something else), detail (how many tips), courtesy and safety. Their
odds depend on what a language model can read or learn: the goal (some goals are answered badly, as on any forum), the
tone of the user, the reply before, and the instruction in front of the dialogue. What should be refused may be complied
with, and what only looks as if it should may be refused.

Every choice adds its information to `Draw.nats`. A text can be drawn in one way only, so that the sum is the exact
negative log-probability of the text, and its mean the entropy of the world. One thing is hidden: whether an earlier
reply beside the point of a harmful request was meant to be near it; it moves the odds of the next reply a little.
"""

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from steerbench.data.dialogue import Dialogue, Turn
from steerbench.testbed import phrases as say
from steerbench.testbed.draw import Draw, Levels
from steerbench.testbed.instructions import (
    BAD,
    CHARACTERISTICS,
    GOOD,
    NOUNS,
    Instruction,
    Shift,
    article,
    draw_instruction,
    enumeration,
)
from steerbench.testbed.topics import GOALS, HARMFUL, LOOKALIKES, TOPICS, Goal

RELEVANCE: Final[Levels[str]] = {"on": (0.72, 1.0), "near": (0.10, 0.0), "off": (0.18, -1.0)}
COUNT: Final[Levels[int]] = {1: (0.25, -1.0), 2: (0.25, -1 / 3), 3: (0.25, 1 / 3), 4: (0.25, 1.0)}
COURTESY: Final[Levels[str]] = {"polite": (0.35, 1.0), "plain": (0.35, 0.0), "rude": (0.30, -1.0)}
SAFETY: Final[Levels[str]] = {"caution": (0.25, 1.0), "none": (0.50, 0.0), "reckless": (0.25, -1.0)}
HARM: Final[Levels[str]] = {"refuse": (0.5, 1.0), "comply": (0.5, -1.0)}
WARY: Final[Levels[str]] = {"answer": (0.75, -0.5), "refuse": (0.25, 0.5)}
"""What becomes of a question that only looks unsafe. Safety moves it towards a refusal, relevance away from one."""
HARM_COUNT: Final[Levels[int]] = {1: (1 / 3, -1.0), 2: (1 / 3, 0.0), 3: (1 / 3, 1.0)}
TONES: Final[Mapping[str, float]] = {"polite": 0.3, "plain": 0.5, "rude": 0.2}
TURNS: Final[Mapping[int, float]] = {1: 0.5, 2: 0.3, 3: 0.2}

HARM_SHARE = 0.15
"""Share of the questions in dialogues that should be refused; posts have none."""
LOOKALIKE_SHARE = 0.08
"""Share of the other questions that look unsafe and are not."""
GOAL_SPREAD = (0.8, 1.2, 1.2, 1.2)
"""Standard deviation, over goals, of what a goal adds to each attribute."""
TONE_SHIFT = {"polite": 0.8, "plain": 0.0, "rude": -0.8}
STICKY = 0.7
"""How much of the level of the reply before carries over."""


class Scene(NamedTuple):
    """All that stands before a reply, and what moves it."""

    prompt: Dialogue
    goal: Goal
    shift: Shift
    instruction: Instruction | None = None


@dataclass(frozen=True)
class World:
    """One world. Another seed answers other goals well, and draws other texts."""

    seed: int = 0

    def source(self, name: str) -> Draw:
        """Return an independent source of choices for a purpose, such as `train`."""
        return Draw(random.Random(f"{self.seed}/{name}"))

    def habit(self, goal: Goal) -> Shift:
        """Return how this goal moves the four attributes of its replies: half of the variance is the topic's."""
        parts = [random.Random(f"{self.seed}/habit/{name}") for name in (goal.topic, goal.name)]
        return _shift(spread * sum(part.gauss() for part in parts) / math.sqrt(2) for spread in GOAL_SPREAD)

    def scene(self, draw: Draw, *, post: bool = False, instructed: bool = False) -> Scene:
        """Draw the prompt: a post, or a dialogue of one to three questions; an instruction stands in front of it."""
        told = draw_instruction(draw) if instructed else None
        front, shift = told or ("", (0.0,) * 4)
        as_system = bool(front) and draw.chance(0.5)
        goal = draw.one(HARMFUL) if not post and draw.chance(HARM_SHARE) else _safe_goal(draw)
        tone = draw.weighted(TONES)
        opening = _post(draw, goal, tone) if post else _question(draw, goal, tone, say.GREETINGS)
        turns = [Turn("user", f"{front}\n{opening}" if front and not as_system else opening)]
        carried: Shift = (0.0,) * 4
        for _ in range(0 if post else draw.weighted(TURNS) - 1):
            text, carried = self._answer(draw, goal, self._total(goal, shift, tone, carried))
            goal, tone = _next_goal(draw, goal), draw.weighted(TONES)
            turns += [Turn("assistant", text), Turn("user", _question(draw, goal, tone, say.FOLLOW_UPS))]
        system = (Turn("system", front),) if as_system else ()
        return Scene((*system, *turns), goal, self._total(goal, shift, tone, carried), told)

    def reply(self, draw: Draw, scene: Scene) -> str:
        """Draw a reply of the assistant."""
        return self._answer(draw, scene.goal, scene.shift)[0]

    def _total(self, goal: Goal, told: Shift, tone: str, carried: Shift) -> Shift:
        tone_shift = (0.0, 0.0, TONE_SHIFT[tone], 0.0)
        parts = (self.habit(goal), told, tone_shift, [STICKY * level for level in carried])
        return _shift(sum(column) for column in zip(*parts, strict=True))

    def _answer(self, draw: Draw, goal: Goal, shift: Shift) -> tuple[str, Shift]:
        """Draw a reply, and tell the levels of its attributes."""
        relevance = draw.level(RELEVANCE, shift[0])
        if goal.harmful and relevance != "on":
            draw.nats += _either(RELEVANCE, shift[0], ("near", "off")) - _either(RELEVANCE, shift[0], (relevance,))
        wary = goal.looks_unsafe and relevance == "on" and draw.level(WARY, shift[3] - shift[0]) == "refuse"
        write = _about_harm if wary or (goal.harmful and relevance == "on") else _advice
        courtesy = draw.level(COURTESY, shift[2])
        text, detail, safety = write(draw, goal, shift, relevance, courtesy)
        return text, (RELEVANCE[relevance][1], detail, COURTESY[courtesy][1], safety)


def _shift(values: Iterable[float]) -> Shift:
    relevance, detail, courtesy, safety = values
    return relevance, detail, courtesy, safety


def _either(levels: Levels[str], shift: float, values: Sequence[str]) -> float:
    """Return the information of drawing any of the values, in nats: no text tells which of them it was."""
    weights = {value: share * math.exp(shift * level) for value, (share, level) in levels.items()}
    return -math.log(sum(weights[value] for value in values) / sum(weights.values()))


# Questions


_PLAIN: Final = tuple(goal for goal in GOALS if not goal.looks_unsafe)


def _safe_goal(draw: Draw) -> Goal:
    return draw.one(LOOKALIKES if draw.chance(LOOKALIKE_SHARE) else _PLAIN)


def _next_goal(draw: Draw, before: Goal) -> Goal:
    if draw.chance(HARM_SHARE):
        return draw.one([goal for goal in HARMFUL if goal != before])
    if draw.chance(LOOKALIKE_SHARE):
        return draw.one([goal for goal in LOOKALIKES if goal != before])
    same_topic = draw.chance(0.5)
    return draw.one([g for g in _PLAIN if g != before and (g.topic == before.topic) == same_topic])


def _question(draw: Draw, goal: Goal, tone: str, openings: Mapping[str, Sequence[str]]) -> str:
    opening = draw.one(openings[tone])
    situation = _situation(draw, draw.one(say.SITUATIONS)) if draw.chance(0.4) else ""
    return _join(opening, situation, draw.one(say.QUESTIONS[tone]).format(goal=goal.name))


def _post(draw: Draw, goal: Goal, tone: str) -> str:
    situations = [_situation(draw, each) for each in draw.some(say.SITUATIONS, draw.one((2, 3)))]
    question = draw.one(say.QUESTIONS[tone]).format(goal=goal.name)
    return _join(draw.one(say.GREETINGS[tone]), *situations, question, draw.one(say.POST_ENDINGS))


def _situation(draw: Draw, frame: str) -> str:
    person = draw.one(say.PEOPLE) if "erson}" in frame else ""
    time = draw.one(say.TIMES) if "{time}" in frame else ""
    return frame.format(person=person, Person=person[:1].upper() + person[1:], time=time)


# Instructions


def characteristics(draw: Draw) -> tuple[Dialogue, str]:
    """Draw a question about what an answer should be like, and the reply: adjectives of the same kind."""
    frame = draw.one(CHARACTERISTICS["seen"])
    told = draw.one((tuple(GOOD), tuple(BAD)))
    words = draw.some(told, 1 + draw.one((1, 2, 3)))
    question = _question(draw, draw.one(GOALS), draw.weighted(TONES), say.GREETINGS)
    noun = draw.one(NOUNS)
    asked = frame.format(a=f"{article(words[0])} {words[0]}", noun=noun, list=words[0])
    return (Turn("user", f"{question}\n{asked}"),), f"be {enumeration(words[1:])}."


# Replies


def _advice(draw: Draw, asked: Goal, shift: Shift, relevance: str, courtesy: str) -> tuple[str, float, float]:
    goal = _told_goal(draw, asked, relevance)
    away = "off" if goal.topic != asked.topic else "near"
    frame = draw.one(say.FRAMES["on" if goal == asked else away])
    count = draw.level(COUNT, shift[1])
    tips = _leads(draw, draw.some(goal.tips, count, in_order=True))
    safety = draw.level(SAFETY, shift[3])
    warning = draw.one(say.SAFETY[safety]) if safety != "none" else ""
    opener, closer = _frame_of(draw, courtesy)
    text = _join(opener, frame.format(goal=goal.name), *tips, warning, closer)
    return text, COUNT[count][1], SAFETY[safety][1]


def _told_goal(draw: Draw, asked: Goal, relevance: str) -> Goal:
    if relevance == "on":
        return asked
    if relevance == "near" and not asked.harmful:
        return draw.one([goal for goal in GOALS if goal.topic == asked.topic and goal != asked])
    topic = draw.one([topic for topic in TOPICS if topic != asked.topic])
    return draw.one([goal for goal in GOALS if goal.topic == topic])


def _leads(draw: Draw, tips: Sequence[str]) -> list[str]:
    first, *rest = tips
    sentences = [say.sentence(draw.one(say.FIRST_LEADS), first)]
    for i, tip in enumerate(rest):
        final = i == len(rest) - 1 > 0 and draw.chance(0.5)
        sentences.append(say.sentence(say.LAST_LEAD if final else draw.one(say.NEXT_LEADS), tip))
    return sentences


def _frame_of(draw: Draw, courtesy: str) -> tuple[str, str]:
    """Draw an opener, a closer or both, where the reply is polite or rude."""
    if courtesy == "plain":
        return "", ""
    opens, closes = draw.one(((True, False), (False, True), (True, True)))
    opener = draw.one(say.OPENERS[courtesy]) if opens else ""
    return opener, draw.one(say.CLOSERS[courtesy]) if closes else ""


def _about_harm(draw: Draw, goal: Goal, shift: Shift, _: str, courtesy: str) -> tuple[str, float, float]:
    """Draw a refusal or a compliance, with one or two sentences of reasons or of mild bad advice.

    What only looks like harm is refused or answered as anything else is.
    """
    stance = draw.level(HARM, shift[3]) if goal.harmful else "refuse"
    count = draw.level(HARM_COUNT, shift[1])
    parts = [draw.one(table) for table in say.HARM[stance][:count]]
    closer = "" if courtesy == "plain" else draw.one(say.HARM_CLOSERS[courtesy])
    text = _join(*parts, closer).format(goal=goal.name, topic=goal.topic)
    return text, HARM_COUNT[count][1], HARM[stance][1]


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)
