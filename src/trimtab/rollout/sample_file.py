"""``trimtab sample``: a model answers the prompts of a file, K times each.

The order is: options and names are checked, all rows are read and their prompts tokenised, the
model is loaded, and rows are sampled a chunk at a time into a journal beside the output, which is
written at once at the end. What is sampled is a function of the seed and the row's number, and a
chunk depends on the rows alone: a run that was killed goes on with the same command and ends with
the same file. Rows in = rows written + bad rows + rows left out, each with a reason.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from trimtab.config.data_keys import DatasetSpec
from trimtab.data.chat import ChatRenderer
from trimtab.data.locate import locate as locate_rows
from trimtab.data.quarantine import RowReport, reasons
from trimtab.data.rows import KINDS, Text
from trimtab.data.sources import load_examples
from trimtab.errors import RecipeError, UsageError
from trimtab.rollout.params import Rollout, SamplingParams
from trimtab.rollout.sample_journal import SampleJournal, journal_of
from trimtab.rollout.sample_prompts import Asked, Prompts, config_of, context_of, read_prompts
from trimtab.training import files
from trimtab.training.progress import Progress

CHUNK = 256
"""Responses that are sampled, and written, together: whole rows of about so many."""

SHOWN = 2  # rows of which a first response is shown
_WIDTH = 160  # characters of a text that is shown
_OURS = ("responses", "ended", "scores", "ranks", "score_std")  # of an earlier answer to a prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is sampled; the command line's options have the same names.

    ``top_k`` 0 and ``top_p`` 1 are the whole distribution, ``temperature`` 0 is greedy.
    ``max_completion_length`` counts tokens. ``batch_slots`` responses run at a time. ``count``
    adds a column ``tokens``, the number of each response's.
    """

    model_name_or_path: str
    dataset_name: str
    output: str
    num_generations: int = 4
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    max_completion_length: int = 256
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    dataset_split: str = "train"
    max_rows: int | None = None
    max_bad_rows: float = 0.01
    seed: int = 0
    batch_slots: int = 64
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    restart: bool = False
    count: bool = False

    @property
    def params(self) -> SamplingParams:
        """How tokens are chosen; raises RecipeError."""
        return SamplingParams(self.max_completion_length, self.temperature, self.top_k, self.top_p)


@dataclasses.dataclass
class _Tally:
    """What the summary says of the responses that this run sampled."""

    responses: int = 0
    tokens: int = 0
    ended: int = 0
    blank: int = 0
    seconds: float = 0.0


def sample_file(options: SampleOptions, *, mode: str = "auto") -> int:
    """Answer the prompts of a file, print the summary; returns 0.

    Raises UsageError (RecipeError, DataError) for what is wrong with options, names or rows, and
    RunError where the output cannot be written or the model's logits are no numbers.
    """
    with Progress(0, "sample", mode=mode) as progress:  # type: ignore[arg-type] - a Mode
        lines = sample(options, progress)
    print("\n".join(lines))
    return 0


def sample(options: SampleOptions, progress: Progress) -> list[str]:
    """Everything but the printing; returns the summary's lines."""
    output = check(options)
    source = DatasetSpec(
        path=options.dataset_name, columns=dict(options.columns), split=options.dataset_split
    )
    locate_rows(source)  # the cheapest thing that may be wrong
    return _Sampling(options, output, source, progress).run()


