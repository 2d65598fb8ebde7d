"""What ``trimtab score --keep`` writes of a row of responses: the best ones, or a pair.

    keep    rows written                                   read by
    best    prompt, completion, score: one a response      trimtab sft (rejection sampling, RAFT)
    pair    prompt, chosen, rejected, and their scores     trimtab dpo and its family

The row's other columns stay. A response that was cut off (``ended`` is false) is no candidate: sft
and dpo end every response with a stop token, and would teach to stop where nothing was over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from trimtab.data.quarantine import BadRow
from trimtab.data.rows import Text

Keep = Literal["all", "best", "pair"]
NEXT: Mapping[Keep, str] = {"best": "sft", "pair": "dpo"}
_GONE = ("prompt", "responses", "ended", "scores", "ranks", "score_std")


@dataclasses.dataclass(frozen=True)
class Keeping:
    """Which responses of a row are written.

    top    best responses of a row, at most (best)
    least  lowest score of a response that is kept, or chosen in a pair
    cut    responses that were cut off are candidates, too; ``ended`` is then written
    """

    keep: Keep = "all"
    top: int = 1
    least: float | None = None
    cut: bool = False

    def rows(
        self, row: Mapping[str, Any], texts: Sequence[Text], scores: Sequence[float]
    ) -> list[dict[str, Any]]:
        """The rows to write for one row of responses; raises BadRow where there is none.

        Of equal responses only the first is a candidate, and of equal scores the first wins.
        """
        ended = _ended(row, len(texts))
        candidates: list[int] = []
        for i, text in enumerate(texts):
            if (self.cut or ended[i]) and all(text != texts[j] for j in candidates):
                candidates.append(i)
        if not candidates:
            raise BadRow("", "all responses were cut off")
        order = sorted(candidates, key=lambda i: -scores[i])
        more = {name: value for name, value in row.items() if name not in _GONE}
        if self.keep == "pair":
            return [self._pair(row, texts, scores, order) | more]
        good = [i for i in order if self.least is None or scores[i] >= self.least][: self.top]
        if not good:
            raise BadRow(
                "", "no response reaches min_score", f"the best has {scores[order[0]]:.4g}"
            )
        return [
            {
                "prompt": row["prompt"],
                "completion": texts[i],
                "score": scores[i],
                **({"ended": ended[i]} if self.cut else {}),
                **more,
            }
            for i in good
        ]

    def _pair(
        self,
        row: Mapping[str, Any],
        texts: Sequence[Text],
        scores: Sequence[float],
        order: Sequence[int],
    ) -> dict[str, Any]:
        best, worst = order[0], order[-1]
        if scores[best] <= scores[worst]:
            raise BadRow("", "no response is ranked above another")
        if self.least is not None and scores[best] < self.least:
            raise BadRow("", "no response reaches min_score", f"the best has {scores[best]:.4g}")
        return {
            "prompt": row["prompt"],
            "chosen": texts[best],
            "rejected": texts[worst],
            "chosen_score": scores[best],
            "rejected_score": scores[worst],
            "margin": round(scores[best] - scores[worst], 9),
        }


def _ended(row: Mapping[str, Any], count: int) -> list[bool]:
    """Whether each response ended by itself; rows that do not say it count as ended."""
    given = row.get("ended")
    if given is None:
        return [True] * count
    if not isinstance(given, list) or len(given) != count:
        raise BadRow("ended", "not one value a response")
    return [bool(value) for value in given]
