"""What people, logs and programs see of a run."""

from __future__ import annotations

import io
import json
import time

import pytest
from rich.console import Console

from trimtab.training.progress import (
    Mode,
    Progress,
    choose_mode,
    clock_time,
    describe,
    number,
)

RECORD = {
    "loss": 0.69314718,
    "rewards/chosen": 0.1,
    "rewards/accuracies": 0.5,
    "grad_norm": 12.3456,
    "learning_rate": 1e-06,
    "time/tokens_per_second": 8123.4,
    "text": "x",
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A console that writes to a string."""

    def __init__(self, terminal: bool = False) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=terminal, width=100, highlight=False, color_system=None
        )

    @property
    def lines(self) -> list[str]:
        return self.file.getvalue().splitlines()


def plain(total: int = 10, **how: object) -> tuple[Progress, Screen, Clock]:
    screen, clock = Screen(), Clock()
    progress = Progress(total, "dpo", screen.console, "plain", clock=clock, **how)  # type: ignore[arg-type]
    return progress, screen, clock


def test_numbers_as_people_read_them() -> None:
    assert describe(RECORD) == ("loss 0.6931 · acc 0.5 · grad 12.35 · lr 1.0e-06 · tok/s 8.1k")
    assert [number("loss", x) for x in (0, 1e-5, 123456.0, float("nan"), 3)] == [
        *("0", "1.00e-05", "1.23e+05", "nan", "3"),
    ]
    speeds = [number("time/tokens_per_second", x) for x in (0.0161, 3.5, 12, 1.5e6)]
    assert speeds == ["0.0161", "3.5", "12", "1.5M"]
    assert [clock_time(x) for x in (0.4, 61, 3600)] == ["0:00", "1:01", "1:00:00"]


def test_plain_lines_one_a_log_step(monkeypatch: pytest.MonkeyPatch) -> None:
    progress, screen, clock = plain()
    with progress:
        for step in (1, 2):
            clock.now += 2.0
            progress.update(step)
        progress.log(2, RECORD)
        progress.log(2, {"eval_loss": 0.5, "eval_rewards/accuracies": 0.75, "epoch": 1.0})
        progress.note("checkpoint [bold]saved[/bold] " + "x" * 200)
    assert screen.lines == [
        f"dpo 2/10 · {describe(RECORD)} · ETA 0:16",
        "dpo step 2 · held out: loss 0.5 · acc 0.75",
        "checkpoint [bold]saved[/bold] " + "x" * 200,  # no markup, no wrapping
    ]


def test_a_resumed_runs_pace_is_of_its_own_steps() -> None:
    progress, _, clock = plain(total=100, first_step=90)
    with progress:
        assert progress.eta() is None
        clock.now += 10.0
        progress.update(95)
        assert progress.eta() == pytest.approx(10.0)  # 2 s a step; from step 0: 0.53


def test_plain_says_something_when_it_was_quiet_for_long() -> None:
    progress, screen, clock = plain()
    with progress:
        clock.now += 4.0
        progress.update(1)
        assert screen.lines == []
        clock.now += 2.0
        progress.update(2)
        assert screen.lines == ["dpo 2/10 · ETA 0:24"]
        clock.now += 54.0  # after a minute, less often
        progress.update(3)
        clock.now += 20.0
        progress.update(4)
        assert len(screen.lines) == 2


def test_a_line_against_silence_does_not_repeat_old_metrics() -> None:
    progress, screen, clock = plain()
    with progress:
        progress.log(1, {"loss": 0.5})
        clock.now += 6.0
        progress.update(2)
    assert [line.partition(" · ETA")[0] for line in screen.lines] == [
        "dpo 1/10 · loss 0.5",
        "dpo 2/10",
    ]


def test_plain_says_something_within_one_long_step() -> None:
    """No update comes; the line comes from a thread."""
    progress, screen, clock = plain()
    with progress:
        progress.stage("reference log-probs", total=40)
        clock.now += 6.0
        end = time.monotonic() + 10
        while len(screen.lines) < 2 and time.monotonic() < end:
            time.sleep(0.02)
    assert screen.lines[:2] == ["reference log-probs ...", "reference log-probs 0/40 · 0:06 so far"]


def test_stages_count_their_own_units_and_training_goes_on_after() -> None:
    progress, screen, clock = plain()
    with progress:
        progress.stage("tokenising", total=1000)
        clock.now += 6.0
        progress.update(500)
        progress.train(3)
        clock.now += 6.0
        progress.update(4)
    assert screen.lines == [
        *("tokenising ...", "tokenising 500/1000 · ETA 0:06", "dpo 4/10 · ETA 0:36"),
    ]


def test_json_lines_are_json_on_the_given_stream() -> None:
    screen, out = Screen(), io.StringIO()
    with Progress(10, "dpo", screen.console, "json", out=out) as progress:
        progress.stage("loading")
        progress.log(1, {"loss": float("nan"), "kl": 0.5})
        progress.note("hello")
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"event": "stage", "title": "loading", "total": None},
        {"event": "log", "step": 1, "loss": "NaN", "kl": 0.5},
        {"event": "note", "text": "hello"},
    ]
    assert screen.lines == []


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with Progress(10, "dpo", screen.console, "quiet") as progress:
        progress.stage("loading")
        progress.log(1, RECORD)
        progress.note("hello")
        progress.update(2)
    assert screen.lines == []
    assert capsys.readouterr() == ("", "")


def test_panel_on_a_terminal_shows_step_eta_and_metrics_and_keeps_notes() -> None:
    screen, clock = Screen(terminal=True), Clock()
    with Progress(10, "dpo", screen.console, "rich", clock=clock) as progress:
        clock.now += 4.0
        progress.log(2, RECORD)
        progress.note("saved")
        panel = Screen()
        panel.console.print(progress._panel())
    shown = " ".join(panel.lines)
    assert all(part in shown for part in ("dpo", "2/10", "ETA 0:16", "loss 0.6931", "acc 0.5"))
    assert "saved" in screen.file.getvalue()
    progress.close()


@pytest.mark.parametrize(
    ("terminal", "environment", "mode"),
    [
        (True, {}, "rich"),
        (False, {}, "plain"),
        (True, {"CI": "true"}, "plain"),
        (True, {"TQDM_DISABLE": "1"}, "plain"),
        (True, {"TQDM_DISABLE": "0", "CI": "false"}, "rich"),
    ],
)
def test_auto_looks_where_it_is(terminal: bool, environment: dict[str, str], mode: Mode) -> None:
    assert choose_mode(Screen(terminal).console, environment) == mode


def test_no_color_takes_the_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard")
    with Progress(10, "dpo", console, "rich") as progress:
        progress.log(1, RECORD)
        console.print(progress._panel())
    colours = [f"\x1b[{code}m" for code in range(30, 48)]
    assert not any(code in out.getvalue() for code in colours)
