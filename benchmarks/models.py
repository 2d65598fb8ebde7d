"""The models that are benchmarked, as folders that both sides load. Some are made here, from seeds.

python -m benchmarks.models --data FOLDER     make what is missing
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import INPUTS, pinned, read

ROOT = Path(__file__).parents[1]

# ChatML without the line break that usually follows an answer: libraries differ in whether they
# train on it, and here both sides shall train on the same tokens.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ModelMissing(Exception):
    """A model that has to be made by something else first."""


def described() -> dict[str, Any]:
    """The models by name."""
    return json.loads((INPUTS / "models.json").read_text())


def folder(name: str) -> Path:
    """The folder of a model that has been made."""
    return ROOT / described()[name]["folder"]


def ensure(name: str, data: Path) -> Path:
    """Make a model unless it is there as it is described now; returns its folder."""
    spec, place = described()[name], folder(name)
    made_from = spec.get("made_from")
    if made_from is None:
        if not (place / "config.json").exists():
            raise ModelMissing(f"{name}: no model in {spec['folder']}; run {spec['made_by']}")
        return place
    stamp = place / "made-from.json"
    wanted = json.dumps(_origin(made_from), indent=1)
    if not stamp.exists() or stamp.read_text() != wanted:
        if "scores_on" in made_from:
            _make_scored(made_from, place, ensure(made_from["scores_on"], data))
        else:
            _make(made_from, place, data)
        stamp.write_text(wanted)
    return place


def _origin(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """All that a folder is made from: also the template and the pinned rows, or another model."""
    if "scores_on" in made_from:
        below = described()[made_from["scores_on"]]["made_from"]
        return {**made_from, "model": _origin(below)}
    pins = {row: pinned()[row]["sha256"] for row in made_from["tokenizer_rows"]}
    return {**made_from, "template": CHAT_TEMPLATE, "rows": pins}


def _make_scored(spec: Mapping[str, Any], place: Path, below: Path) -> None:
    """A sequence-classification folder: the model of another folder, its head from a seed.

    Both sides load the head as it is. The pad token ends no text, so that what stands before it is
    where both read the score.
    """
    import torch

    from trimtab.models.hub import quiet
    from trimtab.models.load import load_model, load_tokenizer
    from trimtab.models.save import save_model
    from trimtab.models.score_head import ScoreHead, attach_head

    quiet()
    tokenizer: Any = load_tokenizer(below)
    model = load_model(below, dtype=torch.float32)
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id)
    head = ScoreHead("reward", pad_token_id=tokenizer.pad_token_id)
    std = (model.config.hidden_size + 1) ** -0.5
    save_model(attach_head(model, head, std=std, seed=spec["seed"]), tokenizer, place)


def _make(spec: Mapping[str, Any], place: Path, data: Path) -> None:
    import torch

    from trimtab.models.build import model_from_config
    from trimtab.models.hub import quiet
    from trimtab.models.save import save_model
    from trimtab.models.tokenizers import train_byte_level_bpe

    quiet()
    tokenizer: Any = train_byte_level_bpe(
        _texts(spec["tokenizer_rows"], data), spec["vocab_size"], chat_template=CHAT_TEMPLATE
    )
    model = model_from_config(
        spec["architecture"],
        spec["config"],
        vocab_size=spec["vocab_size"],
        seed=spec["seed"],
        dtype=torch.float32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    save_model(model, tokenizer, place)


def _texts(names: Sequence[str], data: Path) -> Iterator[str]:
    """All texts of the pinned rows, in their order: the tokenizer is a function of them."""
    for name in names:
        for row in read(name, pinned()[name], data):
            for value in row.values():
                if isinstance(value, str):
                    yield value
                else:
                    yield from (message["content"] for message in value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    data = parser.parse_args().data
    for name in described():
        try:
            print(f"{name}: {ensure(name, data)}")
        except ModelMissing as missing:
            print(missing)


if __name__ == "__main__":
    main()
