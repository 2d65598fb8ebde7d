"""``report_to``: hand the records of metrics.jsonl to TensorBoard, trackio, wandb or MLflow too.

Each package is imported only when it is asked for. Names are rewritten as the HF Trainer does:
``eval_x`` becomes ``eval/x``, all else ``train/x``. Nothing is ever reported unasked.

A resumed run logs some steps a second time, with the same numbers. TensorBoard is told to forget
them (``purge_step``); for the others ``trackers.json`` in the run folder remembers what was handed
over, and it is not handed over again.

A tracker that fails while the run goes on (a server gone, say) is dropped with a note: the run and
its own metrics.jsonl matter more.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from trimtab.errors import RecipeError
from trimtab.training import files

MARKS = "trackers.json"


class Tracker(Protocol):
    """Somewhere that records go."""

    def log(self, step: int, record: Mapping[str, float]) -> None:
        """Record numbers, named as the tracker shows them, at an optimizer step."""
        ...

    def close(self) -> None:
        """The run is over, or stops here."""
        ...


class RunInfo(NamedTuple):
    """What a tracker is told of the run. ``run_id`` is the same when the run is continued."""

    folder: Path
    project: str
    name: str
    run_id: str
    config: Mapping[str, Any]
    first_step: int = 0


def check_report_to(report_to: Sequence[str]) -> None:
    """Refuse names that are no trackers and packages that are not installed; imports nothing."""
    for name in report_to:
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(TRACKERS)}"
            raise RecipeError(f"report_to={list(report_to)}: there is no tracker {name!r}; {hint}")
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise _missing(report_to, name)


def build_trackers(
    report_to: Sequence[str], run: RunInfo, note: Callable[[str], None] = print
) -> Trackers:
    """Open all trackers of ``report_to``; call ``close`` on the result at the end."""
    check_report_to(report_to)
    opened: dict[str, Tracker] = {}
    for name in dict.fromkeys(report_to):
        try:
            opened[name] = TRACKERS[name](run)
        except ImportError:
            raise _missing(report_to, name) from None
        except Exception as error:  # whatever a foreign package raises: no account, no server
            raise RecipeError(
                f"report_to={list(report_to)}: {name} could not be started "
                f"({_first_line(error)}); set it up, or leave it out"
            ) from error
    return Trackers(opened, note)


def _missing(report_to: Sequence[str], name: str) -> RecipeError:
    return RecipeError(
        f"report_to={list(report_to)}: the package {name} is not installed; "
        f"pip install 'trimtab[{name}]'"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class Trackers:
    """Several trackers as one; takes the raw records of metrics.jsonl."""

    def __init__(self, trackers: Mapping[str, Tracker], note: Callable[[str], None]) -> None:
        self._trackers = dict(trackers)
        self._note = note

    def log(self, step: int, record: Mapping[str, Any]) -> None:
        """Hand the numbers of a record to every tracker that still works."""
        numbers = rewrite_names(record)
        for name, tracker in list(self._trackers.items()):
            try:
                tracker.log(step, numbers)
            except Exception as error:
                self._note(
                    f"report_to: {name} failed ({_first_line(error)}); the run goes on, and its "
                    "records are in metrics.jsonl"
                )
                del self._trackers[name]

    def close(self) -> None:
        """Close all trackers; one that fails to close does not fail the run."""
        for name, tracker in self._trackers.items():
            try:
                tracker.close()
            except Exception as error:
                self._note(f"report_to: {name} did not close ({_first_line(error)})")
        self._trackers.clear()

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def rewrite_names(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record, named ``eval/x`` for ``eval_x`` and ``train/x`` for all else."""
    return {
        f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in record.items()
        if isinstance(value, int | float) and name != "step"
    }


