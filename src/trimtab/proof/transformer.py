"""The same language for a real model: a folder with weights and tokenizer, rows, and log-probs.

The rows are what a training verb reads; the log-probs of a trained folder are read back with
transformers alone, one sequence at a time, so that they owe nothing to the code under test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trimtab.models.build import model_from_config
from trimtab.models.save import save_model
from trimtab.proof.language import Language
from trimtab.proof.preferences import Pairs, Rankings

STOP = "<stop>"


def make_tokenizer(language: Language) -> Any:
    """One token a letter, a prompt and the stop token: no BOS, no padding, no template."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*language.letters, STOP, *language.prompts]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, STOP))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=STOP, clean_up_tokenization_spaces=False
    )


def make_transformer(
    language: Language, *, seed: int = 0, width: int = 32, layers: int = 2, spread: float = 0.15
) -> Any:
    """A small Llama in fp32 over the language's tokens; ``spread`` is that of its weights.

    It can be any table: every response of every prompt has a log-prob of its own.
    """
    return model_from_config(
        "llama",
        {
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": width // 4,
            "max_position_embeddings": 32,
            "initializer_range": spread,
            "tie_word_embeddings": False,
        },
        vocab_size=language.vocabulary,
        seed=seed,
        dtype=torch.float32,
        eos_token_id=language.stop,
    )


def save_transformer(folder: Path, language: Language, **options: Any) -> Path:
    """``make_transformer(language, **options)`` with its tokenizer, as a model folder."""
    save_model(make_transformer(language, **options), make_tokenizer(language), folder)
    return folder


def pair_rows(language: Language, pairs: Pairs) -> list[dict[str, Any]]:
    """Rows of a preference data set, with the pairs' weights in the column ``weight``."""
    columns = (pairs.prompt, pairs.winner, pairs.loser, pairs.weight)
    return [
        {
            "prompt": language.prompts[prompt],
            "chosen": language.texts[winner],
            "rejected": language.texts[loser],
            "weight": weight,
        }
        for prompt, winner, loser, weight in zip(*(c.tolist() for c in columns), strict=True)
    ]


def ranking_rows(language: Language, rankings: Rankings) -> list[dict[str, Any]]:
    """Rows of a ranked data set, with the rankings' weights in the column ``weight``."""
    columns = (rankings.prompt, rankings.order, rankings.weight)
    return [
        {
            "prompt": language.prompts[prompt],
            "responses": [language.texts[response] for response in order],
            "ranks": list(range(1, len(order) + 1)),
            "weight": weight,
        }
        for prompt, order, weight in zip(*(c.tolist() for c in columns), strict=True)
    ]


def response_logprobs(model: Any, language: Language) -> Tensor:
    """[X, Y] float64 summed log-probs of the responses, stop token included, with gradient.

    The model's own logits for one sequence after the other: no tree, no packing, no fused head.
    Rows do not sum to 1, since a model can also say what is not in the language.
    """
    rows = []
    for prompt in language.prompts:
        sums = []
        for text in language.texts:
            ids = torch.tensor([language.prompt_id(prompt), *language.ids(text)])
            logits = model(input_ids=ids[None]).logits[0, :-1].double()
            sums.append(torch.log_softmax(logits, -1).gather(1, ids[1:, None]).sum())
        rows.append(torch.stack(sums))
    return torch.stack(rows)


def folder_logprobs(folder: Path, language: Language) -> Tensor:
    """[X, Y] the distribution of the model in ``folder`` over the responses, as log-probs.

    Given that it answers within the language: that is all that comparisons can teach.
    """
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.log_softmax(response_logprobs(model, language), -1)


def folder_scores(folder: Path, language: Language) -> Tensor:
    """[X, Y] float64 scores of a reward model's folder, by plain transformers, one at a time."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for prompt in language.prompts:
            sequences = [
                [language.prompt_id(prompt), *language.ids(text)] for text in language.texts
            ]
            rows.append([model(input_ids=torch.tensor([ids])).logits.item() for ids in sequences])
    return torch.tensor(rows, dtype=torch.float64)