def check(options: SampleOptions) -> Path:
    """Refuse options that make no sense; returns the output's path, in a folder that is there."""
    for name in ("num_generations", "max_completion_length", "max_rows", "batch_slots"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise RecipeError(f"{name}={value}: must be at least 1")
    _ = options.params  # which refuse what else is out of range
    output = Path(options.output).expanduser()
    if output.suffix != ".jsonl":
        raise RecipeError(f"output={options.output}: rows are written as .jsonl; name such a file")
    source = Path(options.dataset_name).expanduser()
    if output.exists() and source.exists() and output.samefile(source):
        raise RecipeError(f"output={options.output}: that is the file with the prompts")
    unfinished = journal_of(output).exists() or options.restart
    if output.is_dir() or (output.exists() and not unfinished):
        raise UsageError(
            f"output={options.output}: exists already; name another file, or --restart to replace "
            "it"
        )
    try:
        files.make_folder(output.parent)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(
            f"output={options.output}: no folder can be made there: {reason}"
        ) from None
    return output


class _Sampling:
    """One run of the verb."""

    def __init__(
        self, options: SampleOptions, output: Path, source: DatasetSpec, progress: Progress
    ) -> None:
        from trimtab.models import load
        from trimtab.models.hub import quiet

        quiet()
        self.options = options
        self.output = output
        self.source = source
        self.progress = progress
        self.model = load.locate(options.model_name_or_path)
        progress.note(self.model.notice)
        self.tokenizer: Any = load.load_tokenizer(self.model, key="model_name_or_path")
        self.renderer = ChatRenderer(
            self.tokenizer, generation_config=load.generation_config(self.model)
        )
        self.tally = _Tally()

    def run(self) -> list[str]:
        """Read, sample, write; the summary's lines."""
        options = self.options
        self.progress.stage("reading rows")
        loaded = load_examples(
            [self.source],
            frozenset(KINDS) - {"text", "labelled"},
            max_rows=options.max_rows,
            max_bad_rows=options.max_bad_rows,
            quarantine_path=quarantine_of(self.output),
        )
        for notice in loaded.report.notices:
            self.progress.note(notice)
        context = context_of(config_of(self.model))
        prompts = read_prompts(loaded.examples[0], self.renderer, context)
        asked = prompts.asked
        chunk = max(1, CHUNK // options.num_generations)
        journal = SampleJournal(
            self.output, self._settings(loaded.fingerprint), chunk, restart=options.restart
        )
        try:
            if journal.rows < len(asked):
                self._sample(asked, journal, chunk)
            journal.finish()
        except BaseException:
            journal.close()
            raise
        return self._summary(loaded.report, prompts)

    def _settings(self, rows: str) -> dict[str, Any]:
        """All that shapes the output; how many rows run at a time does not."""
        from trimtab.models.fingerprint import fingerprint
        from trimtab.models.load import base_of

        options = self.options
        folders = dict.fromkeys([self.model.folder, base_of(self.model).folder])
        names = "num_generations temperature top_k top_p max_completion_length seed max_rows"
        return {
            "model": ":".join(fingerprint(folder) for folder in folders),
            "rows": rows,
            "columns": dict(options.columns),
            **{name: getattr(options, name) for name in names.split()},
            # What auto chooses is measured; a run that goes on keeps what was chosen first.
            "precision": None if options.precision == "auto" else options.precision,
            **({"count": True} if options.count else {}),
        }

    # ------------------------------------------------------------------ sampling

    def _sample(self, asked: Sequence[Asked], journal: SampleJournal, chunk: int) -> None:
        """Answer what the journal does not have yet."""
        options, progress = self.options, self.progress
        each = options.num_generations
        if journal.rows:
            progress.note(f"going on with an unfinished run: {journal.rows} rows are there")
        sampler = self._sampler(journal)
        progress.stage("sampling", total=len(asked) * each)
        progress.update(journal.rows * each)
        began = time.perf_counter()
        try:
            for start in range(journal.rows, len(asked), chunk):
                part = asked[start : start + chunk]
                rollouts = sampler.sample(
                    [one.ids for one in part],
                    each,
                    options.params,
                    seed=options.seed,
                    done=lambda count, start=start: progress.update(start * each + count),
                    numbers=[one.number for one in part],
                )
                rows = [self._row(one, own) for one, own in zip(part, rollouts, strict=True)]
                journal.add(rows)
                if start == 0:
                    self._show(part, rows)
                progress.update((start + len(part)) * each)
        except KeyboardInterrupt:
            kept = journal.rows
            progress.note(
                f"{kept} of {len(asked)} rows are there; the same command goes on with them"
            )
            raise
        self.tally.seconds = time.perf_counter() - began

    def _sampler(self, journal: SampleJournal) -> Any:
        """The model, loaded in its precision, and what samples from it."""
        import torch

        from trimtab.models.device import best_device
        from trimtab.models.load import load_model
        from trimtab.rollout.sampler import Sampler
        from trimtab.training.precision import choose_precision

        self.progress.stage("loading the model")
        config = config_of(self.model)
        width = config.get("hidden_size") or config.get("n_embd") or 1024
        device = best_device()
        chosen = choose_precision(journal.settings["precision"] or "auto", device, int(width))
        journal.begin({"precision": chosen.name})
        model = load_model(self.model, dtype=chosen.dtype, device=device)
        sampler = Sampler(
            model.requires_grad_(False),
            stop_ids=self.renderer.stop_ids,
            slots=self.options.batch_slots,
        )
        self.progress.note(
            f"precision: {chosen.name} ({chosen.reason}); device: {device}; sampling: "
            f"{sampler.way} ({sampler.reason}); {torch.get_num_threads()} threads"
        )
        return sampler

    def _row(self, asked: Asked, rollouts: Sequence[Rollout]) -> dict[str, Any]:
        """What is written for a prompt: its responses in the form that the prompt has."""
        texts = [self._text(asked.ids, one) for one in rollouts]
        tally = self.tally
        tally.responses += len(rollouts)
        tally.tokens += sum(len(one.ids) for one in rollouts)
        tally.ended += sum(one.ended for one in rollouts)
        tally.blank += sum(not text.strip() for text in texts)
        responses: list[Text] = list(texts)
        if not isinstance(asked.prompt, str):
            responses = [[{"role": "assistant", "content": text}] for text in texts]
        example = asked.example
        more: dict[str, Any] = {} if example.tools is None else {"tools": example.tools}
        if example.weight != 1:
            more["weight"] = example.weight
        extras = {name: value for name, value in example.extras.items() if name not in _OURS}
        if self.options.count:
            more["tokens"] = [len(one.ids) for one in rollouts]
            extras.pop("tokens", None)
        ended = [one.ended for one in rollouts]
        return {"prompt": asked.prompt, "responses": responses, "ended": ended, **more, **extras}

    def _text(self, prompt: Sequence[int], rollout: Rollout) -> str:
        """The text behind the prompt; the stop token is no part of it."""
        ids = rollout.ids[:-1] if rollout.ended else rollout.ids
        # Some decoders drop the space that a text begins with, which here is a space within.
        before, whole = (self._decode(x) for x in (prompt, [*prompt, *ids]))
        return whole[len(before) :] if whole.startswith(before) else self._decode(ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    # ------------------------------------------------------------------ what is said

    def _show(self, part: Sequence[Asked], rows: Sequence[Mapping[str, Any]]) -> None:
        for one, row in list(zip(part, rows, strict=True))[:SHOWN]:
            end = "" if row["ended"][0] else " (cut off)"
            self.progress.note(
                f"{one.where}: {_short(one.prompt)} -> {_short(row['responses'][0])}{end}"
            )

    def _summary(self, report: RowReport, prompts: Prompts) -> list[str]:
        """Rows in = rows written + bad rows + rows left out, and how the responses ended."""
        tally, account, asked = self.tally, report.sources[0], prompts.asked
        count = len(asked) * self.options.num_generations
        lines = [f"{len(asked)} rows, {count} responses"]
        if account.bad_rows:
            where = f"; see {quarantine_of(self.output)}"
            lines.append(f"bad rows    {account.bad_rows}: {reasons(account.bad)}{where}")
        lines += prompts.lines()
        assert account.rows_in == len(asked) + account.bad_rows + prompts.left_out.total()
        if tally.responses:
            cut = tally.responses - tally.ended
            speed = tally.tokens / max(tally.seconds, 1e-9)
            of = "" if tally.responses == count else f" of the {tally.responses} of this start"
            lines.append(
                f"ended       {tally.ended}{of}; {cut} cut off at "
                f"{self.options.max_completion_length} tokens or the model's context; "
                f"{tally.tokens / tally.responses:.1f} tokens on average, {speed:.0f} a second"
            )
        if tally.blank:
            lines.append(f"blank       {tally.blank}: score and reward refuse their rows")
        return [
            *lines,
            f"written     {self.options.output}",
            f"next        trimtab score {self.options.output} --output scored.jsonl "
            "--reward-model MODEL",
        ]


def quarantine_of(output: Path) -> Path:
    """Where bad rows are written; folders are read without names in ``_``."""
    return output.with_name(f"_{output.stem}.quarantine.jsonl")


def _short(text: Text) -> str:
    if not isinstance(text, str):
        text = str(text[-1].get("content") or "")
    text = " ".join(text.split())
    return repr(text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}...")
