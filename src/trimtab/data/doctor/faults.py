"""The table of faults: what each is called, how bad it is, what it means and what to do.

Plain data, for the checks, the report, docs/data.md and ``trimtab explain``; nothing is imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "note"]
Needs = Literal["rows", "held-out", "model"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")  # worst first


@dataclass(frozen=True)
class Fault:
    """One kind of finding.

    name      stable, in kebab case
    severity  error: a row is wrong, unusable or leaks; warning: it probably does harm; note: good
              to know
    meaning   one sentence: what was found
    remedy    one sentence: what to do
    needs     what has to be given beside the rows
    covers    faults that the same rows show for this very reason: there they are not named again
    """

    name: str
    severity: Severity
    meaning: str
    remedy: str
    needs: Needs = "rows"
    covers: tuple[str, ...] = ()


FAULTS: tuple[Fault, ...] = (
    # ---- rows that cannot be used
    Fault(
        "malformed-row",
        "error",
        "the row cannot be read, or lacks a field, or has a value that the field cannot hold",
        "mend the field that is named, or remove the row",
    ),
    Fault(
        "empty-text",
        "error",
        "a prompt, a response or a text is empty or blank",
        "remove the row, or fetch the text again",
    ),
    Fault(
        "identical-pair",
        "error",
        "chosen and rejected (or all responses of a ranking) are the same text, so that nothing is "
        "preferred to anything",
        "remove the row, or fetch the response that was overwritten",
    ),
    Fault(
        "prompt-mismatch",
        "error",
        "chosen and rejected answer different prompts, or another prompt than the row's own",
        "join the responses to their prompt again; usually one column is shifted by a row",
    ),
    Fault(
        "no-shared-prompt",
        "error",
        "the row has no prompt, and chosen and rejected have no start in common that could be it",
        "give the prompt in a column of its own",
    ),
    Fault(
        "not-finite",
        "error",
        "a score, rank, weight or margin is NaN or infinite",
        "score the row again, or remove it",
    ),
    Fault(
        "all-tied",
        "warning",
        "all responses of the row have one rank or score, so that there is nothing to compare",
        "remove the row; if most rows are tied, use finer scores",
    ),
    # ---- what is preferred
    Fault(
        "contradictory-pair",
        "error",
        "one row prefers A to B, and another B to A, after the same prompt: swapped columns, or "
        "annotators who disagree",
        "keep the row that is right; of several annotators keep the majority",
    ),
    Fault(
        "preference-cycle",
        "warning",
        "rows of one prompt prefer A to B, B to C and C to A: no order agrees with all of them",
        "look at the least certain of these rows; --loss robust or cdpo with loss.epsilon near "
        "the estimated noise allows for the rest",
    ),
    Fault(
        "outranks-itself",
        "error",
        "a response stands twice in the row, with different ranks",
        "keep one of the two",
    ),
    Fault(
        "ranks-turned-round",
        "error",
        "most responses of the file with a better rank have the lower score; it is not trained on",
        "turn one of the two columns round, or remove it: 1 is the best rank, a higher score is "
        "better",
        covers=("order-against-scores",),
    ),
    Fault(
        "order-against-scores",
        "warning",
        "the row's scores or margin say the opposite of the order that is trained",
        "where the scores are right, swap chosen and rejected; for ranks, 1 is the best",
    ),
    Fault(
        "conflicting-labels",
        "error",
        "the same text has different labels in different rows",
        "keep the label that is right; of several annotators keep the majority",
    ),
    Fault(
        "single-label",
        "error",
        "all rows have the same label, so that there is nothing to tell apart",
        "add rows with the other labels; a sorted file may have been cut off",
    ),
    Fault(
        "length-bias",
        "warning",
        "length alone tells which response was preferred, far more often than by chance",
        "balance the pairs, or use a loss that normalises by length (simpo, ld_dpo)",
    ),
    Fault(
        "repeated-response",
        "note",
        "a response stands several times in the row, with one rank",
        "keep one of them, unless they are samples that are to be counted",
    ),
    Fault(
        "nearly-identical-pair",
        "note",
        "chosen and rejected differ in spaces or case alone",
        "make sure that this is what the row is to teach",
    ),
    # ---- the same row again
    Fault(
        "duplicate-row",
        "warning",
        "the row is the same as an earlier one, which then counts twice",
        "remove the copy; to count a row twice give it weight 2",
    ),
    Fault(
        "near-duplicate-row",
        "note",
        "the row differs from an earlier one in spaces or case alone",
        "remove the copy, unless the difference matters",
    ),
    Fault(
        "held-out-row",
        "error",
        "the row is among the held-out rows, but for spaces and case: what is measured on them was "
        "trained on",
        "remove it from one of the two",
        needs="held-out",
        covers=("held-out-prompt",),
    ),
    Fault(
        "held-out-prompt",
        "warning",
        "the prompt is among the held-out ones, but for spaces and case, with other responses",
        "split by prompt rather than by row",
        needs="held-out",
    ),
    # ---- templates
    Fault(
        "template-marker",
        "warning",
        "the text contains special tokens or a chat template's markers, such as <|im_start|> or "
        "[INST]",
        "give the turns as messages, without markers: the template writes its own",
    ),
    Fault(
        "speaker-label",
        "warning",
        "what the assistant says contains the start of another turn, such as Human: or Assistant:",
        "cut the text into messages, or cut the response where the next turn begins",
    ),
    Fault(
        "roles-out-of-order",
        "warning",
        "the turns of the conversation do not alternate, do not begin with the user (behind an "
        "optional system message), or the prompt does not end before an answer",
        "join the turns of one speaker, and begin with the user",
    ),
    Fault(
        "prompt-repeated",
        "warning",
        "the responses begin with the whole prompt, which the model would then see twice",
        "remove the prompt from the responses, or leave the prompt column out",
    ),
    # ---- with a tokenizer
    Fault(
        "control-token",
        "error",
        "the text spells out a special token of this model, which becomes the token itself",
        "remove it: the template and the end of a response are written by trimtab",
        needs="model",
        covers=("template-marker",),
    ),
    Fault(
        "doubled-bos",
        "error",
        "the row begins with two BOS tokens",
        "remove the one in the text, or the one in the chat template",
        needs="model",
        covers=("control-token", "template-marker"),
    ),
    Fault(
        "doubled-end",
        "error",
        "a response ends in two stop tokens",
        "remove the one in the text: the end is written by trimtab",
        needs="model",
        covers=("control-token", "template-marker"),
    ),
    Fault(
        "missing-end",
        "error",
        "a response does not end in a stop token, so that the model never learns to stop",
        "set eos_token in tokenizer_config.json, or let the chat template end its turns",
        needs="model",
    ),
    Fault(
        "template-unusable",
        "error",
        "the tokenizer's chat template cannot render the rows, or refuses this conversation",
        "see the detail: another template, or another order of turns",
        needs="model",
    ),
    Fault(
        "prompt-token-mismatch",
        "error",
        "the chat template renders the prompt differently for each response",
        "give the responses alike: all with reasoning or tools, or none",
        needs="model",
    ),
    Fault(
        "identical-tokens",
        "error",
        "the responses differ as text, but not as the model's tokens",
        "remove the row: the tokenizer or template strips what tells them apart",
        needs="model",
    ),
    Fault(
        "identical-when-cut",
        "warning",
        "cut to max_length, chosen and rejected are the same, and the row is dropped",
        "raise max_length, or remove the row",
        needs="model",
    ),
    Fault(
        "prompt-too-long",
        "warning",
        "the prompt leaves no room for a response within max_length, and the row is dropped",
        "raise max_length, or set max_prompt_length",
        needs="model",
    ),
    Fault(
        "response-cut",
        "note",
        "a response is cut off at max_length: its end is not trained",
        "raise max_length, or leave the row out",
        needs="model",
    ),
)

BY_NAME: dict[str, Fault] = {fault.name: fault for fault in FAULTS}
