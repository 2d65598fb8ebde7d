from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_runs import answers, pairs, save_tiny_model, texts, write_rows

RECIPE = """\
model_name_or_path: {inputs}/model
preferences: {inputs}/pairs.jsonl
prompts: {inputs}/prompts.jsonl
reward_funcs: {inputs}/judges.py:proxy
judge: {{reward_funcs: {inputs}/judges.py:gold}}
eval_prompts: {inputs}/answers.jsonl
eval_text: {inputs}/texts.jsonl
max_completion_length: 6
budget: {{unit: preferences, amount: 8}}
seeds: [0]
checkpoints: 2
kl_levels: [0.001]
common: {{learning_rate: 1e-2}}
offline: {{per_device_train_batch_size: 4}}
methods:
  dpo:
    verb: dpo
    grid: {{beta: [0.1, 1]}}
  grpo:
    verb: grpo
    per_device_train_batch_size: 4
    num_generations: 2
  best of n:
    best_of_n: {{n: [1, 2]}}
output_dir: {out}
"""

JUDGES = """\
def gold(completions, **columns):
    return [text.count("cat") - 0.1 * len(text) for text in completions]


def proxy(completions, **columns):
    return [float(text.count("c")) for text in completions]
"""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, rows, and reward functions."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "model")
    write_rows(folder / "pairs.jsonl", pairs(16))
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"]} for row in answers(16, 8)])
    write_rows(folder / "answers.jsonl", answers(8))
    write_rows(folder / "texts.jsonl", texts(4))
    (folder / "judges.py").write_text(JUDGES)
    return folder


@pytest.fixture
def recipe(inputs: Path, tmp_path: Path) -> Path:
    """A recipe of three methods, to be run into ``tmp_path/out``."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(inputs=inputs, out=tmp_path / "out"))
    return path
