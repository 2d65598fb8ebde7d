"""Asking a model behind an OpenAI-compatible address: one chat completion, with retries.

The standard library alone. Nothing is contacted but the address that the user named: a redirection
is refused, because it would carry the key elsewhere.
"""

from __future__ import annotations

import dataclasses
import email.message
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from trimtab.errors import RecipeError, RunError

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # what may be otherwise the next time
_REMEDIES = {
    401: "name the key's variable by --judge-key-env",
    403: "is the key allowed this?",
    404: "are --judge-url and --judge-model right?",
}
_LONGEST_WAIT = 60.0  # seconds
_MOST_BYTES = 10_000_000  # of an answer: more is no chat completion


class _Retry(Exception):
    """An attempt failed in a way that may pass; ``wait`` is in seconds, where the server says."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: email.message.Message | http.client.HTTPMessage,
        newurl: str,
    ) -> None:
        return None


@dataclasses.dataclass(frozen=True)
class ChatClient:
    """An address, a model there, and how patiently it is asked.

    url      the API's root (http://host:8000/v1), or the whole address of its chat completions
    key      sent as a bearer token where it is given
    options  fields of the request's body beside model and messages
    timeout  seconds without an answer; retries are attempts after the first one
    """

    url: str
    model: str
    key: str | None = dataclasses.field(default=None, repr=False)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    timeout: float = 60.0
    retries: int = 5
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise RecipeError(
                f"judge_url={self.url!r}: no address; give one such as http://localhost:8000/v1"
            )

    @property
    def address(self) -> str:
        """Where chat completions are asked for."""
        root = self.url.rstrip("/")
        return root if root.endswith("/chat/completions") else f"{root}/chat/completions"

    def complete(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What the model says; RunError where the server refuses, or stays silent to the end."""
        body = {"model": self.model, "messages": list(messages), **self.options}
        said = ""
        for attempt in range(self.retries + 1):
            try:
                return self._ask({k: v for k, v in body.items() if v is not None})
            except _Retry as failed:
                said = str(failed)
                if attempt < self.retries:
                    wait = 2.0**attempt / 2 if failed.wait is None else failed.wait
                    self.sleep(min(wait, _LONGEST_WAIT))
        times = "once" if self.retries == 0 else f"{self.retries + 1} times"
        raise RunError(f"judge_url={self.url}: {said} (asked {times})")

    def _ask(self, body: Mapping[str, Any]) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "trimtab"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            self.address, data=json.dumps(body).encode(), headers=headers, method="POST"
        )
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=self.timeout) as answer:
                content = answer.read(_MOST_BYTES)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refused(error) from None
        except TimeoutError:
            raise _Retry(f"no answer within {self.timeout:g} s") from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Retry(f"no answer within {self.timeout:g} s") from None
            raise _Retry(f"cannot be reached: {reason}") from None
        return _content(content)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        try:
            detail = _message(error.read(10_000))
        except OSError:
            detail = ""
        said = f"answers {error.code} {error.reason}" + (f": {detail}" if detail else "")
        if error.code in _AGAIN:
            return _Retry(said, _seconds(error.headers.get("Retry-After")))
        remedy = _REMEDIES.get(error.code)
        if 300 <= error.code < 400:
            remedy = f"it redirects to {error.headers.get('Location')}; name that address"
        return RunError(f"judge_url={self.url}: {said}" + (f"; {remedy}" if remedy else ""))


def _content(body: bytes) -> str:
    """The text of a chat completion; what is no such thing may be one the next time."""
    try:
        said = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        shown = " ".join(body[:80].decode(errors="replace").split())
        raise _Retry(f"answers with no chat completion: {shown!r}") from None
    if isinstance(said, list):  # parts
        said = "".join(str(part.get("text", "")) for part in said if isinstance(part, dict))
    return said if isinstance(said, str) else ""


def _message(body: bytes) -> str:
    """What an error's body says, on one line."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def _seconds(value: str | None) -> float | None:
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None  # a date: the usual waits will do
