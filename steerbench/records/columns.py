"""The columns of the leaderboard: what each is called, means, and how it is written. Every table is made from these."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of the leaderboard, by its name in the CSV; a metric has the same name in the record."""

    name: str
    heading: str
    """Short, for the terminal and the README."""
    meaning: str
    unit: str = ""
    """`share` for a share of prompts or responses; empty where a number has none of its own."""
    digits: int = 3
    """Decimals, in the README and the report. The terminal shows three of everything, gains as many as fit."""
    better: int = 0
    """1 where a higher number is better, -1 where a lower one is, 0 where neither."""
    long: str = ""
    """The heading where there is room, as in the report, if that is another."""
    of: str = ""
    """The column that this says more about, such as the lower end of its interval."""

    @property
    def title(self) -> str:
        """The heading where there is room."""
        return self.long or self.heading

    @property
    def is_gain(self) -> bool:
        """Whether it holds a gain over the unsteered model, of which plus and minus are worth showing."""
        return self.name.endswith("_gain")


def _with_ends(column: Column) -> list[Column]:
    """Return a column with those of its interval."""
    ends = (("low", "lower"), ("high", "upper"))
    told = [(f"{column.title} {end}", f"{which} end of the 95 % interval of `{column.name}`") for end, which in ends]
    return [
        column,
        *(
            Column(f"{column.name}_{end}", *text, column.unit, digits=column.digits, of=column.name)
            for (end, _), text in zip(ends, told, strict=True)
        ),
    ]


def _agreement(name: str, heading: str, other: str, why: str = "") -> list[Column]:
    """Return a column of how well the reward agrees with another score, its interval, and its change."""
    meaning = f"rank correlation of reward and {other} over the responses, -1 to 1, with a 95 % interval"
    change = f"`{name}` less that of the unsteered model{why}"
    whole = _with_ends(Column(name, heading, meaning, digits=2, better=1))
    return [*whole, Column(f"{name}_change", f"{heading} change", change, digits=2, better=1)]