class _Marks:
    """What was handed to a tracker in earlier starts of this run, in trackers.json."""

    def __init__(self, run: RunInfo, tracker: str) -> None:
        self._path = run.folder / MARKS
        self._tracker = tracker
        own = self._read().get(tracker, {})
        self.kept: dict[str, Any] = own if own.get("run_id") == run.run_id else {}
        self._done: tuple[int, set[str]] = (
            self.kept.get("step", -1),
            set(self.kept.get("names", [])),
        )
        self.kept["run_id"] = run.run_id

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def new(self, step: int, record: Mapping[str, float]) -> dict[str, float]:
        """The part of a record that was not handed over yet."""
        last, names = self._done
        if step > last:
            return dict(record)
        return {k: v for k, v in record.items() if step == last and k not in names}

    def handed_over(self, step: int, record: Mapping[str, float]) -> None:
        """Remember it. Atomic; not more than one step is repeated after a kill."""
        names = record.keys()
        if self.kept.get("step") == step:
            names = {*self.kept["names"], *names}
        self.keep(step=step, names=sorted(names))

    def keep(self, **values: Any) -> None:
        """Remember further facts, such as a run's number at a server."""
        self.kept.update(values)
        marks = {**self._read(), self._tracker: self.kept}
        files.write_atomic(self._path, json.dumps(marks).encode())


class TensorBoard:
    """Event files in ``<run>/tensorboard``."""

    def __init__(self, run: RunInfo) -> None:
        importlib.import_module("tensorboard")  # torch's own message on its absence is long
        from torch.utils.tensorboard import SummaryWriter

        folder = str(run.folder / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=run.first_step + 1)

    def log(self, step: int, record: Mapping[str, float]) -> None:  # noqa: D102
        for name, value in record.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # what a kill would lose is not logged again after a checkpoint

    def close(self) -> None:  # noqa: D102
        self._writer.close()


class Trackio:
    """A local trackio project; nothing leaves the machine unless trackio is told to."""

    def __init__(self, run: RunInfo) -> None:
        self._trackio = importlib.import_module("trackio")
        self._marks = _Marks(run, "trackio")
        self._trackio.init(
            project=run.project,
            name=f"{run.name}-{run.run_id}",  # trackio continues a run of the same name
            config=dict(run.config),
            resume="allow",
        )

    def log(self, step: int, record: Mapping[str, float]) -> None:  # noqa: D102
        new = self._marks.new(step, record)
        if new:
            self._trackio.log(new, step=step)
            self._marks.handed_over(step, new)

    def close(self) -> None:  # noqa: D102
        self._trackio.finish()


class Wandb:
    """Weights & Biases; account, project and mode as its own environment variables say."""

    def __init__(self, run: RunInfo) -> None:
        wandb = importlib.import_module("wandb")
        self._marks = _Marks(run, "wandb")
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.run_id,
            resume="allow",
            config=dict(run.config),
            dir=str(run.folder),
        )

    def log(self, step: int, record: Mapping[str, float]) -> None:  # noqa: D102
        new = self._marks.new(step, record)
        if new:
            self._run.log(new, step=step)
            self._marks.handed_over(step, new)

    def close(self) -> None:  # noqa: D102
        self._run.finish()


class Mlflow:
    """MLflow; the server as its own environment variables say, ./mlruns without them."""

    def __init__(self, run: RunInfo) -> None:
        self._mlflow = importlib.import_module("mlflow")
        self._marks = _Marks(run, "mlflow")
        self._mlflow.set_experiment(run.project)
        known = self._marks.kept.get("server_run_id")
        if known is not None:
            self._mlflow.start_run(run_id=known)
            return
        started = self._mlflow.start_run(run_name=run.name)
        self._marks.keep(server_run_id=started.info.run_id)
        # MLflow refuses long values
        self._mlflow.log_params({key: str(value)[:500] for key, value in run.config.items()})

    def log(self, step: int, record: Mapping[str, float]) -> None:  # noqa: D102
        new = self._marks.new(step, record)
        if new:
            self._mlflow.log_metrics(new, step=step)
            self._marks.handed_over(step, new)

    def close(self) -> None:  # noqa: D102
        self._mlflow.end_run()


TRACKERS: dict[str, Callable[[RunInfo], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
    "mlflow": Mlflow,
}
