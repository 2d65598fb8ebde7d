"""A report card for people: Markdown with the verdict first, and a short form for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trimtab.evaluation import answer_text, lm_eval_text
from trimtab.evaluation.verdict import interval, signed
from trimtab.report.card_charts import SCORING_NAMES

_TABLE_HEAD = "| | accuracy | comparisons | prompts |\n|---|---|---|---|"


def markdown(card: Mapping[str, Any], charts: Collection[str]) -> str:
    """The whole card; ``charts`` are the files beside it."""
    lines = [f"# Report card: {_plain(card['model']['name'])} on {_plain(card['dataset'])}", ""]
    lines += [" ".join(card["verdict"]), ""]
    if card["task"] == "answers":
        lines += [answer_text.facts(card), "", *answer_text.markdown(card, _plain)]
        return "\n".join([*lines, _closing("prompts"), ""])
    if card["task"] == "lm_eval":
        lines += lm_eval_text.markdown(card, _plain)
        return "\n".join([*lines, ""])
    lines += [_facts(card), ""]
    if card["task"] == "comparisons":
        for name, scoring in card["scorings"].items():
            lines += _scoring(name, scoring, card, charts)
        lines += _agreement(card["agreement"])
    else:
        lines += _text(card, charts)
    if "baseline" in card:
        lines += _baseline(card)
    over = "prompts: comparisons of one prompt are not independent"
    lines += [_closing(over if card["task"] == "comparisons" else "rows"), ""]
    return "\n".join(lines)


def _closing(over: str) -> str:
    return (
        f"Brackets are 95 % intervals over {over}. docs/evaluation.md says what every number "
        "means; report_card.json has all of them, scores.jsonl the scores of every row."
    )


def summary(card: Mapping[str, Any]) -> list[str]:
    """What the terminal shows: the verdict, and the numbers that a reader asks for next."""
    rows: list[tuple[str, str, str]] = []
    if card["task"] in ("answers", "lm_eval"):
        if card["task"] == "answers":
            lines = [*card["verdict"], "", answer_text.facts(card)]
            rows = answer_text.summary(card)
        else:
            lines = [*card["verdict"], ""]
            rows = lm_eval_text.summary(card)
        return [*lines, *_aligned(rows)]
    lines = [*card["verdict"], *(f"Rows left out, {text}." for text in _left_out(card["rows"])), ""]
    if card["task"] == "text":
        for one in [{"name": "all rows", **card["text"]}, *card["text"].get("by_source", ())]:
            count = f"{one['loss']['n']:,} rows, {one['tokens']:,} tokens"
            bits = one["bits_per_byte"]
            rows.append((f"{one['name']}: loss, nats per token", interval(one["loss"]), count))
            rows.append(("  perplexity", interval(one["perplexity"], 2), ""))
            rows += [("  bits per byte", interval(bits), "")] if bits else []
            rows.append(("  token accuracy", interval(one["token_accuracy"]), ""))
    else:
        for name, scoring in card["scorings"].items():
            accuracy = scoring["accuracy"]
            rows.append((f"accuracy by {SCORING_NAMES[name]}", *_counted(accuracy["overall"])))
            rows += [(f"  {g['name']}", *_counted(g)) for g in accuracy["by_source"]]
            rows.append((f"margin of the {SCORING_NAMES[name]}", *_counted(scoring["margin"])))
            bench = scoring["rewardbench"] or {"sections": (), "subsets": (), "score": None}
            named = [*bench["sections"], *([] if bench["sections"] else bench["subsets"])]
            rows += [(f"  {g['name']}", *_counted(g)) for g in named]
            if bench["score"] is not None:
                name = "RewardBench 2" if bench["version"] == 2 else "RewardBench"
                rows.append((f"  {name} score", *_counted(bench["score"])))
    return [*lines, *_aligned(rows)]


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    return [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c}".rstrip() for a, b, c in rows]


def _counted(found: Mapping[str, Any]) -> tuple[str, str]:
    count, prompts = _count(found["n"], "comparison"), _count(found["prompts"], "prompt")
    return interval(found), f"{count}, {prompts}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _facts(card: Mapping[str, Any]) -> str:
    model, counts, rows = card["model"], card["counts"], card["rows"]
    parts = [f"{model['parameters']:,} weights"]
    if model.get("members", 1) > 1:
        parts[0] += f" each, {model['members']} members"
    parts.append(f"{rows['read']:,} rows read, {counts['rows']:,} evaluated")
    parts += map(_plain, _left_out(rows))
    if card["task"] == "comparisons":
        parts.append(
            f"{counts['comparisons']:,} comparisons of {counts['responses']:,} answers to "
            f"{counts['prompts']:,} prompts"
        )
        if counts["tied_pairs"]:
            parts.append(f"{counts['tied_pairs']:,} pairs tied or equal, not compared")
    if rows["responses_cut"] or rows["prompts_cut"]:
        cut = _count(rows["responses_cut"], "answer"), _count(rows["prompts_cut"], "prompt")
        parts.append(f"{cut[0]} and {cut[1]} cut at {model['max_length']:,} tokens")
    return "; ".join([*parts, f"seed {card['seed']}"]) + "."


def _left_out(rows: Mapping[str, Any]) -> list[str]:
    """Rows that are not in the numbers, with their reasons."""
    return [
        f"{what}: " + ", ".join(f"{count} x {reason}" for reason, count in found.items())
        for what, found in (("bad", rows["bad"]), ("dropped", rows["dropped"]))
        if found
    ]


def _scoring(
    name: str, scoring: Mapping[str, Any], card: Mapping[str, Any], charts: Collection[str]
) -> list[str]:
    lines = [f"## By {SCORING_NAMES[name]}", ""]
    lines += _accuracy(scoring, f"{name}_accuracy.svg", charts)
    lines += _rewardbench(scoring["rewardbench"])
    lines += _calibration(scoring["calibration"], f"{name}_reliability.svg", charts)
    lines += _length(scoring["length"])
    lines += _scores(scoring, f"{name}_scores.svg", charts)
    lines += _gold(scoring, card, f"{name}_best_of_n.svg", charts)
    return lines


def _accuracy(scoring: Mapping[str, Any], chart: str, charts: Collection[str]) -> list[str]:
    found = scoring["accuracy"]
    lines = ["### Accuracy", "", *_image(chart, "accuracy by group", charts), _TABLE_HEAD]
    lines.append(_row("all comparisons", found["overall"]))
    lines.append(_row("every prompt once", found["per_prompt"], "-"))
    for key, what in (
        ("by_source", "source "),
        ("by_k", "K = "),
        ("by_score_difference", "difference of scores "),
        ("by_data_margin", "margin in the data "),
    ):
        if len(found[key]) > 1:
            lines += [_row(what + group["name"], group) for group in found[key]]
    ties = found["score_ties"]
    notes = [f"Not right: {_count(ties, 'comparison')} with equal scores."] if ties else []
    if not found["by_data_margin"]:
        notes.append("No row has a margin or scores.")
    elif found["without_data_margin"]:
        notes.append(f"{found['without_data_margin']:,} comparisons have no margin in the data.")
    return [*lines, "", *([" ".join(notes), ""] if notes else [])]


def _rewardbench(found: Mapping[str, Any] | None) -> list[str]:
    """Sections and subsets, where rows have them."""
    if found is None:
        return []
    lines = ["### By subset", "", _TABLE_HEAD]
    if found["score"] is not None:
        what = (
            "RewardBench 2 score: mean of the subsets"
            if found["version"] == 2
            else "RewardBench score: mean of the sections"
        )
        lines.append(_row(what, found["score"]))
    for one in found["sections"]:
        partly = f" (without {', '.join(one['missing'])})" if one["missing"] else ""
        lines.append(_row(f"section {one['name']}{partly}", one))
    return [*lines, *(_row(one["name"], one) for one in found["subsets"]), ""]


def _calibration(found: Mapping[str, Any], chart: str, charts: Collection[str]) -> list[str]:
    null = found["ece_if_calibrated"]
    slope = found["slope"]
    return [
        "### Calibration",
        "",
        *_image(chart, "reliability", charts),
        "| | value | a coin | noise alone |",
        "|---|---|---|---|",
        f"| expected calibration error | {interval(found['ece'])} | | {null['mean']:.3f} "
        f"(97.5 %: {null['high']:.3f}) |",
        f"| Brier score | {interval(found['brier'])} | 0.250 | |",
        f"| log loss, nats | {interval(found['log_loss'])} | 0.693 | |",
        f"| best factor of the scores | {interval(slope) if slope else 'not defined'} | | 1 |",
        "",
    ]


def _length(found: Mapping[str, Any]) -> list[str]:
    lines = ["### Length", "", _TABLE_HEAD]
    for side in ("shorter", "longer", "equal"):
        if found[side] is not None:
            text = "both are equally long" if side == "equal" else f"the preferred is the {side}"
            lines.append(_row(text, found[side]))
    lines.append(_row("baseline: the longer wins", found["longer_wins"]))
    lines.append(_row("over that baseline", found["over_longer_wins"]))
    said = interval(found["partial_correlation"], 2)
    return [*lines, "", f"Partial correlation of score and length, given the label: {said}.", ""]


def _scores(scoring: Mapping[str, Any], chart: str, charts: Collection[str]) -> list[str]:
    head = "| | mean | sd | 5 % | median | 95 % |\n|---|---|---|---|---|---|"
    lines = [
        "### Scores",
        "",
        *_image(chart, "scores of preferred and other answers", charts),
        head,
    ]
    for name, found in scoring["scores"].items():
        cells = (signed(found[key]) for key in ("sd", "p05", "p50", "p95"))
        lines.append(f"| {name} | {interval(found['mean'])} | " + " | ".join(cells) + " |")
    margin = scoring["margin"]
    said = f"Mean margin {interval(margin)} over {_count(margin['n'], 'comparison')} of "
    return [*lines, "", said + f"{_count(margin['prompts'], 'prompt')}.", ""]


def _gold(
    scoring: Mapping[str, Any], card: Mapping[str, Any], chart: str, charts: Collection[str]
) -> list[str]:
    gold, best = scoring["gold"], scoring["best_of_n"]
    if best is None:
        return ["### Best of n", "", "No row has gold scores: no best-of-n curve.", ""]
    lines = [f"### Against the gold reward ({card['gold_source']})", ""]
    if gold is not None:
        lines += [
            _TABLE_HEAD,
            _row("higher gold reward scores higher", gold["accuracy"]),
            _row("the data's choice has the higher gold reward", gold["choices_agree"]),
            "",
        ]
    lines += [
        *_image(chart, "best of n", charts),
        "| n | rows | chosen by the model | chosen by gold | mean answer | share of the gain |",
        "|---|---|---|---|---|---|",
    ]
    for point in best["curve"]:
        cells = [interval(point[key]) for key in ("model", "gold", "mean")]
        captured = "-" if point["captured"] is None else interval(point["captured"], 2)
        lines.append(
            f"| {point['n']} | {point['rows']:,} | " + " | ".join([*cells, captured]) + " |"
        )
    return [*lines, ""]


def _agreement(found: Mapping[str, Any]) -> list[str]:
    lines = ["## Agreement of annotators", ""]
    if found.get("unread_rows"):
        lines += [
            f"{found['unread_rows']} rows have votes or annotators in a form that is not read "
            "(docs/evaluation.md).",
            "",
        ]
    if not found["pairs"]:
        return [*lines, found["note"][0].upper() + found["note"][1:] + ".", ""]
    names = {
        "leave_one_out": "an annotator and the majority of the others",
        "pairwise": "two annotators",
        "majority": "an annotator and the majority with their own vote",
        "model": "the model and an annotator",
    }
    lines += [f"{found['pairs']:,} pairs with {found['votes']:,} votes.", ""]
    lines += ["| agreement of | share |", "|---|---|"]
    lines += [f"| {text} | {interval(found[key])} |" for key, text in names.items()]
    return [*lines, ""]


def _text(card: Mapping[str, Any], charts: Collection[str]) -> list[str]:
    head = "| | loss, nats per token | perplexity | bits per byte | token accuracy | tokens |"
    lines = [
        *_image("loss_by_source.svg", "loss by source", charts),
        head,
        "|---|---|---|---|---|---|",
    ]
    every = [{"name": "all rows", **card["text"]}, *card["text"].get("by_source", ())]
    if "baseline" in card:
        every.append({"name": card["baseline"]["model"]["name"], **card["baseline"]["text"]})
    for one in every:
        bits = interval(one["bits_per_byte"]) if one["bits_per_byte"] else "-"
        cells = [interval(one["loss"]), interval(one["perplexity"], 2), bits]
        cells += [interval(one["token_accuracy"]), f"{one['tokens']:,}"]
        lines.append(f"| {_plain(one['name'])} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _baseline(card: Mapping[str, Any]) -> list[str]:
    found = card["baseline"]
    lines = [f"## Against {_plain(found['model']['name'])}", ""]
    if card["task"] == "text":
        names = {"loss": "loss, nats per token", "bits_per_byte": "bits per byte",
                 "token_accuracy": "token accuracy"}  # fmt: skip
        lines += [f"On {found['rows']:,} rows that both read.", ""]
        lines += ["| | difference |", "|---|---|"]
        lines += [
            f"| {text} | {interval(found['difference'][key], sign=True)} |"
            for key, text in names.items()
            if key in found["difference"]
        ]
        return [*lines, ""]
    lines += ["| scored by | baseline by | baseline's accuracy | difference | only this one right "
              "| only the baseline right |", "|---|---|---|---|---|---|"]  # fmt: skip
    for one in found["differences"]:
        cells = [SCORING_NAMES[one["scoring"]], SCORING_NAMES[one["baseline_scoring"]]]
        cells += [interval(one["accuracy"]), interval(one["difference"], sign=True)]
        cells += [str(one["only_model"]), str(one["only_baseline"])]
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _row(name: str, found: Mapping[str, Any], n: str | None = None) -> str:
    count = f"{found['n']:,}" if n is None else n
    return f"| {_plain(name)} | {interval(found)} | {count} | {found['prompts']:,} |"


def _image(name: str, text: str, charts: Collection[str]) -> Sequence[str]:
    return (f"![{text}]({name})", "") if name in charts else ()


def _plain(text: str) -> str:
    """Text of a user in a line of Markdown, table cells included."""
    shown = " ".join(str(text).split())
    for mark in ("\\", "|", "*", "_", "`", "<", "[", "]"):
        shown = shown.replace(mark, "\\" + mark)
    return shown
