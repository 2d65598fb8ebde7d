"""``trimtab data check FILE``: read the rows once, look at each and at all, say what is wrong."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trimtab.data.directions import Directions
from trimtab.data.doctor import set_checks
from trimtab.data.doctor.faults import FAULTS, SEVERITIES, Needs, Severity
from trimtab.data.doctor.ledger import Admissions, At, Finding, Ledger, Rows
from trimtab.data.doctor.order_checks import LabelNoise, disorder
from trimtab.data.doctor.row_checks import ROW_CHECKS
from trimtab.data.doctor.set_checks import LengthBias
from trimtab.data.doctor.shape import Seen, keys_of, shape_of
from trimtab.data.doctor.table import Table
from trimtab.data.inspect import FileSource
from trimtab.data.quarantine import SourceReport
from trimtab.data.sources import stream_examples
from trimtab.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from trimtab.data.doctor.token_checks import TokenChecks

NEVER = "never"


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What is checked, and when the exit code says so; keys as in a recipe.

    files         files, folders or hub ids: together one training set
    against       held-out ones, which must not share rows or prompts with it
    model         model or tokenizer folder or hub id; None: nothing is tokenised
    kind          kind of the rows (``rows.KINDS``); None: recognised
    columns       our column -> theirs, of all files
    fail_on       the severity from which on the exit code is 2, or never
    rows          rows of each finding that are printed
    """

    files: Sequence[str]
    against: Sequence[str] = ()
    model: str | None = None
    kind: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    dataset_train_split: str = "train"
    dataset_test_split: str = "test"
    max_rows: int | None = None
    max_length: int | None = 1024
    max_prompt_length: int | None = None
    fail_on: Severity | str = "error"
    rows: int = 5

    @property
    def given(self) -> set[Needs]:
        """What the checks can use."""
        found: set[Needs] = {"rows"}
        if self.against:
            found.add("held-out")
        if self.model is not None:
            found.add("model")
        return found


