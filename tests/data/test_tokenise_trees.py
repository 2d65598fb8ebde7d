"""Truncation, comparisons, windows and grouping, on ids alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.data.chat_template import RowProblem
from trimtab.data.tokenise_trees import (
    NO_ROOM,
    NOTHING,
    NOTHING_LEFT,
    SAME,
    SAME_TRUNCATED,
    Draft,
    Limits,
    Planted,
    compare_by_rank,
    group_by_prompt,
    plant,
    ranks_of,
    windows,
)
from trimtab.data.trees import Branch, Comparison, Origin, TokenTree

ORIGIN = Origin("rows.jsonl", 7)
BOS = 1
NO_LIMIT = Limits(None, None, "keep_end", BOS)


def pair(prompt: list[int], chosen: list[int], rejected: list[int], **more: object) -> Draft:
    branches = [(ids, [True] * len(ids)) for ids in (chosen, rejected)]
    return Draft(ORIGIN, prompt, branches, comparisons=[Comparison(0, 1)], **more)  # type: ignore


def reason(draft: Draft, limits: Limits) -> str:
    with pytest.raises(RowProblem) as problem:
        plant(draft, limits)
    return problem.value.reason


GOLDEN = [
    # max_length, max_prompt_length, mode, trunk, chosen, rejected, cut prompt, cut branches
    (None, None, "keep_end", [1, 2, 3, 4], [5, 6, 7], [8, 9], False, 0),
    (7, None, "keep_end", [1, 2, 3, 4], [5, 6, 7], [8, 9], False, 0),
    (6, None, "keep_end", [1, 2, 3, 4], [5, 6], [8, 9], False, 1),
    (5, None, "keep_end", [1, 2, 3, 4], [5], [8], False, 2),
    (None, 3, "keep_end", [1, 3, 4], [5, 6, 7], [8, 9], True, 0),
    (None, 3, "keep_start", [1, 2, 3], [5, 6, 7], [8, 9], True, 0),
    (None, 1, "keep_end", [1], [5, 6, 7], [8, 9], True, 0),
    (4, 2, "keep_end", [1, 4], [5, 6], [8, 9], True, 1),
    (4, 2, "keep_start", [1, 2], [5, 6], [8, 9], True, 1),
]


@pytest.mark.parametrize(("most", "prompt_most", "mode", "trunk", "w", "l", "cut", "cuts"), GOLDEN)
def test_truncation_golden(most, prompt_most, mode, trunk, w, l, cut, cuts) -> None:  # noqa: E741
    """The prompt first, by its mode (BOS stays at the front), then responses from the right."""
    planted = plant(pair([1, 2, 3, 4], [5, 6, 7], [8, 9]), Limits(most, prompt_most, mode, BOS))
    assert list(planted.tree.trunk.ids) == trunk
    assert [list(branch.ids) for branch in planted.tree.branches] == [w, l]
    assert (planted.prompt_cut, planted.branches_cut) == (cut, cuts)


def test_without_bos_the_prompt_keeps_its_last_tokens() -> None:
    planted = plant(pair([2, 3, 4], [5], [6]), Limits(None, 2, "keep_end", BOS))
    assert planted.tree.trunk.ids == (3, 4)


def test_a_prompt_that_leaves_no_room_is_named_and_never_cut_silently() -> None:
    draft = pair([1, 2, 3, 4], [5], [6])
    assert reason(draft, Limits(4, None, "keep_end", BOS)) == NO_ROOM
    assert reason(draft, Limits(3, None, "keep_end", BOS)) == NO_ROOM
    with pytest.raises(RowProblem, match="4 tokens, max_length 3"):
        plant(draft, Limits(3, None, "keep_end", BOS))


def test_pairs_that_become_the_same_are_dropped() -> None:
    draft = pair([1], [5, 6, 7], [5, 6, 8])
    assert reason(draft, Limits(3, None, "keep_end", BOS)) == SAME_TRUNCATED
    assert plant(draft, Limits(4, None, "keep_end", BOS)).tree.comparisons == (Comparison(0, 1),)
    assert reason(pair([1], [5], [5]), NO_LIMIT) == SAME


def test_a_branch_whose_trained_tokens_are_cut_off_is_dropped() -> None:
    draft = Draft(ORIGIN, [1], [([2, 3, 4], [False, False, True])])
    assert reason(draft, Limits(3, None, "keep_end", BOS)) == NOTHING_LEFT
    assert plant(draft, Limits(4, None, "keep_end", BOS)).tree.trained_count == 1
    assert reason(Draft(ORIGIN, [1], [([], [])]), NO_LIMIT) == NOTHING


def test_a_first_token_without_anything_before_it_is_unscored() -> None:
    planted = plant(pair([], [5, 6], [7, 8]), NO_LIMIT)
    assert [branch.trained for branch in planted.tree.branches] == [(False, True), (False, True)]
    assert planted.unscored == 2
    assert reason(pair([], [5], [7]), NO_LIMIT) == NOTHING


def test_a_trained_trunk_trains_all_but_its_first_token() -> None:
    tree = plant(pair([1, 2, 3], [5], [6], train_trunk=True), NO_LIMIT).tree
    assert tree.trunk.trained == (False, True, True)
    assert plant(pair([1, 2, 3], [5], [6]), NO_LIMIT).tree.trunk.trained == (False,) * 3


def test_truncation_over_all_small_lengths() -> None:
    """No negative slice, no NaN row: kept ids are what the limits say, or the row is dropped."""
    lengths, limits = range(0, 9), [None, *range(1, 14)]
    for p, w, l in itertools.product(lengths, lengths, lengths):  # noqa: E741
        prompt = list(range(100, 100 + p))
        draft = pair(prompt, list(range(200, 200 + w)), list(range(300, 300 + l)))
        for most, prompt_most, mode in itertools.product(
            limits, [None, 1, 3, 5], ("keep_end", "keep_start")
        ):
            check_truncation(draft, Limits(most, prompt_most, mode, BOS), (p, w, l))


@given(
    st.tuples(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40)),
    st.none() | st.integers(1, 90),
    st.none() | st.integers(1, 45),
    st.sampled_from(["keep_end", "keep_start"]),
)
def test_truncation_property(sizes, most, prompt_most, mode) -> None:
    p, w, l = sizes  # noqa: E741
    draft = pair(list(range(100, 100 + p)), list(range(200, 200 + w)), list(range(300, 300 + l)))
    check_truncation(draft, Limits(most, prompt_most, mode, BOS), sizes)


def check_truncation(
    draft: Draft,
    limits: Limits,
    sizes: tuple[int, int, int],
    plant: Callable[[Draft, Limits], Planted] = plant,
) -> None:
    p, w, l = sizes  # noqa: E741
    kept_prompt = p if limits.max_prompt_length is None else min(p, limits.max_prompt_length)
    room = 10**9 if limits.max_length is None else limits.max_length - kept_prompt
    kept = [min(w, room), min(l, room)]
    least = 1 if kept_prompt else 2  # without a prompt the first token cannot be trained
    try:
        tree = plant(draft, limits).tree
    except RowProblem:
        assert room < 1 or min(kept) < least
        return
    assert len(tree.trunk.ids) == kept_prompt
    assert [len(branch.ids) for branch in tree.branches] == kept
    assert all(branch.trained_count == n - (least - 1) for branch, n in zip(
        tree.branches, kept, strict=True))  # fmt: skip
    assert limits.max_length is None or tree.depth <= limits.max_length
    assert [b.ids[0] for b in tree.branches] == [200, 300], "responses keep their start"
    if kept_prompt:
        end = limits.truncation_mode == "keep_end"
        assert tree.trunk.ids[-1 if end else 0] == (100 + p - 1 if end else 100)


def small_checks(wrong: Callable[[Draft, Limits], Planted]) -> None:
    for p, w, most, prompt_most in itertools.product((0, 2, 4), (1, 3), (None, 3, 5), (None, 2)):
        draft = pair(list(range(100, 100 + p)), list(range(200, 200 + w)), [300, 301])
        for mode in ("keep_end", "keep_start"):
            check_truncation(draft, Limits(most, prompt_most, mode, BOS), (p, w, 2), wrong)


def negative_slice(draft: Draft, limits: Limits) -> Planted:
    """CPO's in TRL: ids[:max_length - longer prompt] keeps all but the last ones (T#6548)."""
    room = None if limits.max_length is None else limits.max_length - len(draft.prompt)
    branches = [(ids[:room], trained[:room]) for ids, trained in draft.branches]
    return plant(dataclasses.replace(draft, branches=branches), limits._replace(max_length=None))


