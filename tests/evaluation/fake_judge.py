"""A chat-completions server in a thread, whose replies a test decides."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclasses.dataclass
class Reply:
    """What is answered: a text as a completion, or anything at all with a status and headers."""

    text: str | None = None
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    wait: threading.Event | None = None

    def body(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return json.dumps({"choices": [{"message": {"content": self.text}}]}).encode()


@dataclasses.dataclass
class Server:
    url: str
    asked: list[Body]
    headers: list[dict[str, str]]


@contextlib.contextmanager
def serving(answer: Callable[[int, Body], Reply | str]) -> Iterator[Server]:
    """``answer`` is given the number of the question (from 0) and its body."""
    asked: list[Body] = []
    headers: list[dict[str, str]] = []
    guard = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with guard:
                number = len(asked)
                asked.append(body | {"path": self.path})
                headers.append(dict(self.headers))
            reply = answer(number, body)
            reply = Reply(reply) if isinstance(reply, str) else reply
            if reply.wait is not None:
                reply.wait.wait(10)
            content = reply.body()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", asked, headers)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answers(body: Body) -> tuple[str, str]:
    """The two answers that a question holds, A first."""
    text = body["messages"][1]["content"]
    one = text.split("[Answer A]\n")[1].split("\n[End of answer A]")[0]
    other = text.split("[Answer B]\n")[1].split("\n[End of answer B]")[0]
    return one, other