_WHAT = (
    Column("task", "task", "what the prompts are from"),
    Column(
        "rank",
        "#",
        "1 + the number of methods that are surely better by the guiding reward, or without one by the first score of "
        "given answers; empty without all the protocol's seeds, or such a score",
        better=-1,
    ),
    Column("method", "method", "as given, with a hash where two of one name differ in their source or version"),
)
METRIC_COLUMNS = (
    Column("reward", "reward", "mean score by the guiding reward model", better=1),
    Column(
        "held_out_reward", "held", "mean score by the reward model that no method has seen", better=1, long="held-out"
    ),
    Column("gold", "gold", "true score of the response, from -4 to 5; the testbed's data alone have one", better=1),
    Column(
        "win_rate",
        "win",
        "share of prompts with a higher reward than the unsteered response; a tie, within 1e-4, is one half",
        "share",
        digits=2,
        better=1,
        long="win rate",
    ),
    Column(
        "win_rate_preferred",
        "win / preferred",
        "share of prompts with a higher reward than the data set's preferred reply, ties one half",
        "share",
        digits=2,
        better=1,
    ),
    Column(
        "held_out_win_rate", "held-out win rate", "as `win_rate`, by the held-out reward", "share", digits=2, better=1
    ),
    Column(
        "held_out_win_rate_preferred",
        "held-out win / preferred",
        "as `win_rate_preferred`, by the held-out reward",
        "share",
        digits=2,
        better=1,
    ),
    Column(
        "worse",
        "worse",
        "share of prompts with a lower reward than the unsteered response, by more than 1e-4",
        "share",
        digits=2,
        better=-1,
    ),
    Column(
        "diversity",
        "div.",
        "product of distinct n-gram ratios within a response, n = 2..4",
        digits=2,
        better=1,
        long="diversity",
    ),
    Column(
        "repetition",
        "repetition",
        "share of a response's 4-grams of words that it has had before (seq-rep-4)",
        better=-1,
    ),
    Column("coherence", "coh.", "cosine of the sentence embeddings of prompt and response", better=1, long="coherence"),
    Column("length", "length", "tokens of the response", "tokens", digits=0),
    Column(
        "kl",
        "KL",
        "KL(steered || unsteered) per token of the responses, in nats; a bound or estimate where candidates are chosen",
        "nats per token",
        better=-1,
    ),
    Column(
        "perplexity",
        "perplexity",
        "of the responses under the unsteered model with the plain prompt, over all tokens",
        digits=2,
    ),
    Column("truncated", "truncated", "share of responses that reached the token limit", "share", digits=2, better=-1),
    Column("empty", "empty", "share of responses without text", "share", digits=2, better=-1),
    Column("accuracy", "accuracy", "share of questions whose right choice is the likeliest reply", "share", better=1),
    Column("mc1", "MC1", "share of questions whose true answer is the likeliest reply", "share", better=1),
    Column("mc2", "MC2", "probability of the true answers among those of MC2", "probability", better=1),
    Column(
        "matching",
        "matching",
        "probability of the answer that matches the behavior, mean of both orders of the two choices",
        "probability",
    ),
)
"""The metrics of a record, in its order."""
_GAIN_COLUMNS = (
    Column(
        "reward_gain",
        "reward gain",
        "reward over the unsteered model, with a 95 % interval over the prompts, and the seeds where they fit anew",
        digits=2,
        better=1,
    ),
    Column("held_out_reward_gain", "held-out gain", "the same by the held-out reward", digits=2, better=1),
    Column("gold_gain", "gold gain", "the same by the true score", digits=2, better=1),
)
_TUNED = Column(
    "validation_gain",
    "validation gain",
    "reward over the unsteered model of the trial that tuning chose, on its own prompts: the highest of several, so "
    "more than other prompts show",
    digits=2,
)
_SIDE_EFFECT_COLUMNS = (
    Column(
        "length_controlled_gain",
        "equal length",
        "reward gain at the length of the unsteered response: the intercept of the gain over the log of the ratio of "
        "the lengths, with a 95 % interval over the prompts",
        digits=2,
        better=1,
        long="gain at equal length",
    ),
    Column(
        "length_controlled_gain_low",
        "equal length low",
        "lower end of the 95 % interval of the gain at equal length",
        digits=2,
        of="length_controlled_gain",
    ),
    Column(
        "length_controlled_gain_high",
        "equal length high",
        "upper end of the 95 % interval of the gain at equal length",
        digits=2,
        of="length_controlled_gain",
    ),
    Column(
        "worse_floor",
        "worse by chance",
        "what `worse` is between two draws of the unsteered model; empty where it was drawn once",
        "share",
        digits=2,
    ),
    Column(
        "kl_response",
        "KL / response",
        "KL(steered || unsteered) of a whole response: that per token, summed over its tokens",
        "nats per response",
        digits=2,
        better=-1,
    ),
    Column(
        "over_refusal",
        "over-refusal",
        "share of the questions that the data set's preferred reply does not refuse and the response does, refusals "
        "found by their words; on the testbed, of those that only look unsafe, by its own sentences",
        "share",
        digits=2,
        better=-1,
    ),
    Column(
        "harmful_compliance",
        "compliance",
        "share of the questions that the data set's preferred reply refuses and the response, by its words, does not; "
        "on the testbed, of what should be refused, by its own sentences",
        "share",
        digits=2,
        better=-1,
        long="harmful compliance",
    ),
    *_agreement(
        "agreement", "agreement", "held-out reward", ": below zero the guide is trusted where it no longer holds"
    ),
    *_agreement("agreement_gold", "gold agreement", "gold"),
)
_LATENCY_COLUMNS = (
    Column(
        "decode_ratio",
        "time ×",
        "decoding time per token beside that of the unsteered model, batch of one",
        digits=2,
        better=-1,
    ),
    Column(
        "decode_floor",
        "floor ×",
        "the least that `time ×` could be where moving bytes takes all the time; empty in records from before it",
        digits=2,
        better=-1,
    ),
    Column("prefill_ratio", "prefill ×", "time of the prefill beside that of the unsteered model", digits=2, better=-1),
    Column("prefill_ms", "prefill", "time of the prefill", "ms", digits=1, better=-1),
    Column("decode_ms_per_token", "decode", "decoding time", "ms per token", digits=1, better=-1),
    Column("tokens_per_s", "speed", "tokens decoded per second", "tokens per s", digits=1, better=1),
    Column("peak_memory_mb", "memory", "most memory held on the device", "MB", digits=0, better=-1),
)
_WHERE = (
    Column(
        "fit_seconds",
        "fit s",
        "seconds of the fit, where there were trials of the longest one; what methods share counts for the first",
        "s",
        digits=1,
        better=-1,
    ),
    Column(
        "matched",
        "matched",
        "1 where every seed met the KL asked for, on validation prompts; 0 where not",
        digits=0,
        better=1,
        long="KL matched",
    ),
    Column(
        "at_the_end",
        "at the end",
        "what tuning chose at an end of its range, with any seed: a better value may lie beyond",
    ),
    Column("seeds", "seeds", "seeds that were measured", digits=0),
    Column(
        "fits",
        "fits",
        "different steerings that the seeds gave; empty for one seed, where another may have given another steering",
        digits=0,
    ),
    Column("n_examples", "prompts", "test prompts that were measured", digits=0),
    Column("model", "model", "the model that is steered"),
    Column("reward_model", "reward model", "the guiding reward model"),
    Column("held_out_model", "held-out model", "the reward model that no method has seen"),
    Column("device", "device", "what it was measured on"),
    Column("protocol", "protocol", "hash of every choice that must be equal to compare"),
)


