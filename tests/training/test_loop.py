"""The loop: the finite check, skipping, resuming bit by bit, the order of events."""

import json

import pytest
import torch
from tests.algorithms.support import Silent, make_stage, policy, settings, stream, text_trees

from trimtab.algorithms.language_model import LanguageModelling
from trimtab.errors import NumericError
from trimtab.training.algorithm import Outcome
from trimtab.training.loop import Loop, dump_micro


def weights(loop: Loop) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in loop.masters}


def poison(stage, step: int, what: str) -> None:
    """Make step ``step`` of a stage non-finite, in its loss or in its gradient alone."""
    micros, terms = stage.micros, stage.terms
    now = [0]

    def counted(s: int):
        now[0] = s
        return micros(s)

    def poisoned(micro) -> Outcome:
        outcome = terms(micro)
        if now[0] != step:
            return outcome
        bad = torch.tensor(float("nan"), dtype=torch.float64)
        if what == "gradient":  # finite value, infinite slope
            parameter = next(stage.model.parameters())
            root = (parameter.sum() * 0).abs().sqrt()
            return outcome._replace(
                terms=[outcome.terms[0]._replace(sum=outcome.terms[0].sum + root)]
            )
        return outcome._replace(terms=[outcome.terms[0]._replace(sum=outcome.terms[0].sum + bad)])

    stage.micros, stage.terms = counted, poisoned


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nonfinite_never_reaches_the_weights(what: str) -> None:
    stage = make_stage("sft", per_step=4, budget=60, steps=3)
    poison(stage, 1, what)
    loop = Loop(stage, settings(), Silent())
    loop.train_step()
    before = weights(loop)
    with pytest.raises(NumericError, match=r"step 2: .*text:\d+ written to dump-1.json"):
        loop.train_step()
    assert all(torch.equal(before[k], v) for k, v in weights(loop).items())


def test_skip_counts_and_then_stops() -> None:
    stage = make_stage("sft", per_step=4, budget=60, steps=6)
    hooks = Silent()
    poison(stage, 1, "loss")
    loop = Loop(stage, settings(on_nonfinite="skip", max_skipped_steps=1), hooks)
    assert loop.run()
    assert loop.state.skipped_steps == 1 and loop.state.step == 6
    assert hooks.records[-1]["skipped_steps"] == 1

    stage = make_stage("sft", per_step=4, budget=60, steps=6)
    poison(stage, 1, "loss")
    loop = Loop(stage, settings(on_nonfinite="skip", max_skipped_steps=0), Silent())
    with pytest.raises(NumericError, match="max_skipped_steps=0"):
        loop.run()


def without_the_check(loop: Loop) -> None:
    """The wrong variant: the update happens whatever the loss was."""
    loop._refuse = lambda step, micro: loop._update(step, torch.tensor(1.0))  # type: ignore[method-assign]


def test_the_check_is_what_saves_the_weights() -> None:
    stage = make_stage("sft", per_step=4, budget=10_000, steps=2)
    poison(stage, 0, "gradient")
    loop = Loop(stage, settings(), Silent())
    without_the_check(loop)
    loop.train_step()
    assert any(not v.isfinite().all() for v in weights(loop).values())


@pytest.mark.parametrize("kind", ["sft+mix", "beta_dpo", "kto"])
def test_restore_continues_with_the_same_bits(kind: str) -> None:
    def fresh() -> tuple[Loop, Silent]:
        hooks = Silent()
        stage = make_stage(kind, per_step=3, budget=60, steps=4)
        return Loop(stage, settings(logging_steps=3), hooks), hooks

    whole, whole_hooks = fresh()
    whole.run()
    first, first_hooks = fresh()
    for _ in range(2):
        first.train_step()
    state, tensors = first.checkpoint()
    state = json.loads(json.dumps(state))  # as a checkpoint would hold it
    tensors = {k: {n: t.clone() for n, t in v.items()} for k, v in tensors.items()}
    second, second_hooks = fresh()
    second.restore(state, tensors)
    second.run()
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(second)[name]), name

    def plain(records):
        return [{k: v for k, v in r.items() if not k.startswith("time/")} for r in records]

    assert plain(first_hooks.records + second_hooks.records) == plain(whole_hooks.records)


def test_forgetting_the_algorithm_state_is_noticed() -> None:
    """The wrong variant of the resume: beta-DPO's running mean starts again."""
    stage = make_stage("beta_dpo", per_step=4, budget=60, steps=4)
    loop = Loop(stage, settings(), Silent())
    loop.train_step()
    loop.train_step()
    kept = stage.state_dict()
    other = make_stage("beta_dpo", per_step=4, budget=60, steps=4)
    other.prepare(2, other.micros(2))
    stage.prepare(2, stage.micros(2))
    assert stage.state_dict() != other.state_dict() and kept != stage.state_dict()


def test_events_of_a_step_come_in_order() -> None:
    events: list[str] = []

    class Noting(Silent):
        def log(self, step, record):
            events.append(f"{'eval' if 'eval_loss' in record else 'log'}{step}")

        def sample(self, step):
            events.append(f"sample{step}")

        def save(self, step):
            events.append(f"save{step}")

    trees = text_trees(8)
    stage = LanguageModelling(policy(), stream(trees, 4), total_steps=2, held_out=stream(trees, 1))
    chosen = settings(eval_on_start=True, sample_steps=1, save_steps=1, eval_steps=1)
    Loop(stage, chosen, Noting()).run()
    assert events == [
        "eval0", "sample0",
        "log1", "eval1", "sample1", "save1",
        "log2", "eval2", "sample2", "save2",
    ]  # fmt: skip


def test_stopping_saves_where_it_stands() -> None:
    stage = make_stage("sft", per_step=4, budget=60, steps=6)
    hooks = Silent()
    loop = Loop(stage, settings(save_steps=5), hooks)
    assert not loop.run(should_stop=lambda: loop.state.step == 2)
    assert hooks.saved == [2]


def test_dump_holds_the_trees(tmp_path) -> None:
    stage = make_stage("sft", per_step=4, budget=10_000)
    micro = stage.micros(0)[0]
    found = json.loads(dump_micro(tmp_path / "a" / "b.json", 7, micro).read_text())
    assert found["step"] == 7 and len(found["trees"]) == 4
    assert found["trees"][0]["trunk"][0] == list(micro.batch.trees[0].trunk.ids)
