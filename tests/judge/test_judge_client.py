"""The judge's endpoint: what is asked again and what is not, what an outage leaves, and the key."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from fake_judge import (
    KEY,
    Answer,
    FakeJudge,
    RawServer,
    judged,
    longer,
    noted_pauses,
    only,
    questions,
    said,
    serving,
    two,
)

from steerbench import SteerbenchError
from steerbench.judge import Question, Replies, ask, client
from steerbench.judge.client import LARGEST_ANSWER, LONGEST_WAIT, TRIES, Unusable, connect
from steerbench.judge.judgements import pairs, win_rates

server = pytest.fixture(serving)
pauses = pytest.fixture(autouse=True)(noted_pauses)


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
    assert len(server.calls) <= 2  # of 100: one of each worker
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
    server.judge = lambda *_: (400, {}, '{"error": {"message": "images only"}}')
    with pytest.raises(SteerbenchError, match="no verdict at all: HTTP 400: images only"):
        judged(server, tmp_path, two(200), workers=2)
    assert len(server.calls) in (20, 21)  # of 400; the other worker may be about to ask


# What a judge does not take


def refusing(server: FakeJudge, **messages: str) -> None:
    """Let a request that has one of these settings be refused with its message."""

    def judge(*question: str) -> Answer:
        for name, message in messages.items():
            if name in server.bodies[-1]:
                return 400, {}, json.dumps({"error": {"message": message, "param": name}})
        return longer(*question)

    server.judge = judge


NO_MAX_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
NO_TEMPERATURE = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is."


def test_a_setting_that_a_judge_refuses_is_left_out_or_renamed_for_the_run(server: FakeJudge, tmp_path: Path) -> None:
    refusing(server, max_tokens=NO_MAX_TOKENS, temperature=NO_TEMPERATURE)
    assert only(judged(server, tmp_path, two(5), workers=1)).n == 5
    assert len(server.calls) == 2 + 10  # the first question alone is asked again
    asked = [{name for name in body if "t" in name and name != "path"} for body in server.bodies]
    assert asked[:3] == [{"max_tokens", "temperature"}, {"max_completion_tokens", "temperature"}, asked[-1]]
    assert asked[-1] == {"max_completion_tokens"}
    (settings,) = {str(json.loads(line)["settings"]) for line in Replies(tmp_path).path.read_text().splitlines()}
    assert settings == "{'max_completion_tokens': 1024}"


def test_a_setting_that_is_refused_either_way_is_not_remembered(server: FakeJudge) -> None:
    endpoint = connect(server.url, "judge")
    server.judge = lambda *_: (400, {}, '{"error": {"message": "max_tokens and the prompt exceed the context"}}')
    for _ in range(2):
        with pytest.raises(Unusable, match="exceed the context"):
            endpoint.ask(Question("p", "a", "b").text, max_tokens=5)
    assert [*map(len, (server.calls, endpoint.refused))] == [4, 0]


# An answer without end

HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture(name="raw")
def raw_server() -> Iterator[RawServer]:
    with RawServer() as server:
        yield server


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"", b"H"),
        (HEAD, b"X-Slow: 1\r\n"),
        (HEAD, b"H"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (HEAD + b"\r\n", b" "),
        (HEAD + b"Content-Length: 90\r\n\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        (b"HTTP/1.1 400 Bad\r\n\r\n", b" "),
    ],
)
def test_an_answer_that_drips_has_a_limit_of_time(
    raw: RawServer, monkeypatch: pytest.MonkeyPatch, start: bytes, more: bytes
) -> None:
    monkeypatch.setattr(client, "LONGEST_ANSWER", 0.1)
    monkeypatch.setattr(client, "TRIES", 2)
    raw.start, raw.more, raw.rest = start, more, 0.01
    began = time.monotonic()
    with pytest.raises((SteerbenchError, Unusable), match=r"longer than 0\.1 seconds|timed out|HTTP 400"):
        connect(raw.url, "judge").ask("?")
    assert time.monotonic() - began < 5  # the server would drip for ever


def test_a_question_has_a_limit_of_time_over_all_its_tries(
    server: FakeJudge, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    monkeypatch.setattr(client, "LONGEST_QUESTION", 0.0)
    server.judge = lambda *_: (500, {}, "")
    with pytest.raises(SteerbenchError, match="does not answer: HTTP 500"):
        connect(server.url, "judge").ask(Question("p", "a", "b").text)
    assert (len(server.calls), pauses) == (1, [])


@pytest.mark.parametrize("length", [b"", b"Content-Length: 999999999999999\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_an_answer_that_is_too_large_is_not_read(raw: RawServer, length: bytes) -> None:
    """One that says its size is not even begun: the memory for it would be taken at once."""
    piece = b" " * 2**16
    raw.start, raw.more = HEAD + length + b"\r\n", b"10000\r\n" + piece + b"\r\n" if b"chunked" in length else piece
    with pytest.raises(Unusable, match="more than 4 MiB") as caught:
        connect(raw.url, "judge").ask("?")
    assert not caught.value.again
    assert raw.sent < 3 * LARGEST_ANSWER  # what the system's buffers take is sent, too


# The key and the endpoint


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