def ignored_mode(draft: Draft, limits: Limits) -> Planted:
    return plant(draft, limits._replace(truncation_mode="keep_end"))


def ignored_prompt_length(draft: Draft, limits: Limits) -> Planted:
    return plant(draft, limits._replace(max_prompt_length=None))


@pytest.mark.parametrize("wrong", [negative_slice, ignored_mode, ignored_prompt_length])
def test_truncation_checks_reject(wrong: Callable[[Draft, Limits], Planted]) -> None:
    small_checks(plant)
    with pytest.raises((AssertionError, RowProblem)):
        small_checks(wrong)


def test_ranks_and_their_comparisons() -> None:
    assert ranks_of([0.5, 2.0, 0.5, -1.0]) == (2.0, 1.0, 2.0, 4.0)
    found = compare_by_rank((2.0, 1.0, 2.0, 4.0), 0.5)
    assert {(c.winner, c.loser) for c in found} == {(1, 0), (1, 2), (1, 3), (0, 3), (2, 3)}
    assert all(c.weight == 0.5 and c.margin == 0.0 for c in found)
    assert len(compare_by_rank((1.0, 2.0, 3.0, 4.0, 5.0), 1.0)) == 10, "C(5, 2)"


# Windows of documents


def trees_of(context: list[int], count: int, length: int, stride: int | None) -> list[TokenTree]:
    ids = list(range(100, 100 + count))
    return [p.tree for p in windows(context, ids, length, stride, ORIGIN)]


