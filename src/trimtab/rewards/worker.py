"""The process of an isolated reward function: ``python -m trimtab.rewards.worker``.

It reads frames from its standard input and answers each on what was its standard output: first
``{"load": ...}``, after which it is confined and has the function, then ``{"call": ...}`` again
and again. A frame is its length (8 bytes, big-endian) and JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from trimtab.rewards import sandbox
from trimtab.rewards import spec as specs
from trimtab.rewards.functions import Answer, Bad, CallFailed, LocalFunction


def write_frame(stream: IO[bytes], content: Any) -> None:
    """Write one frame."""
    data = json.dumps(content).encode()
    stream.write(len(data).to_bytes(8, "big") + data)
    stream.flush()


def read_frame(stream: IO[bytes], most: int | None = None) -> Any:
    """Read one frame; None at the end of the stream, ValueError for one over ``most`` bytes."""
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "big")
    if most is not None and size > most:
        raise ValueError(f"a frame of {size} bytes")
    data = stream.read(size)
    return json.loads(data) if len(data) == size else None


def main() -> None:
    """Serve until the parent is gone."""
    frames_in = os.fdopen(os.dup(0), "rb")
    frames_out = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what the function prints goes where errors go
    function: LocalFunction | None = None
    while (frame := read_frame(frames_in)) is not None:
        if function is None:
            reply, function = _load(frame["load"])
        else:
            reply = _call(function, frame["call"])
        write_frame(frames_out, reply)


def _load(order: dict[str, Any]) -> tuple[dict[str, Any], LocalFunction | None]:
    try:
        spec = specs.parse(order["spec"])
        scratch = Path(order["scratch"])
        guards = sandbox.confine(*specs.readable_by(spec), scratch, order["memory"])
        _end_with_the_parent()
        loaded = specs.load(spec)
    except specs.SpecError as error:
        return {"error": str(error)}, None
    takes = loaded.takes
    told = {
        "name": loaded.name,
        "names": sorted(takes.names),
        "required": takes.required,
        "anything": takes.anything,
        "one_of": loaded.one_of,
        "digest": loaded.digest,
        "guards": guards,
    }
    return {"loaded": told}, LocalFunction(spec, loaded)


def _call(function: LocalFunction, order: dict[str, Any]) -> dict[str, Any]:
    if order["cpu"] is not None:
        sandbox.limit_cpu(order["cpu"])
    try:
        answers = function.run(order["keywords"], order["count"], None)
    except CallFailed as failed:
        return {"failed": [failed.reason, str(failed)]}
    return {"answers": [{"bad": a.found} if isinstance(a, Bad) else a for a in answers]}


def read_answer(value: Any) -> Answer:
    """An entry of a reply, which is a stranger's, as an answer."""
    if value is None or (isinstance(value, float) and abs(value) < float("inf")):
        return value
    return Bad(str(value.get("bad"))[:200] if isinstance(value, dict) else "an unreadable reply")


def _end_with_the_parent() -> None:
    """A function that never comes back must not outlive the run that was killed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
    sys.exit(0)
