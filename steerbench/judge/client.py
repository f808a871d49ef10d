"""Chat completions over HTTP, in the form OpenAI gave them: what may pass is asked again, what will not is named."""

import http.client
import io
import json
import math
import os
import random
import socket
import time
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
from urllib.request import HTTPHandler, HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from steerbench.errors import SteerbenchError

TIMEOUT = 120.0
"""Seconds without a byte after which a request counts as lost."""
LONGEST_ANSWER = 600.0
"""Seconds for an answer as a whole, however steadily it drips."""
LARGEST_ANSWER = 4 * 2**20
"""Bytes; a reply of 1024 tokens with all its reasons has some thousands."""
LONGEST_QUESTION = 1800.0
"""Seconds after which a question is not sent again."""
TRIES = 6
"""Requests until an outage is called one: with the waits between them, about half a minute."""
LONGEST_WAIT = 300.0
"""Seconds. A server that asks for more is not waited for."""
_PASSING = (408, 425, 429)
_REFUSED = (400, 413, 422)
_OTHERWISE = {"max_tokens": "max_completion_tokens", "temperature": None}
"""Settings that some models refuse, and the name under which those take them; None: they take none but their own."""
KEPT = "Replies so far are kept; the same command goes on from there."


class Reply(NamedTuple):
    """What a judge wrote, the model that the server says it is, and the settings that it took."""

    text: str
    served: str
    settings: dict[str, Any]


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
    refused: set[str] = field(default_factory=set, repr=False, compare=False)
    """Settings that the model turned out not to take: they are not sent, or under their other name."""

    def ask(self, text: str, **settings: Any) -> Reply:
        """Return the reply to a text. Raises Unusable, SteerbenchError, or CancelledError once `stop` is set."""
        request = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        refused = set(self.refused)
        while True:
            taken = _reworded(settings, refused)
            try:
                body = self._send(json.dumps(request | taken).encode())
            except Unusable as error:
                blamed = {name for name in _blamed(str(error)) if name in taken}
                if not blamed:
                    raise
                refused |= blamed
            else:
                self.refused.update(refused)  # not before: what is refused either way was wrong for another reason
                return self._reply(body, taken)

    def _send(self, data: bytes) -> bytes:
        reason: _Passing | None = None
        end = time.monotonic() + LONGEST_QUESTION
        for attempt in range(TRIES):
            if reason:
                _pause(self.stop, _wait(attempt - 1, reason.wait))
            if self.stop.is_set():
                raise CancelledError
            try:
                return self._post(data)
            except _Passing as error:
                reason = error
            if reason.wait > LONGEST_WAIT or time.monotonic() > end:
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
                return _body(answer)
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

    def _reply(self, body: bytes, settings: dict[str, Any]) -> Reply:
        try:
            found = json.loads(body)
            text, served = found["choices"][0]["message"]["content"], found.get("model")
        except (ValueError, LookupError, TypeError, RecursionError):
            text, served = None, None
        if not isinstance(text, str):
            shown = self._line(body[:400].decode("utf-8", "replace"))
            raise Unusable(f"the answer of {self.url} holds no text: {shown!r}", again=True)
        return Reply(text, served if isinstance(served, str) else "", settings)

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


class _Deadline(io.RawIOBase):
    """The bytes of a socket until a time: its own timeout begins anew with every byte."""

    def __init__(self, sock: socket.socket, raw: io.RawIOBase) -> None:
        super().__init__()
        self._sock, self._raw = sock, raw
        self._end = time.monotonic() + LONGEST_ANSWER

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"its answer took longer than {LONGEST_ANSWER:g} seconds")
        self._sock.settimeout(min(TIMEOUT, left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer whose status, headers and body all come before one deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_Deadline(sock, self.fp.detach()))


class _Plain(http.client.HTTPConnection):
    response_class = _Answer


class _Secure(http.client.HTTPSConnection):
    response_class = _Answer


class _PlainHandler(HTTPHandler):
    def http_open(self, request: Request) -> http.client.HTTPResponse:
        return self.do_open(_Plain, request)


class _SecureHandler(HTTPSHandler):
    def https_open(self, request: Request) -> http.client.HTTPResponse:
        return self.do_open(_Secure, request)


_OPENER = build_opener(_NoRedirects, _PlainHandler, _SecureHandler)


def _body(answer: http.client.HTTPResponse) -> bytes:
    """Return the body. Raises Unusable if it is too large, IncompleteRead if it breaks off."""
    body = answer.read(LARGEST_ANSWER + 1) if (answer.length or 0) <= LARGEST_ANSWER else None
    if body is None or len(body) > LARGEST_ANSWER:
        raise Unusable(f"an answer has more than {LARGEST_ANSWER // 2**20} MiB", again=False)
    if answer.length:
        raise http.client.IncompleteRead(body, answer.length)
    return body


def _blamed(reason: str) -> list[str]:
    """Return the settings that a refusal names, by either name."""
    return [name for name, other in _OTHERWISE.items() if name in reason or (other and other in reason)]


def _reworded(settings: dict[str, Any], refused: set[str]) -> dict[str, Any]:
    """Return settings as a model takes them that refused some."""
    names = {name: _OTHERWISE[name] if name in refused else name for name in settings}
    return {name: settings[asked] for asked, name in names.items() if name}


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