@pytest.mark.parametrize("stride", [None, 1, 2, 3, 5])
@pytest.mark.parametrize("count", range(1, 24))
def test_every_token_is_trained_exactly_once(count: int, stride: int | None) -> None:
    trees = trees_of([0], count, 5, stride)
    trained = [
        token
        for tree in trees
        for branch in tree.branches
        for token, on in zip(branch.ids, branch.trained, strict=True)
        if on
    ]
    assert trained == list(range(100, 100 + count))
    assert all(tree.trunk.trained_count == 0 and tree.trunk.ids for tree in trees)
    assert all(tree.depth <= 6 for tree in trees), "k tokens and the one before them"
    for part, tree in enumerate(trees):
        assert tree.origin == Origin("rows.jsonl", 7, part)
        whole = list(tree.trunk.ids + tree.branches[0].ids)
        document = [0, *range(100, 100 + count)]
        assert whole == document[document.index(whole[0]) :][: len(whole)], "no gap"


def test_windows_without_stride_begin_behind_one_token() -> None:
    trees = trees_of([0], 7, 3, None)
    assert [tree.trunk.ids for tree in trees] == [(0,), (102,), (105,)]
    assert [tree.branches[0].ids for tree in trees] == [(100, 101, 102), (103, 104, 105), (106,)]


