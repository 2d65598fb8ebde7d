"""The judge behind an address: a real server in a thread that errs in every way that servers do."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from tests.evaluation.fake_judge import Body, Reply, answers, serving

from trimtab.errors import RecipeError, RunError
from trimtab.evaluation.chat_client import ChatClient
from trimtab.evaluation.judge import Judged, Pair, Verdicts, judge_pairs, read_verdict

PAIRS = [Pair(f"question {i}", "x" * (i + 2), "x" * (7 - i)) for i in range(6)]


def longer(number: int, body: Body) -> str:
    """A judge that prefers the longer answer."""
    one, other = answers(body)
    if len(one) == len(other):
        return "They are alike.\n[[C]]"
    return f"It says more.\n[[{'A' if len(one) > len(other) else 'B'}]]"


def client(url: str, **options: object) -> ChatClient:
    waits: list[float] = []
    found = ChatClient(url, "judge", sleep=waits.append, **options)  # type: ignore[arg-type]
    object.__setattr__(found, "waits", waits)
    return found


def judged(url: str, path: Path, parallel: int = 2, **options: object) -> list[Judged]:
    verdicts = Verdicts(path)
    try:
        return judge_pairs(client(url, **options), PAIRS, verdicts, parallel=parallel)
    finally:
        verdicts.close()


def test_both_orders_are_asked_and_wins_are_those_of_both(tmp_path: Path) -> None:
    with serving(longer) as server:
        found = judged(server.url, tmp_path / "v.jsonl", key="secret", options={"temperature": 0})
    assert [one.outcome for one in found] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    assert all(one.agree for one in found) and len(server.asked) == 12
    first = server.asked[0]
    assert first["path"] == "/v1/chat/completions" and first["model"] == "judge"
    assert first["temperature"] == 0
    assert {h["Authorization"] for h in server.headers} == {"Bearer secret"}
    seen = {answers(body) for body in server.asked}
    assert ("xx", "x" * 7) in seen and ("x" * 7, "xx") in seen


def test_a_judge_that_likes_the_first_answer_says_nothing(tmp_path: Path) -> None:
    with serving(lambda number, body: "[[A]]") as server:
        found = judged(server.url, tmp_path / "v.jsonl")
    assert [one.outcome for one in found] == [0.5] * 6
    assert not any(one.agree for one in found)


def test_equal_answers_tie_without_a_question(tmp_path: Path) -> None:
    with serving(longer) as server:
        verdicts = Verdicts(tmp_path / "v.jsonl")
        found = judge_pairs(client(server.url), [Pair("q", "same", "same")], verdicts)
        verdicts.close()
    assert found == [Judged("C", "C", asked=False)] and server.asked == []
    assert found[0].outcome == 0.5


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("[[A]]", "A"),
        ("First I thought [[A]], but no: [[B]]", "B"),
        ("both do\n[[ C ]]\n", "C"),
        ("**B**", "B"),
        ("A.", "A"),
        ("Answer A is better", None),
        ("", None),
        ("[[D]] [A]", None),
    ],
)
def test_verdicts_are_read_and_nothing_else_is(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict


def test_replies_without_a_verdict_leave_it_open(tmp_path: Path) -> None:
    with serving(lambda n, body: "well ..." if answers(body)[0] == "xx" else longer(n, body)) as s:
        found = judged(s.url, tmp_path / "v.jsonl")
    assert found[0] == Judged(None, "A") and found[0].outcome is None
    # The fifth pair has six x against three, the sixth seven against two: "xx" comes first there.
    assert [one.outcome for one in found] == [None, 0.0, 0.0, 1.0, 1.0, None]


def test_busy_servers_are_asked_again_when_they_say(tmp_path: Path) -> None:
    def answer(number: int, body: Body) -> Reply | str:
        if number == 0:
            return Reply(status=429, raw=b'{"error": {"message": "slow down"}}',
                         headers={"Retry-After": "7"})  # fmt: skip
        if number in (1, 2):
            return Reply(status=503, raw=b"busy")
        return longer(number, body)

    with serving(answer) as server:
        asked = client(server.url)
        verdicts = Verdicts(tmp_path / "v.jsonl")
        found = judge_pairs(asked, PAIRS[:1], verdicts, parallel=1)
        verdicts.close()
    assert found[0].outcome == 0.0
    assert asked.waits == [7.0, 1.0, 2.0], "its own wait, then one that doubles"  # type: ignore[attr-defined]


def test_garbage_is_asked_for_again_and_refused_at_last(tmp_path: Path) -> None:
    garbage = (b"<html>oops</html>", b'{"choices": []}', b"[1]", b'"\xff')
    with serving(
        lambda n, body: Reply(raw=garbage[n]) if n < len(garbage) else longer(n, body)
    ) as server:
        assert judged(server.url, tmp_path / "v.jsonl", retries=4)[0].outcome == 0.0
    with (
        serving(lambda n, body: Reply(raw=b"<html>oops</html>")) as server,
        pytest.raises(RunError, match=r"no chat completion: '<html>oops</html>' \(asked 3 times\)"),
    ):
        judged(server.url, tmp_path / "w.jsonl", retries=2)


def test_timeouts_are_errors_that_say_so(tmp_path: Path) -> None:
    never = threading.Event()
    with serving(lambda n, body: Reply("[[A]]", wait=never)) as server:
        with pytest.raises(RunError, match=r"no answer within 0.1 s \(asked 2 times\)"):
            judged(server.url, tmp_path / "v.jsonl", timeout=0.1, retries=1)
        never.set()


def test_what_will_not_pass_is_not_asked_again(tmp_path: Path) -> None:
    def refused(status: int, **more: object) -> str:
        body = b'{"error": {"message": "no such thing"}}'
        with (
            serving(lambda n, b: Reply(status=status, raw=body, **more)) as server,  # type: ignore[arg-type]
            pytest.raises(RunError) as error,
        ):
            judged(server.url, tmp_path / f"{status}.jsonl")
        assert len(server.asked) <= 2, "one by each thread"
        return str(error.value)

    assert "401 Unauthorized: no such thing; name the key's variable" in refused(401)
    assert "400 Bad Request: no such thing" in refused(400)
    assert "name that address" in refused(307, headers={"Location": "http://elsewhere.test/"})
    with pytest.raises(RunError, match="cannot be reached"):
        judged("http://127.0.0.1:9/v1", tmp_path / "n.jsonl", retries=0)
    with pytest.raises(RecipeError, match="no address"):
        ChatClient("localhost:8000", "judge")


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    with (
        serving(lambda n, b: longer(n, b) if n < 5 else Reply(status=400, raw=b"")) as server,
        pytest.raises(RunError, match="400"),
    ):
        judged(server.url, path, parallel=1)
    url = server.url
    known = path.read_bytes()
    assert known.count(b"\n") == 5
    path.write_bytes(known + b'{"key": "torn')  # as a kill in the middle of a line leaves it
    kept = Verdicts(path)
    again = client(url)
    with serving(longer) as server:
        # The address is part of what was asked: the same one, served anew.
        object.__setattr__(again, "url", url)
        moved = Moved(again, server.url)
        found = judge_pairs(moved, PAIRS, kept, parallel=2)  # type: ignore[arg-type]
        assert len(server.asked) == 7
        assert judge_pairs(moved, PAIRS, kept) == found  # type: ignore[arg-type]
        assert len(server.asked) == 7, "all of it is known"
    kept.close()
    assert [one.outcome for one in found] == [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 12
    assert Verdicts(path, restart=True)._known == {}


class Moved:
    """A client whose keys name one address and whose questions go to another."""

    def __init__(self, told: ChatClient, url: str) -> None:
        self.address, self.model, self.options = told.address, told.model, told.options
        self.complete = client(url).complete
