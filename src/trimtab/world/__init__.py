"""The demo world: a small language of stories told on request, with a known gold reward.

    lexicon     words, sentences, tones
    grammar     requests, and stories with chosen faults
    gold        the gold reward, computed from the texts
    annotators  Bradley-Terry and Plackett-Luce preferences over the gold reward
    corpus      rows for every stage, training and held out

Standard library only. ``python -m trimtab.world`` prints the figures of docs/world.md;
``python -m trimtab.world --write FOLDER`` writes the rows as JSONL files.
"""

from __future__ import annotations

from trimtab.world.annotators import prefer, preference_probability, rank_stories
from trimtab.world.corpus import (
    held_out_requests,
    ideal_story,
    kwise_rows,
    preference_rows,
    pretrain_documents,
    sft_rows,
    train_requests,
    write_jsonl,
    write_world,
)
from trimtab.world.gold import CEILING, FLOOR, WEIGHTS, GoldScore, gold_reward
from trimtab.world.grammar import (
    CARELESS,
    IDEAL,
    ORDINARY,
    Quality,
    Request,
    Teller,
    draw_request,
    parse_request,
    tell,
)

__all__ = [
    "CARELESS",
    "CEILING",
    "FLOOR",
    "IDEAL",
    "ORDINARY",
    "WEIGHTS",
    "GoldScore",
    "Quality",
    "Request",
    "Teller",
    "draw_request",
    "gold_reward",
    "held_out_requests",
    "ideal_story",
    "kwise_rows",
    "parse_request",
    "prefer",
    "preference_probability",
    "preference_rows",
    "pretrain_documents",
    "rank_stories",
    "sft_rows",
    "tell",
    "train_requests",
    "write_jsonl",
    "write_world",
]
