"""Chat completions over HTTP, in the form OpenAI gave them: what may pass is asked again, what will not is named."""

import http.client
import json
import math
import os
import random
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from steerbench.errors import SteerbenchError

TIMEOUT = 120.0
"""Seconds without a byte after which a request counts as lost."""
TRIES = 6
"""Requests until an outage is called one: with the waits between them, about half a minute."""
LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more is not waited for."""
_PASSING = (408, 425, 429)
_REFUSED = (400, 413, 422)
KEPT = "Replies so far are kept; the same command goes on from there."


class Reply(NamedTuple):
    """What a judge wrote, and the model that the server says it is."""

    text: str
    served: str


class Unusable(Exception):
    """One request has no reply: the server refused it, or its answer holds none. Others may have one."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again
        """Whether the same request may fare better."""


class _Passing(Exception):
    """A failure that time may mend."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait
        """Seconds that the server asks for."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and a model of it. Several threads may ask at once."""

    url: str
    """Up to and without `/chat/completions`."""
    model: str
    key: str = field(default="", repr=False)
    """Sent as bearer token; empty: none is sent."""
    key_name: str = "OPENAI_API_KEY"
    """Environment variable of the key, for messages."""
    stop: Event = field(default_factory=Event, repr=False, compare=False)
    """Once set, nothing more is sent, and nobody waits."""

    def ask(self, text: str, **settings: Any) -> Reply:
        """Return the reply to a text. Raises Unusable, SteerbenchError, or CancelledError once `stop` is set."""
        request = {"model": self.model, "messages": [{"role": "user", "content": text}], **settings}
        return self._reply(self._send(json.dumps(request).encode()))

    def _send(self, data: bytes) -> bytes:
        reason: _Passing | None = None
        for attempt in range(TRIES):
            if reason:
                _pause(self.stop, _wait(attempt - 1, reason.wait))
            if self.stop.is_set():
                raise CancelledError
            try:
                return self._post(data)
            except _Passing as error:
                reason = error
            if reason.wait > LONGEST_WAIT:
                break
        raise SteerbenchError(
            f"{self.url} does not answer: {reason}. Check that it is up and that --endpoint is right. {KEPT}"
        ) from reason

    def _post(self, data: bytes) -> bytes:
        bearer = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        headers = {"Content-Type": "application/json", "User-Agent": "steerbench", **bearer}
        request = Request(f"{self.url}/chat/completions", data, headers)
        try:
            with _OPENER.open(request, timeout=TIMEOUT) as answer:
                body: bytes = answer.read()
                return body
        except HTTPError as error:
            with error:
                raise self._failure(error) from error
        except (OSError, http.client.HTTPException) as error:  # refused, reset, no such host, timed out, cut off
            raise _Passing(self._line(str(getattr(error, "reason", "") or error) or type(error).__name__)) from error

    def _failure(self, error: HTTPError) -> Exception:
        status, said = error.code, f"HTTP {error.code}{self._detail(error)}"
        if status in _PASSING or status >= 500:
            return _Passing(said, _retry_after(error.headers))
        if status in _REFUSED:
            return Unusable(said, again=False)
        if status in (401, 403):
            do = "does not accept the API key" if self.key else "wants an API key"
            return SteerbenchError(
                f"{self.url} {do} ({said}); put a valid one into the environment variable {self.key_name}, "
                f"or name another variable with --api-key-env."
            )
        return SteerbenchError(
            f"{self.url} has no chat completions by {self.model!r} ({said}); check --endpoint, which mostly ends in "
            f"/v1, and --judge-model."
        )

    def _detail(self, error: HTTPError) -> str:
        """Return what the server says about a failure, as `: text`."""
        if 300 <= error.code < 400:
            return self._line(f": moved to {error.headers.get('Location')}")
        try:
            text = error.read(4096).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            return ""
        with suppress(ValueError, LookupError, TypeError, RecursionError):  # else not in OpenAI's form
            text = json.loads(text)["error"]["message"]
        return self._line(f": {text}") if text else ""

    def _reply(self, body: bytes) -> Reply:
        try:
            found = json.loads(body)
            text, served = found["choices"][0]["message"]["content"], found.get("model")
        except (ValueError, LookupError, TypeError, RecursionError):
            text, served = None, None
        if not isinstance(text, str):
            shown = self._line(body[:400].decode("utf-8", "replace"))
            raise Unusable(f"the answer of {self.url} holds no text: {shown!r}", again=True)
        return Reply(text, served if isinstance(served, str) else "")

    def _line(self, text: str) -> str:
        """Return the start of a foreign text on one line, without the key, which some servers repeat."""
        shown = text.replace(self.key, "***") if self.key else text
        return " ".join("".join(c if c.isprintable() else " " for c in shown).split())[:300]


def connect(url: str, model: str, key_name: str = "OPENAI_API_KEY") -> Endpoint:
    """Return an endpoint, with the key of an environment variable. Raises SteerbenchError for what cannot be."""
    if not model.strip():
        raise SteerbenchError("--judge-model is empty; give the name of the judge, as the server knows it.")
    url = url.rstrip("/").removesuffix("/chat/completions")
    if not _is_plain(url):
        raise SteerbenchError(
            "--endpoint must be a plain URL such as https://api.openai.com/v1 or http://localhost:8000/v1, without a "
            "name, a password or a query."
        )
    key = os.environ.get(key_name, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise SteerbenchError(f"the environment variable {key_name} holds no API key: it has signs that no key has.")
    return Endpoint(url=url, model=model, key=key, key_name=key_name)


def _is_plain(url: str) -> bool:
    if not (url.isascii() and url.isprintable()) or " " in url:
        return False
    try:
        parts = urlsplit(url)
        has_host = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:  # a port that is no number, a label of a name that is empty or too long
        return False
    return parts.scheme in ("http", "https") and has_host and not ({"@", "?", "#"} & {*url})


class _NoRedirects(HTTPRedirectHandler):
    """Redirects are failures: the key would go along, to whatever host they name."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = build_opener(_NoRedirects)


def _pause(stop: Event, seconds: float) -> None:
    stop.wait(seconds)


def _wait(attempt: int, asked: float) -> float:
    """Return seconds: twice as long each time, or what the server asks for, and never the same for two threads."""
    return max(2.0**attempt * random.uniform(0.5, 1.0), asked + random.random() if asked else 0.0)


def _retry_after(headers: Message) -> float:
    """Return the seconds that a header `Retry-After` asks for, as a number or as a date; 0 without a valid one."""
    text = headers.get("Retry-After", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return 0.0
    return seconds if math.isfinite(seconds) else 0.0