@dataclass
class Diagnosis:
    """What a check found; findings are sorted, the worst first."""

    options: CheckOptions
    rows: Rows
    sources: list[SourceReport]
    held_out: list[SourceReport]
    findings: list[Finding]
    length_bias: LengthBias | None
    label_noise: LabelNoise

    @property
    def failed(self) -> bool:
        """Whether there is a finding of the level that the exit code is for, or worse."""
        if self.options.fail_on == NEVER:
            return False
        worst = SEVERITIES.index(self.options.fail_on)  # pyright: ignore[reportArgumentType]
        return any(SEVERITIES.index(f.fault.severity) <= worst for f in self.findings)

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(finding.fault.severity == severity for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        given = self.options.given
        return {
            "files": [_account(source) for source in self.sources],
            "against": [_account(source) for source in self.held_out],
            "model": self.options.model,
            "max_length": self.options.max_length,
            "rows": len(self.rows),
            "findings": [finding.to_json(self.rows) for finding in self.findings],
            "length_bias": self.length_bias and self.length_bias.to_json(),
            "label_noise": self.label_noise.to_json(),
            "checked": [fault.name for fault in FAULTS if fault.needs in given],
            "not_checked": [fault.name for fault in FAULTS if fault.needs not in given],
            "fail_on": self.options.fail_on,
            "failed": self.failed,
        }


def check_files(
    options: CheckOptions, *, as_json: bool = False, console: Console | None = None
) -> int:
    """Print what is wrong with the rows; 2 from the level ``fail_on`` on, else 0.

    Raises:
        DataError: a file that is not there, or whose columns are of no kind of rows.
    """
    from trimtab.data.doctor.view import print_json, show

    found = diagnose(options)
    (print_json if as_json else show)(found, console)
    return UsageError.exit_code if found.failed else 0


def diagnose(options: CheckOptions) -> Diagnosis:
    """Read all rows once and run every check that can be run."""
    if not options.files:
        raise UsageError("data check: no file; name one or more: trimtab data check rows.jsonl")
    if options.fail_on not in (*SEVERITIES, NEVER):
        raise UsageError(f"--fail-on {options.fail_on}: must be {', '.join(SEVERITIES)} or {NEVER}")
    for name, value, least in (("max-rows", options.max_rows, 1), ("rows", options.rows, 0)):
        if value is not None and value < least:
            raise UsageError(f"--{name} {value}: must be {least} or more")
    ledger, table = Ledger(), Table()
    accounts = [SourceReport(path) for path in options.files]
    seen = _looked_at(_read(options, accounts, options.dataset_train_split, ledger, table), ledger)
    if options.model is None:
        deque(seen, maxlen=0)
    else:
        _token_checks(options, options.model, ledger).watch(seen)
    held_out = _compare(options, ledger, table)
    bias, noise = _whole_set(ledger, table)
    return Diagnosis(options, ledger.rows, accounts, held_out, ledger.findings(), bias, noise)


def _read(
    options: CheckOptions,
    accounts: Sequence[SourceReport],
    split: str,
    ledger: Ledger,
    table: Table,
) -> Iterator[Seen]:
    """Every row of the sources that can be used, noted down in the table."""
    for account in accounts:
        source = FileSource(account.source, options.columns, options.kind, split=split)
        admissions = Admissions(ledger)
        directions, opposed = Directions(), list[int]()
        for example in stream_examples(source, account, admissions, max_rows=options.max_rows):
            number = ledger.rows.add(example.origin.source, example.origin.row)
            shape = shape_of(example)
            table.add(number, shape, keys_of(shape))
            if directions.add(example):
                opposed.append(number)
            yield Seen(number, shape, example)
        if directions.turned:  # as training judges a source
            ledger.add_all("ranks-turned-round", map(At, opposed))
            ledger.details["ranks-turned-round"] = f"{account.source}: {directions}"


def _looked_at(rows: Iterable[Seen], ledger: Ledger) -> Iterator[Seen]:
    """The rows again, behind the checks of single rows."""
    for row in rows:
        for name, check in ROW_CHECKS.items():
            note = check(row.shape, row.example)
            if note is not None:
                ledger.add(name, row.number, note)
        yield row


def _token_checks(options: CheckOptions, model: str, ledger: Ledger) -> TokenChecks:
    from trimtab.data.chat import ChatRenderer
    from trimtab.data.doctor.token_checks import TokenChecks
    from trimtab.data.inspect import read_tokenizer
    from trimtab.data.tokenise import TokeniseOptions

    tokenizer, generation_config = read_tokenizer(model)
    renderer = ChatRenderer(tokenizer, generation_config=generation_config)
    limits = TokeniseOptions(
        max_length=options.max_length, max_prompt_length=options.max_prompt_length
    )
    return TokenChecks(renderer, limits, ledger)


def _compare(options: CheckOptions, ledger: Ledger, table: Table) -> list[SourceReport]:
    """Look for our rows among the held-out ones, whose own faults are not looked for."""
    if not options.against:
        return []
    other, held_out = Ledger(), Table()
    accounts = [SourceReport(path) for path in options.against]
    deque(_read(options, accounts, options.dataset_test_split, other, held_out), maxlen=0)
    ledger.add_all("held-out-row", set_checks.held_out_rows(table, held_out, other.rows))
    ledger.add_all("held-out-prompt", set_checks.held_out_prompts(table, held_out, other.rows))
    return accounts


def _whole_set(ledger: Ledger, table: Table) -> tuple[LengthBias | None, LabelNoise]:
    """Run the checks of all rows together."""
    rows = ledger.rows
    ledger.add_all("duplicate-row", set_checks.duplicate_rows(table, rows))
    ledger.add_all("near-duplicate-row", set_checks.near_duplicate_rows(table, rows))
    ledger.add_all("conflicting-labels", set_checks.conflicting_labels(table, rows))
    ledger.add_all("single-label", set_checks.single_label(table, rows))
    found = disorder(table.pairs, rows)
    ledger.add_all("contradictory-pair", found.contradictory)
    ledger.add_all("preference-cycle", found.cyclic)
    for name in ("contradictory-pair", "preference-cycle"):
        ledger.details[name] = str(found.noise)
    bias = set_checks.length_bias(table)
    if bias is not None and bias.beyond:
        ledger.add_all("length-bias", set_checks.rows_of_bias(table, bias))
        ledger.details["length-bias"] = str(bias)
    return bias, found.noise


def _account(source: SourceReport) -> dict[str, Any]:
    return {
        "path": source.source,
        "kind": source.kind,
        "rows": source.rows_in,
        "used": source.used,
        "bad": dict(source.bad.most_common()),
        "notices": source.notices,
    }
