"""A judge behind a server of this machine, and records for it to judge."""

import http.server
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pytest

from steerbench import Record
from steerbench.judge import Question, Replies, ask, client
from steerbench.judge.client import connect
from steerbench.judge.judgements import Pair, pairs, win_rates
from steerbench.records.identity import fingerprint

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


class RawServer:
    """A server that answers each request with `start`, and then with `more` for ever, `rest` seconds apart."""

    def __init__(self) -> None:
        self.start, self.more, self.rest, self.sent = b"", b"", 0.0, 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self._answer, args=[self._listening.accept()[0]], daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        """Send until the client hangs up."""
        with connection, suppress(OSError):
            connection.recv(2**16)
            connection.sendall(self.start)
            while True:
                connection.sendall(self.more)
                self.sent += len(self.more)
                time.sleep(self.rest)


def said(text: Any) -> str:
    return json.dumps({"model": "judge-2026-01-01", "choices": [{"message": {"role": "assistant", "content": text}}]})


def longer(_: str, a: str, b: str) -> str:
    return "Because.\n[[A]]" if len(a) > len(b) else "Because.\n[[B]]"


def moody(prompt: str, a: str, b: str) -> str:
    return f"[[{'ABC'[int(fingerprint([prompt, a, b]), 16) % 3]}]]"


def serving() -> Iterator[FakeJudge]:
    """Yield a judge that answers; the fixture `server`."""
    with FakeJudge() as judge:
        thread = threading.Thread(target=judge.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield judge
        judge.shutdown()
        thread.join()


def noted_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let nobody wait, and note what would have been waited for. No proxy, and no key. The fixture `pauses`."""
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
        labels={"task": protocol.get("task", "shp"), "model": "m", "reward_model": "r", "held_out_reward": ""},
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
    assert len(table) == 1, table
    return table.iloc[0]
