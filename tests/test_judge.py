"""The judge: both orders, what a reply means, what is asked again, and that nothing is asked twice."""

import http.server
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from typer.testing import Result

from steerbench import Record, SteerbenchError, Store
from steerbench.cli import judging
from steerbench.judge import ASKED, TEMPLATE_HASH, Question, Replies, ask, client, verdict
from steerbench.judge.client import LONGEST_WAIT, TRIES, connect
from steerbench.judge.judgements import COLUMNS, Pair, load_judgements, pairs, win_rates
from steerbench.protocol import fingerprint

Cli = Callable[..., Result]
Answer = str | tuple[int, dict[str, str], str] | None
"""The verdict's text; or status, headers and body; or None: the connection closes without a word."""
KEY = "sk-abc123-very-secret"


class FakeJudge(http.server.ThreadingHTTPServer):
    """A server whose judge is a function of prompt, response A and response B."""

    daemon_threads = True
    request_queue_size = 64  # more than there are workers: who finds it full waits for a second

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self.judge: Callable[[str, str, str], Answer] = longer
        self.calls: list[tuple[str, str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []

    def handle_error(self, *_: Any) -> None:
        """Say nothing about clients that hang up."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: FakeJudge

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = re.search(
            r"<conversation>\n(.*)\n</conv.*<response_a>\n(.*)\n</resp.*<response_b>\n(.*)\n</resp",
            body["messages"][0]["content"],
            re.DOTALL,
        )
        assert asked
        question = (asked[1], asked[2], asked[3])
        self.server.calls.append(question)
        self.server.bodies.append({**body, "path": self.path})
        self.server.keys.append(self.headers["Authorization"])
        answer = self.server.judge(*question)
        if answer is not None:
            self.reply(*((200, {}, said(answer)) if isinstance(answer, str) else answer))

    do_GET = do_POST

    def reply(self, status: int, headers: dict[str, str], body: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        """Be silent."""


def said(text: Any) -> str:
    return json.dumps({"model": "judge-2026-01-01", "choices": [{"message": {"role": "assistant", "content": text}}]})


def longer(_: str, a: str, b: str) -> str:
    return "Because.\n[[A]]" if len(a) > len(b) else "Because.\n[[B]]"


@pytest.fixture
def server() -> Iterator[FakeJudge]:
    with FakeJudge() as judge:
        thread = threading.Thread(target=judge.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield judge
        judge.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nobody waits; what would have been waited for is noted. No proxy, and no key."""
    waited: list[float] = []
    monkeypatch.setattr(client, "_pause", lambda _, seconds: waited.append(seconds))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return waited


def record(
    method: str,
    responses: list[str],
    *,
    seed: int = 0,
    groups: list[str] | None = None,
    samples: int = 0,
    **protocol: Any,
) -> Record:
    """Return a record with these responses to prompts p0, p1, ...; with samples, so many in a row for each prompt."""
    each = max(1, samples)
    ids = [f"p{i // each:03d}" for i in range(len(responses))]
    examples = pd.DataFrame(
        {"id": ids, "group": groups or ids, "prompt": [f"Q {i}?" for i in ids], "response": responses}
    )
    if samples:
        examples["sample"] = [i % each for i in range(len(responses))]
    return Record(
        method=method,
        parts=[{"name": method, "hyperparameters": {}, "source": "s"}],
        protocol={"task": "shp", "n_examples": len(set(ids)), "model": "m", "seeds": [0, 1], **protocol},
        seed=seed,
        steerbench="0.1.0",
        labels={"task": protocol.get("task", "shp"), "model": "m"},
        metrics={"reward": 0.0},
        latency={},
        counts={},
        truncated=0,
        environment={"device": "cpu"},
        seconds={},
        steering="d",
        created="2026-01-01T00:00:00+00:00",
        examples=examples,
    )


def texts(name: str, n: int) -> list[str]:
    """Return responses of different lengths, other ones for every name."""
    return [f"{name} {fingerprint([name, i])[: 1 + int(fingerprint([i, name])[:2], 16) % 60]}" for i in range(n)]


def two(n: int = 6) -> list[Record]:
    return [record("unsteered", texts("u", n)), record("caa", texts("c", n))]


def judged(server: FakeJudge, folder: Path, records: list[Record], workers: int = 4, **chosen: Any) -> pd.DataFrame:
    """Judge records as the command does."""
    found = pairs(records, **chosen)
    replies = Replies(folder)
    ask(questions(found), connect(server.url, "judge"), replies, workers=workers)
    return win_rates(found, "judge", replies)


def questions(found: list[Pair]) -> list[Question]:
    return [question for pair in found for question in pair.questions]


def only(table: pd.DataFrame) -> Any:
    assert len(table) == 1
    return table.iloc[0]


# What a pair scores


def test_a_judge_that_prefers_the_longer_response(server: FakeJudge, tmp_path: Path) -> None:
    row = only(judged(server, tmp_path, two()))
    wins = sum(len(c) > len(u) for u, c in zip(texts("u", 6), texts("c", 6), strict=True))
    assert 0 < wins < 6
    assert (row.method, row.task, row.win_rate, row.n) == ("caa", "shp", wins / 6, 6)
    assert (row.consistency, row["first"], row.failed, row.identical) == (1, 0.5, 0, 0)


def test_every_pair_is_shown_once_in_each_order(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two())
    u, c = texts("u", 6), texts("c", 6)
    wanted = [(f"Q p{i:03d}?", *order) for i in range(6) for order in ((c[i], u[i]), (u[i], c[i]))]
    assert Counter(server.calls) == Counter(wanted)


def test_the_request_is_that_of_chat_completions(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two(1))
    body = server.bodies[0]
    assert (body["path"], body["model"], body["temperature"]) == ("/v1/chat/completions", "judge", 0)
    assert [message["role"] for message in body["messages"]] == ["user"]


@pytest.mark.parametrize(("token", "first"), [("[[A]]", 1.0), ("[[B]]", 0.0)])
def test_a_judge_with_a_favourite_place_tells_nothing(
    server: FakeJudge, tmp_path: Path, token: str, first: float
) -> None:
    server.judge = lambda *_: token
    row = only(judged(server, tmp_path, two()))
    assert (row.win_rate, row.consistency, row["first"]) == (0.5, 0, first)


def test_ties_are_halves(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda *_: "[[C]]"
    row = only(judged(server, tmp_path, two()))
    assert (row.win_rate, row.consistency) == (0.5, 1)
    assert pd.isna(row["first"])


def moody(prompt: str, a: str, b: str) -> str:
    return f"[[{'ABC'[int(fingerprint([prompt, a, b]), 16) % 3]}]]"


def test_a_judge_of_moods_agrees_with_counting_by_hand(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = moody
    row = only(judged(server, tmp_path, two(40)))
    score, agree, places = 0.0, 0, Counter[str]()
    for i, (u, c) in enumerate(zip(texts("u", 40), texts("c", 40), strict=True)):
        ahead, behind = moody(f"Q p{i:03d}?", c, u)[2], moody(f"Q p{i:03d}?", u, c)[2]
        gained = {"A": 1, "B": 0, "C": 0.5}[ahead], {"A": 0, "B": 1, "C": 0.5}[behind]
        score += sum(gained) / 2
        agree += gained[0] == gained[1]
        places.update([ahead, behind])
    assert row.win_rate == pytest.approx(score / 40, abs=1e-12)
    assert row.consistency == agree / 40
    assert row["first"] == places["A"] / (places["A"] + places["B"])


def test_equal_responses_are_ties_that_nobody_sees(server: FakeJudge, tmp_path: Path) -> None:
    row = only(judged(server, tmp_path, [record("unsteered", ["a", "b"]), record("caa", ["a", "bb"])]))
    assert len(server.calls) == 2
    assert (row.win_rate, row.n, row.identical, row.consistency) == (0.75, 2, 1, 1)


def test_equal_responses_alone_need_no_judge(tmp_path: Path) -> None:
    found = pairs([record("unsteered", ["a"]), record("caa", ["a"])])
    assert not ask(questions(found), connect("http://127.0.0.1:1/v1", "judge"), Replies(tmp_path))
    assert only(win_rates(found, "judge", Replies(tmp_path))).win_rate == 0.5


# What a reply means


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        ("A is right.\n[[A]]", "A"),
        ("[[B]]", "B"),
        ("Neither.\n\n**[[C]]**\n", "C"),
        ("Verdict: [[A]].", "A"),
        ("[[A]] it is, so:\n[[A]]", "A"),
        ("", None),
        ("A", None),
        ("[A]", None),
        ("[[D]]", None),
        ("[[a]]", None),
        ("[[A]] or [[B]]", None),
        ("It is [[A]], because B is cut o", None),
        ('{"verdict": "A"}', None),
    ],
)
def test_a_verdict_is_one_token_at_the_end(reply: str, wanted: str | None) -> None:
    assert verdict(reply) == wanted


MALFORMED = {
    "html": "<html><body>Welcome</body></html>",
    "nothing": "",
    "cut off": said("[[A]]")[:-9],
    "no choices": "{}",
    "empty choices": '{"choices": []}',
    "a list": "[1]",
    "a number": "3",
    "an error": '{"error": {"message": "model is loading"}}',
    "no message": '{"choices": [{"text": "[[A]]"}]}',
    "null": said(None),
    "text of another type": said(5),
    "text in parts": said([{"type": "text", "text": "[[A]]"}]),
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED)
def test_an_answer_without_text_leaves_its_pair_out_and_is_asked_for_again(
    server: FakeJudge, tmp_path: Path, body: str
) -> None:
    server.judge = lambda prompt, a, b: (200, {}, body) if prompt == "Q p001?" else longer(prompt, a, b)
    row = only(judged(server, tmp_path, [record("unsteered", ["a"] * 4), record("caa", ["aa"] * 4)]))
    assert (row.win_rate, row.n, row.failed, row.consistency) == (1, 3, 1, 1)
    assert len(server.calls) == 2 * 3 + 2 * ASKED
    server.judge = longer  # such answers are the server's fault, and not the judge's opinion
    row = only(judged(server, tmp_path, [record("unsteered", ["a"] * 4), record("caa", ["aa"] * 4)]))
    assert (row.n, row.failed) == (4, 0)
    assert len(server.calls) == 2 * 3 + 2 * ASKED + 2


def test_a_reply_without_a_verdict_is_asked_for_again_but_not_for_ever(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda prompt, a, b: "Both are nice." if prompt == "Q p001?" else longer(prompt, a, b)
    first = judged(server, tmp_path, two(4))
    assert (only(first).n, only(first).failed) == (3, 1)
    assert Counter(server.calls).most_common(2)[1][1] == ASKED
    n_calls = len(server.calls)
    pd.testing.assert_frame_equal(judged(server, tmp_path, two(4)), first)
    assert len(server.calls) == n_calls


def test_a_pair_with_a_verdict_in_one_order_alone_is_left_out(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda _, a, b: "[[A]]" if len(a) > len(b) or a[0] != "x" else "?"
    row = only(judged(server, tmp_path, [record("unsteered", ["x", "u"]), record("caa", ["cc", "cc"])]))
    assert (row.n, row.failed, row.win_rate, row["first"]) == (1, 1, 0.5, 1)


def test_what_is_malformed_once_may_be_whole_the_next_time(server: FakeJudge, tmp_path: Path) -> None:
    seen: Counter[tuple[str, str, str]] = Counter()

    def judge(*question: str) -> Answer:
        seen[question] += 1  # type: ignore[index]
        return ["hm", (200, {}, "<p>"), longer(*question)][seen[question] - 1]  # type: ignore[index, return-value]

    server.judge = judge
    assert only(judged(server, tmp_path, two())).failed == 0
    assert set(seen.values()) == {3}


def test_a_judge_that_never_gives_a_verdict_is_given_up_early(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda *_: "I am a teapot."
    for _ in range(2):
        with pytest.raises(SteerbenchError, match=r"'judge' .* no verdict at all: its replies do not end with one"):
            judged(server, tmp_path, two(200), workers=2)
    assert len(server.calls) < 200
    small = tmp_path / "small"
    for _ in range(2):  # nor does a run without a call pass for a result
        with pytest.raises(SteerbenchError, match="no verdict at all"):
            judged(server, small, two(2))


# What is asked again


def failing(server: FakeJudge, times: int, *answers: Answer) -> None:
    """Let the first requests fail, one after another."""
    left = list(answers) * times
    server.judge = lambda *question: left.pop(0) if left else longer(*question)


def test_a_busy_server_is_given_the_time_it_asks_for(server: FakeJudge, tmp_path: Path, pauses: list[float]) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    failing(server, 1, (429, {"Retry-After": "7"}, "{}"), (503, {"Retry-After": later}, ""), (429, {}, ""))
    assert only(judged(server, tmp_path, two(1), workers=1)).n == 1
    assert len(server.calls) == 3 + 2
    assert 7 <= pauses[0] <= 8
    assert 35 <= pauses[1] <= 41
    assert 2 <= pauses[2] <= 4


@pytest.mark.parametrize("value", ["soon", "nan", "inf", "-5", ""])
def test_a_retry_after_that_is_no_time_is_not_believed(
    server: FakeJudge, tmp_path: Path, pauses: list[float], value: str
) -> None:
    failing(server, 1, (429, {"Retry-After": value}, ""))
    judged(server, tmp_path, two(1), workers=1)
    assert len(pauses) == 1
    assert 0.5 <= pauses[0] <= 1


def test_a_server_that_asks_for_an_hour_is_not_waited_for(
    server: FakeJudge, tmp_path: Path, pauses: list[float]
) -> None:
    server.judge = lambda *_: (429, {"Retry-After": str(LONGEST_WAIT * 2)}, '{"error": {"message": "daily limit"}}')
    with pytest.raises(SteerbenchError, match=r"HTTP 429: daily limit.*the same command goes on"):
        ask(questions(pairs(two(1)))[:1], connect(server.url, "judge"), Replies(tmp_path))
    assert pauses == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_may_pass_is_tried_again_and_longer_apart(
    server: FakeJudge, tmp_path: Path, pauses: list[float], status: int
) -> None:
    failing(server, TRIES - 1, (status, {}, "oops"))
    assert only(judged(server, tmp_path, two(1), workers=1)).n == 1
    assert len(server.calls) == TRIES - 1 + 2
    assert all(2**k / 2 <= seconds <= 2**k for k, seconds in enumerate(pauses))
    assert len(pauses) == TRIES - 1


def test_a_connection_that_breaks_is_tried_again(server: FakeJudge, tmp_path: Path) -> None:
    failing(server, 2, None)
    assert only(judged(server, tmp_path, two(1), workers=1)).n == 1
    assert len(server.calls) == 2 + 2


def test_an_answer_that_breaks_off_is_tried_again(server: FakeJudge, tmp_path: Path) -> None:
    failing(server, 1, (200, {"Content-Length": "9999"}, said("[[A]]")))
    assert only(judged(server, tmp_path, two(1), workers=1)).n == 1


def test_a_server_that_is_too_slow_is_tried_again(
    server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "TIMEOUT", 0.2)
    done = threading.Event()
    left = [1]

    def judge(*question: str) -> Answer:
        if left and left.pop():
            done.wait(5)
        return longer(*question)

    server.judge = judge
    row = only(judged(server, tmp_path, two(1), workers=1))
    done.set()
    assert row.n == 1
    assert len(server.calls) == 1 + 2


def test_a_server_that_is_not_there_is_told_and_named(tmp_path: Path, pauses: list[float]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(SteerbenchError, match=rf"{url} does not answer: .*refused.*--endpoint"):
        ask(questions(pairs(two(1)))[:1], connect(url, "judge"), Replies(tmp_path))
    assert len(pauses) == TRIES - 1


def test_once_stopped_nothing_more_is_sent(server: FakeJudge) -> None:
    """A key that is wrong, or Ctrl-C, must not be followed by the retries of other workers."""
    endpoint = connect(server.url, "judge")

    def judge(*_: str) -> Answer:
        endpoint.stop.set()
        return 500, {}, ""

    server.judge = judge
    with pytest.raises(CancelledError):
        endpoint.ask(Question("p", "a", "b").text)
    assert len(server.calls) == 1


# What is not asked again


@pytest.mark.parametrize(
    ("status", "key", "message"),
    [
        (401, KEY, r"does not accept the API key \(HTTP 401: no\).*OPENAI_API_KEY"),
        (401, "", r"wants an API key \(HTTP 401: no\).*OPENAI_API_KEY.*--api-key-env"),
        (403, KEY, r"does not accept the API key \(HTTP 403"),
        (404, KEY, r"no chat completions by 'judge' \(HTTP 404: no\); check --endpoint.*--judge-model"),
        (405, KEY, "HTTP 405: no"),
        (402, KEY, "HTTP 402: no"),
    ],
)
def test_a_wrong_key_or_address_ends_it_at_once(
    server: FakeJudge,
    tmp_path: Path,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    key: str,
    message: str,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    server.judge = lambda *_: (status, {}, '{"error": {"message": "no"}}')
    with pytest.raises(SteerbenchError, match=message):
        judged(server, tmp_path, two(50), workers=2)
    assert len(server.calls) < 50
    assert pauses == []


def test_a_redirect_is_not_followed(server: FakeJudge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server.judge = lambda *_: (302, {"Location": f"{server.url}/elsewhere"}, "")
    with pytest.raises(SteerbenchError, match=r"moved to http://127\.0\.0\.1:\d+/v1/elsewhere"):
        ask(questions(pairs(two(1)))[:1], connect(server.url, "judge"), Replies(tmp_path))
    assert len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_leaves_its_pair_out(
    server: FakeJudge, tmp_path: Path, status: int, pauses: list[float]
) -> None:
    refused: Answer = (status, {}, '{"error": {"message": "content filter"}}')
    server.judge = lambda prompt, a, b: refused if prompt == "Q p001?" else longer(prompt, a, b)
    replies, found = Replies(tmp_path), pairs(two(4))
    failures = ask(questions(found), connect(server.url, "judge"), replies)
    assert failures == {f"HTTP {status}: content filter": 2}
    assert (only(win_rates(found, "judge", replies)).n, len(server.calls)) == (3, 8)
    assert pauses == []


def test_a_judge_that_refuses_everything_is_told_with_the_reason(server: FakeJudge, tmp_path: Path) -> None:
    server.judge = lambda *_: (400, {}, '{"error": {"message": "temperature is not supported"}}')
    with pytest.raises(SteerbenchError, match="no verdict at all: HTTP 400: temperature is not supported"):
        judged(server, tmp_path, two(200), workers=2)
    assert len(server.calls) < 30


# What is kept


def test_the_same_again_makes_no_call(server: FakeJudge, tmp_path: Path) -> None:
    first = judged(server, tmp_path, two())
    assert len(server.calls) == 12
    server.judge = lambda *_: (500, {}, "")
    pd.testing.assert_frame_equal(judged(server, tmp_path, two()), first)
    assert len(server.calls) == 12


def test_another_judge_or_template_is_another_judgement(monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question("p", "a", "b")
    keys = {
        question.key("one"),
        question.key("two"),
        Question("p", "b", "a").key("one"),
        Question("p", "ab", "").key("one"),
    }
    monkeypatch.setattr("steerbench.judge.TEMPLATE_HASH", "other")
    assert len({*keys, question.key("one")}) == 5


def test_signs_of_the_template_in_a_response_change_nothing() -> None:
    question = Question("{a} {prompt}", "{b} 100 %s {0} {{", "}\n")
    assert "<conversation>\n{a} {prompt}\n</conversation>" in question.text
    assert "<response_a>\n{b} 100 %s {0} {{\n</response_a>" in question.text


@pytest.mark.parametrize("workers", [1, 3])
def test_an_outage_in_the_middle_keeps_what_was_judged(server: FakeJudge, tmp_path: Path, workers: int) -> None:
    answered: list[Any] = []
    alive = [7]

    def judge(*question: str) -> Answer:
        if len(answered) >= alive[0]:
            return None
        answered.append(question)
        return moody(*question)

    server.judge = judge
    with pytest.raises(SteerbenchError, match=r"does not answer.*are kept; the same command goes on"):
        judged(server, tmp_path, two(), workers=workers)
    assert len((tmp_path / "replies.jsonl").read_text().splitlines()) == len(answered)
    alive[0] = 1000
    row = only(judged(server, tmp_path, two(), workers=workers))
    assert len(answered) == len(set(answered)) == 12
    server.judge = moody
    assert row.to_dict() == only(judged(server, tmp_path / "whole", two())).to_dict()


def test_an_interruption_keeps_what_was_judged(server: FakeJudge, tmp_path: Path) -> None:
    done = [0]

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
        def advance(n: int) -> None:
            done[0] += n
            if done[0] == 3:
                raise KeyboardInterrupt

        assert total == 100
        yield advance

    found, replies = pairs(two(50)), Replies(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        ask(questions(found), connect(server.url, "judge"), replies, workers=1, progress=progress)
    assert 3 <= len(server.calls) < 100
    judged(server, tmp_path, two(50))
    assert len(server.calls) == 100


def test_a_line_torn_anywhere_is_asked_for_again(server: FakeJudge, tmp_path: Path) -> None:
    first = judged(server, tmp_path, two(2), workers=1)
    whole = (tmp_path / "replies.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for cut in (1, 2, 20, len(lines[-1]) // 2, len(lines[-1]) - 1):
        (tmp_path / "replies.jsonl").write_bytes(whole[:-cut])
        n_calls = len(server.calls)
        pd.testing.assert_frame_equal(judged(server, tmp_path, two(2)), first)
        assert len(server.calls) - n_calls == (0 if cut == 1 else 1)  # without the line's end alone it is whole
        n_calls = len(server.calls)
        judged(server, tmp_path, two(2))
        assert len(server.calls) == n_calls


def test_lines_that_are_none_are_passed_over(server: FakeJudge, tmp_path: Path) -> None:
    first = judged(server, tmp_path, two(2))
    with (tmp_path / "replies.jsonl").open("ab") as file:
        file.write(b'\n\xff\xfe\n[]\n3\n{"key": 1, "reply": "[[A]]"}\n{"key": "k"}\nnull\n')
    pd.testing.assert_frame_equal(judged(server, tmp_path, two(2)), first)
    assert len(server.calls) == 4


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SteerbenchError, match="--out"):
        Replies(tmp_path / "file")


@pytest.mark.parametrize("workers", [1, 16])
def test_the_number_of_workers_changes_no_result(server: FakeJudge, tmp_path: Path, workers: int) -> None:
    server.judge = lambda prompt, a, b: "?" if prompt == "Q p003?" else moody(prompt, a, b)
    reference = judged(server, tmp_path / "other", two(20), workers=4)
    pd.testing.assert_frame_equal(judged(server, tmp_path, two(20), workers=workers), reference)


def test_every_reply_is_there_to_read(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two(1))
    lines = [json.loads(line) for line in (tmp_path / "replies.jsonl").read_text().splitlines()]
    assert {line["verdict"] for line in lines} == {"A", "B"}
    wanted = {"judge_model": "judge", "served": "judge-2026-01-01", "template": TEMPLATE_HASH}
    assert all(wanted.items() <= line.items() and line["reply"].startswith("Because") for line in lines)


# Which pairs there are


def drawn(records: list[Record], n: int, seed: int = 0) -> dict[str, list[str]]:
    """Return the ids drawn for each method."""
    found = pairs(records, n=n, seed=seed)
    return {method: [p.id for p in found if p.method == method] for method in sorted({p.method for p in found})}


def test_the_same_prompts_are_drawn_for_every_method_and_more_of_them_hold_fewer() -> None:
    records = [*two(50), record("iti", texts("i", 50))]
    ten, twenty, others = drawn(records, 10), drawn(records, 20), drawn(records, 10, seed=1)
    assert ten["caa"] == ten["iti"]
    assert len(set(ten["caa"])) == 10
    assert set(ten["caa"]) < set(twenty["caa"])
    assert ten != others
    assert ten == drawn(records[::-1], 10)
    assert ten["caa"] != sorted({*drawn(records, 50)["caa"]})[:10]


def test_every_prompt_is_drawn_about_equally_often() -> None:
    counts = Counter(id_ for seed in range(200) for id_ in drawn(two(10), 3, seed)["caa"])
    assert len(counts) == 10
    assert all(40 <= times <= 80 for times in counts.values())  # of 200, 60 in the mean


def test_responses_meet_their_own_seed_and_sample() -> None:
    records = [
        record(name, [f"{name} {seed} {i // 2} {i % 2}" for i in range(6)], seed=seed, samples=2)
        for name in ("unsteered", "caa")
        for seed in (0, 1)
    ]
    records[0] = replace(records[0], examples=records[0].examples.sort_values("sample", ascending=False))
    found = pairs(records, n=2)
    assert len(found) == 2 * 2 * 2
    assert all(p.response == p.other.replace("unsteered", "caa") for p in found)
    assert {int(p.id[1:]) for p in found} == {int(p.response.split()[2]) for p in found}


def test_seeds_and_samples_count_as_one_prompt(server: FakeJudge, tmp_path: Path) -> None:
    records = [
        record(name, [text * (1 + i) for i in range(4)], seed=seed, samples=2)
        for name, text, seed in [("unsteered", "xx", 0), ("unsteered", "xx", 1), ("caa", "y", 0), ("caa", "yyy", 1)]
    ]
    row = only(judged(server, tmp_path, records))
    assert (row.win_rate, row.n, row.pairs) == (0.5, 2, 8)


def test_methods_and_the_one_they_are_held_against_can_be_named(server: FakeJudge, tmp_path: Path) -> None:
    records = [*two(2), record("iti", texts("i", 2)), record("repe", texts("r", 2))]
    assert set(judged(server, tmp_path, records)["method"]) == {"caa", "iti", "repe"}
    assert {p.method for p in pairs(records, methods=["caa", "iti"])} == {"caa", "iti"}
    found = pairs(records, against="iti", methods=["caa"])
    assert [(p.response, p.other) for p in found] == list(zip(texts("c", 2), texts("i", 2), strict=True))


def test_two_sources_of_one_method_are_two_rows(server: FakeJudge, tmp_path: Path) -> None:
    newer = record("caa", texts("n", 3))
    newer.parts[0]["source"] = "changed"
    table = judged(server, tmp_path, [*two(3), newer])
    assert len(table) == 2
    assert all(name.startswith("caa #") for name in table["method"])


def test_each_task_is_judged_apart(server: FakeJudge, tmp_path: Path) -> None:
    other = [record("unsteered", texts("U", 3), task="hh"), record("caa", ["x" * 200] * 3, task="hh")]
    table = judged(server, tmp_path, [*two(3), *other])
    assert list(table["task"]) == ["hh", "shp"]
    assert table["win_rate"].iloc[0] == 1
    assert table["protocol"].nunique() == 2


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "unlike": (lambda: pairs([two()[0], record("caa", texts("c", 6), model="other")]), "not measured alike.*model"),
    "unknown": (lambda: pairs(two(), methods=["caq"]), "unknown method 'caq'.*'caa'"),
    "unknown against": (lambda: pairs(two(), against="unsterred"), "Did you mean 'unsteered'"),
    "no records": (lambda: pairs([]), "there are no records"),
    "alone": (lambda: pairs(two()[:1]), "no method to hold against 'unsteered'"),
    "without its seed": (lambda: pairs([*two(), record("caa", texts("c", 6), seed=1)]), "no 'unsteered' of its task"),
    "other prompts": (
        lambda: pairs([two()[0], record("caa", texts("c", 5), n_examples=6)]),
        "other test prompts",
    ),
}


@pytest.mark.parametrize(("call", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_judged_is_told(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(SteerbenchError, match=message):
        call()


def test_records_without_texts_are_told() -> None:
    unsteered, caa = two()
    with pytest.raises(SteerbenchError, match="no response"):
        pairs([unsteered, replace(caa, examples=caa.examples.drop(columns="response"))])


# Intervals


def test_prompts_by_themselves_have_the_interval_of_wilson(server: FakeJudge, tmp_path: Path) -> None:
    row = only(judged(server, tmp_path, [record("unsteered", ["xx"] * 30), record("caa", ["x"] * 9 + ["xxx"] * 21)]))
    wanted = binomtest(21, 30).proportion_ci(method="wilson")
    assert (row.low, row.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)
    assert (row.win_rate, row.interval) == (0.7, "wilson")


def test_clusters_widen_the_interval_as_a_loop_over_resamples_does(server: FakeJudge, tmp_path: Path) -> None:
    """Prompts of one cluster have one outcome, so there is no more to know than of the clusters."""
    groups = [f"g{i // 4}" for i in range(80)]
    wins = np.repeat(np.random.default_rng(0).random(20) < 0.6, 4)
    caa = record("caa", ["xxx" if win else "x" for win in wins], groups=groups)
    row = only(judged(server, tmp_path, [record("unsteered", ["xx"] * 80, groups=groups), caa]))
    generator = np.random.default_rng(1)
    means = [wins.reshape(20, 4)[generator.integers(0, 20, 20)].mean() for _ in range(5000)]
    assert row.interval == "clusters"
    assert [row.low, row.high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.051)
    assert row.high - row.low > 1.5 * (binomtest(48, 80).proportion_ci().high - binomtest(48, 80).proportion_ci().low)


def test_clusters_that_all_agree_count_as_so_many_prompts(server: FakeJudge, tmp_path: Path) -> None:
    groups = [f"g{i // 2}" for i in range(10)]
    records = [record("unsteered", ["x"] * 10, groups=groups), record("caa", ["xx"] * 10, groups=groups)]
    row = only(judged(server, tmp_path, records))
    assert (row.win_rate, row.n) == (1, 10)
    assert row.low == pytest.approx(binomtest(5, 5).proportion_ci(method="wilson").low, abs=1e-12)


def test_one_cluster_has_no_interval(server: FakeJudge, tmp_path: Path) -> None:
    records = [record("unsteered", ["x"] * 3, groups=["g"] * 3), record("caa", ["xx"] * 3, groups=["g"] * 3)]
    row = only(judged(server, tmp_path, records))
    assert row.win_rate == 1
    assert pd.isna(row.low)
    assert pd.isna(row.high)


# The key and the endpoint


def test_the_key_is_sent_and_found_nowhere_else(
    server: FakeJudge, runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    args = (*command(server, runs), "--api-key-env", "MY_KEY", "--yes")
    done = cli(*args)
    assert done.exit_code == 0, done.stderr
    assert {*server.keys} == {f"Bearer {KEY}"}
    server.judge = lambda *_: (401, {}, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    failed = cli(*args, "--out", runs / "other")
    assert failed.exit_code == 2
    assert "Incorrect API key provided: ***" in failed.stderr
    server.judge = lambda *_: (200, {}, f"<p>{KEY}</p>")
    cli(*args, "--out", runs / "third")
    shown = done.output + failed.output + repr(connect(server.url, "judge", "MY_KEY"))
    assert KEY not in shown
    assert all(KEY.encode() not in path.read_bytes() for path in runs.rglob("*") if path.is_file())


def test_without_a_key_none_is_sent(server: FakeJudge, tmp_path: Path) -> None:
    judged(server, tmp_path, two(1))
    assert {*server.keys} == {None}


@pytest.mark.parametrize("key", ["sk-é", "sk-a\nsk-b", "sk-\x00"])
def test_a_key_that_is_none_is_told_and_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})  # a real one cannot hold a zero byte
    with pytest.raises(SteerbenchError, match="OPENAI_API_KEY holds no API key") as caught:
        connect("http://localhost/v1", "judge")
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000/v1",
        "file:///etc/passwd",
        "http://",
        "http://:80/v1",
        "http://host:port/v1",
        "http://host:99999/v1",
        "http://name:secret@host/v1",
        "http://host/v1?key=secret",
        "http://ho st/v1",
        "http://a..b/v1",
        f"http://{'a' * 70}.com/v1",
        "http://höst/v1",
        "http://[::1/v1",
    ],
)
def test_an_endpoint_that_is_no_plain_url_is_told(url: str) -> None:
    with pytest.raises(SteerbenchError, match="--endpoint must be a plain URL") as caught:
        connect(url, "judge")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("end", ["", "/", "/chat/completions", "/chat/completions/"])
def test_an_endpoint_may_end_as_it_likes(server: FakeJudge, end: str) -> None:
    assert connect(server.url + end, "judge").url == server.url


# The command


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with records of the unsteered model and two methods."""
    for each in [*two(8), record("iti:layer=[3]", texts("i", 8))]:
        Store(tmp_path / "runs").write(each)
    return tmp_path / "runs"


def command(server: FakeJudge, runs: Path) -> tuple[Any, ...]:
    return "judge", runs, "--endpoint", server.url, "--judge-model", "judge"


def test_the_command_judges_prints_and_writes(server: FakeJudge, runs: Path, cli: Cli) -> None:
    server.judge = moody
    done = cli(*command(server, runs), "--yes", "--n", 6)
    assert done.exit_code == 0, done.stderr
    assert len(server.calls) == 2 * 6 * 2
    table = load_judgements(runs / "judgements")
    assert list(table.columns) == list(COLUMNS)
    assert list(table.columns[:8]) == ["method", "task", "win_rate", "low", "high", "n", "consistency", "failed"]
    replies = Replies(runs / "judgements")
    wanted = win_rates(pairs(Store(runs).records(), n=6), "judge", replies)
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)
    assert "shp: win rate over unsteered, by judge" in done.stdout
    for _, row in table.iterrows():
        line = next(line for line in done.stdout.splitlines() if line.startswith(row.method))
        assert f"{row.win_rate:.3f}  {row.low:.3f} to {row.high:.3f}  {row.n} " in re.sub(r" {2,}", "  ", line) + " "
    assert str(runs / "judgements" / "win_rates.csv") in done.stdout


def test_the_command_again_needs_no_leave_and_writes_the_same(server: FakeJudge, runs: Path, cli: Cli) -> None:
    first = cli(*command(server, runs), "--yes")
    csv = (runs / "judgements" / "win_rates.csv").read_bytes()
    again = cli(*command(server, runs))
    assert again.exit_code == 0, again.stderr
    assert again.stdout == first.stdout
    assert "no call to make" in again.stderr
    assert (runs / "judgements" / "win_rates.csv").read_bytes() == csv
    assert len(server.calls) == 32


def test_without_a_terminal_nothing_is_asked_without_leave(server: FakeJudge, runs: Path, cli: Cli) -> None:
    done = cli(*command(server, runs), "--price-in", "2.5", "--price-out", "10")
    assert done.exit_code == 2
    assert "--yes" in done.stderr
    characters = [len(q.text) for q in questions(pairs(Store(runs).records()))]
    prompts = sum(-(-n // 4) for n in characters)
    assert f"32 calls to make, about {prompts} prompt tokens (characters / 4)" in done.stderr
    assert f"at most {32 * 1024} reply tokens" in done.stderr
    assert f"USD {prompts * 2.5 / 1e6:.2f} for prompts; at most USD 0.33 for replies" in done.stderr
    assert server.calls == []


@pytest.mark.parametrize(("leave", "calls"), [("y\n", 32), ("n\n", 0)])
def test_on_a_terminal_leave_is_asked_for(
    server: FakeJudge, runs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, leave: str, calls: int
) -> None:
    monkeypatch.setattr(judging, "_on_terminal", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: leave == "y\n")
    done = cli(*command(server, runs))
    assert done.exit_code == (0 if calls else 1)
    assert len(server.calls) == calls
    assert (runs / "judgements" / "win_rates.csv").exists() == bool(calls)


def test_an_outage_ends_the_command_with_one_sentence(server: FakeJudge, runs: Path, cli: Cli) -> None:
    left = [9]

    def judge(*question: str) -> Answer:
        left[0] -= 1
        return longer(*question) if left[0] >= 0 else (500, {}, "")

    server.judge = judge
    failed = cli(*command(server, runs), "--yes", "--workers", 1)
    assert failed.exit_code == 2
    assert failed.stderr.count("\n") == 2
    assert "HTTP 500" in failed.stderr
    assert not (runs / "judgements" / "win_rates.csv").exists()
    server.judge = longer
    done = cli(*command(server, runs), "--yes")
    assert "23 calls to make" in done.stderr
    assert done.exit_code == 0


def test_failures_are_told_with_their_reason(server: FakeJudge, runs: Path, cli: Cli) -> None:
    server.judge = lambda prompt, a, b: (400, {}, "too long") if prompt == "Q p001?" else longer(prompt, a, b)
    done = cli(*command(server, runs), "--yes")
    assert "no verdict on 4 questions: HTTP 400: too long" in done.stderr
    assert list(load_judgements(runs / "judgements")["failed"]) == [1, 1]


def test_the_command_takes_methods_as_the_leaderboard_names_them(server: FakeJudge, runs: Path, cli: Cli) -> None:
    done = cli(*command(server, runs), "--yes", "--methods", "iti:layer=[3]", "--against", "caa")
    assert done.exit_code == 0, done.stderr
    row = only(load_judgements(runs / "judgements"))
    assert (row.method, row.against) == ("iti:layer=[3]", "caa")
    assert "iti:layer=[3]" in done.stdout


# The table


def test_a_table_that_is_not_there_is_empty(tmp_path: Path) -> None:
    table = load_judgements(tmp_path)
    assert len(table) == 0
    assert list(table.columns) == list(COLUMNS)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"method,task\na,b\n", b"a\n1,2\n1,2,3\n"])
def test_a_damaged_table_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "win_rates.csv").write_bytes(content)
    with pytest.raises(SteerbenchError, match="damaged"):
        load_judgements(tmp_path)


def test_names_that_look_like_something_else_come_back(tmp_path: Path) -> None:
    row = dict.fromkeys(COLUMNS, "123456789012") | {"method": "none", "against": "nan", "low": "", "high": ""}
    pd.DataFrame([row]).to_csv(tmp_path / "win_rates.csv", index=False)
    found = only(load_judgements(tmp_path))
    assert (found.method, found.against, found.protocol) == ("none", "nan", "123456789012")
    assert pd.isna(found.low)