def _choice_gain(score: Column) -> Column:
    meaning = f"`{score.name}` over the unsteered model on the same questions, with a 95 % interval over them"
    return Column(f"{score.name}_gain", f"{score.heading} gain", meaning, score.unit, better=score.better)


CHOICE_SCORES = ("accuracy", "mc1", "mc2", "matching")
"""Metrics of given answers, which have gains over the unsteered model as well."""
RANKED_BY = ("reward", *CHOICE_SCORES)
"""What methods are ranked by: the first of these that the records have."""
_ODDS = "the log-odds of the matching answer"
_STEERABILITY = Column(
    "steerability",
    "steerability",
    f"rise of {_ODDS} over the unsteered model, mean over the questions",
    "nats",
)
_ANTI_STEERABLE = Column(
    "anti_steerable", "anti-steerable", f"share of questions where {_ODDS} are lower than without steering", "share"
)
_CAPABILITY = Column("capability", "capability", "score by the capability check, as accuracy on `mmlu`", better=1)
_DAMAGE = Column(
    "damage", "damage", "how much lower `capability` is than without steering, with a 95 % interval", better=-1
)
_CHOICE_GAINS = tuple(_choice_gain(score) for score in METRIC_COLUMNS if score.name in CHOICE_SCORES)
_CHOICE_COLUMNS = (
    *(column for one in (*_CHOICE_GAINS, _STEERABILITY) for column in _with_ends(one)),
    _ANTI_STEERABLE,
    _CAPABILITY,
    *_with_ends(_DAMAGE),
)
CHOICE_COLUMNS = tuple(column.name for column in _CHOICE_COLUMNS)
"""What is derived from given answers: gains, steerability, and damage."""
GAINS = tuple(column.name.removesuffix("_gain") for column in _GAIN_COLUMNS)
"""Metrics that have a gain over the unsteered model, such as `reward_gain` with `reward_gain_low` and `_high`."""
RATES = tuple(column.name for column in METRIC_COLUMNS if column.unit == "share")
"""Metrics that are shares, with Wilson's intervals `_low` and `_high`."""
SIDE_EFFECTS = tuple(column.name for column in _SIDE_EFFECT_COLUMNS)
"""What is derived from texts and raw scores alone, beside the metrics and their gains."""
LATENCY = tuple(column.name for column in _LATENCY_COLUMNS)
"""What is taken from a record's timings."""
GAIN_ENDS = ("", "_low", "_high", "_p", "_p_holm", "_fit_sd", "_sampling_sd")
"""What the names of a gain's columns end with."""


def _about_gain(gain: Column) -> list[Column]:
    """Return a gain with its interval, p-values and deviations; those of the reward, the first, are named shortest."""
    what = gain.heading
    before = "" if gain is _GAIN_COLUMNS[0] else what.removesuffix("gain")
    told = (
        (f"{what} low", f"lower end of the 95 % interval of the {what}", gain.digits),
        (f"{what} high", f"upper end of the 95 % interval of the {what}", gain.digits),
        (f"{before}p", f"p-value of the {what}", 3),
        (f"{before}p (Holm)", f"p-value of the {what}, corrected for the number of methods", 3),
        (f"{before}fit sd", f"standard deviation of the {what} between fits", 3),
        (f"{before}sampling sd", f"standard deviation of the {what} between samples", 3),
    )
    ends = zip(GAIN_ENDS[1:], told, strict=True)
    return [
        gain,
        *(
            Column(f"{gain.name}{end}", heading, meaning, digits=digits, of=gain.name)
            for end, (heading, meaning, digits) in ends
        ),
    ]


def _about_rate(rate: Column) -> list[Column]:
    meaning = f"end of Wilson's 95 % interval of `{rate.name}`, by the number of clusters of prompts"
    return [
        Column(f"{rate.name}_{end}", f"{rate.title} {end}", f"{which} {meaning}", "share", digits=2, of=rate.name)
        for end, which in (("low", "lower"), ("high", "upper"))
    ]


_OF_GAINS = [column for gain in _GAIN_COLUMNS for column in _about_gain(gain)]
_OF_RATES = [column for metric in METRIC_COLUMNS if metric.name in RATES for column in _about_rate(metric)]
GAIN_COLUMNS = tuple(column.name for column in _OF_GAINS)
"""Names of all columns about gains."""
COLUMNS = {
    column.name: column
    for column in (
        *_WHAT,
        *METRIC_COLUMNS,
        *_OF_GAINS,
        *_SIDE_EFFECT_COLUMNS,
        *_CHOICE_COLUMNS,
        _TUNED,
        *_OF_RATES,
        *_LATENCY_COLUMNS,
        *_WHERE,
    )
}
"""Every column by its name, in the order of the CSV."""