def test_windows_with_stride_show_as_much_as_fits() -> None:
    trees = trees_of([0], 8, 4, 2)
    shown = [(tree.trunk.ids, tree.branches[0].ids) for tree in trees]
    assert shown == [
        ((0,), (100, 101, 102, 103)),
        ((101, 102, 103), (104, 105)),
        ((103, 104, 105), (106, 107)),
    ]


def test_without_a_separator_the_first_token_is_unscored_and_counted() -> None:
    planted = list(windows([], [100, 101, 102], 2, None, ORIGIN))
    assert [p.tree.trunk.ids for p in planted] == [(100,)]
    assert [p.unscored for p in planted] == [1]
    with pytest.raises(RowProblem):
        list(windows([], [100], 2, None, ORIGIN))


def test_overlapping_windows_would_train_tokens_twice() -> None:
    """The wrong variant: every token of every window trained."""
    trees = trees_of([0], 8, 4, 2)
    wrong = sum(len(tree.trunk.ids) - 1 + len(tree.branches[0].ids) for tree in trees)
    assert wrong > 8 == sum(tree.trained_count for tree in trees)


# Grouping


def tree(prompt: list[int], answers: list[int], row: int, **more: object) -> TokenTree:
    branches = tuple(Branch((a,), (True,)) for a in answers)
    trunk = Branch(tuple(prompt), (False,) * len(prompt))
    return TokenTree(trunk, branches, (Comparison(0, 1),), Origin("f", row), **more)  # type: ignore


def test_rows_with_one_prompt_become_one_tree() -> None:
    """A response in several pairs is one branch: InstructGPT's K responses are one element."""
    rows = [tree([1], [5, 6], 1), tree([2], [5, 6], 2), tree([1], [6, 7], 3), tree([1], [5, 7], 4)]
    grouped = group_by_prompt(rows)
    assert [g.origin.row for g in grouped] == [1, 2]
    assert [b.ids for b in grouped[0].branches] == [(5,), (6,), (7,)]
    found = [(c.winner, c.loser) for c in grouped[0].comparisons]
    assert found == [(0, 1), (1, 2), (0, 2)]
    assert grouped[1] == rows[1], "a prompt of its own stays as it is"


def test_rows_whose_responses_are_weighed_are_joined_only_at_one_weight() -> None:
    """A comparison brings its weight along; a label or a score has but that of its tree."""
    rows = [tree([1], [5, 6], row, weight=weight) for row, weight in ((1, 1.0), (2, 2.0), (3, 1.0))]
    assert len(group_by_prompt(rows)) == 1
    assert [one.weight for one in group_by_prompt(rows, by_weight=True)] == [1.0, 2.0]
    for value in ({"labels": (True, False)}, {"scores": (2.0, 1.0)}):
        grouped = group_by_prompt([row._replace(**value) for row in rows])
        assert [(one.origin.row, one.weight) for one in grouped] == [(1, 1.0), (2, 2.0)]


def test_grouping_keeps_values_only_where_all_rows_agree() -> None:
    one = tree([1], [5, 6], 1, scores=(2.0, 1.0), labels=(True, False), ranks=(1.0, 2.0))
    two = tree([1], [7, 6], 2, scores=(3.0, 1.0), labels=(True, False), ranks=(1.0, 2.0))
    (merged,) = group_by_prompt([one, two])
    assert merged.scores == (2.0, 1.0, 3.0)
    assert merged.ranks == (2.0, 3.0, 1.0), "by score: the rows' own ranks say nothing together"
    assert merged.labels == (True, False, True) and merged.classes == ()
    classed = [one._replace(classes=(4, 2)), two._replace(classes=(3, 2))]
    assert group_by_prompt(classed)[0].classes == (4, 2, 3)
    torn = [classed[0], two._replace(classes=(3, 0))]
    assert group_by_prompt(torn)[0].classes == ()
    (merged,) = group_by_prompt([one, two._replace(scores=(3.0, 1.5), labels=())])
    assert merged.scores == () and merged.ranks == () and merged.labels == ()
