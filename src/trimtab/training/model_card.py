"""README.md of a run folder: the model card, with what is needed to use and to repeat the run."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from trimtab.training import files

Kind = Literal["text-generation", "text-classification"]


class Method(NamedTuple):
    """What a verb does, in a few words, and the paper it is from (an arXiv number, if it has one).

    Attributes: ``title`` as in "trained with <title>", ``arxiv`` such as "2305.18290".
    """

    title: str
    arxiv: str | None = None


METHODS: dict[str, Method] = {
    "pretrain": Method("next-token prediction (pretraining)"),
    "classify": Method("a classification fine-tune with a language-model auxiliary loss"),
    "sft": Method("supervised fine-tuning (SFT)"),
    "reward": Method("reward modelling on ranked responses", "2203.02155"),
    "ppo": Method("proximal policy optimisation (PPO)", "1707.06347"),
    "grpo": Method("group-relative policy optimisation (GRPO)", "2402.03300"),
    "rloo": Method("REINFORCE with a leave-one-out baseline (RLOO)", "2402.14740"),
    "online_dpo": Method("online preference optimisation (online DPO)", "2402.04792"),
    "raft": Method("reward-ranked fine-tuning (RAFT)", "2304.06767"),
    "dpo": Method("direct preference optimisation (DPO)", "2305.18290"),
    "simpo": Method("simple preference optimisation (SimPO)", "2405.14734"),
    "orpo": Method("odds-ratio preference optimisation (ORPO)", "2403.07691"),
    "kto": Method("Kahneman-Tversky optimisation (KTO)", "2402.01306"),
    "ipo": Method("identity preference optimisation (IPO)", "2310.12036"),
    "ipo_sum": Method("identity preference optimisation over sums (IPO)", "2310.12036"),
    "cdpo": Method("conservative DPO (cDPO)"),
    "robust": Method("robust DPO (rDPO)", "2403.00409"),
    "hinge": Method("a hinge over log-ratios (SLiC, RSO)", "2309.06657"),
    "slic_hf": Method("sequence likelihood calibration (SLiC-HF)", "2305.10425"),
    "simpo_ratio": Method("simple preference optimisation (SimPO)", "2405.14734"),
    "alphapo": Method("AlphaPO", "2501.03884"),
    "cpo": Method("contrastive preference optimisation (CPO)", "2401.08417"),
    "apo_zero": Method("anchored preference optimisation (APO-zero)", "2408.06266"),
    "apo_down": Method("anchored preference optimisation (APO-down)", "2408.06266"),
    "apo_zero_unpaired": Method("unpaired anchored preference optimisation", "2408.06266"),
    "exo": Method("efficient exact optimisation (EXO)", "2402.00856"),
    "exo_authors": Method("efficient exact optimisation (EXO)", "2402.00856"),
    "exo_rewards": Method("efficient exact optimisation of rewards (EXO)", "2402.00856"),
    "nca": Method("noise contrastive alignment (NCA)", "2402.05369"),
    "nca_rewards": Method("noise contrastive alignment of rewards (NCA)", "2402.05369"),
    "infonca": Method("noise contrastive alignment of rewards (InfoNCA)", "2402.05369"),
    "bco": Method("binary classifier optimisation (BCO)", "2404.04656"),
    "bco_pair": Method("binary classifier optimisation of pairs (BCO)", "2404.04656"),
    "sppo": Method("self-play preference optimisation (SPPO)", "2405.00675"),
    "dpop": Method("DPO-positive (DPOP)", "2402.13228"),
    "irpo": Method("reasoning preference optimisation (iterative RPO)", "2404.19733"),
    "rpo": Method("regularised preference optimisation (RPO)", "2405.16436"),
    "tdpo1": Method("token-level direct preference optimisation (TDPO)", "2404.11999"),
    "tdpo2": Method("token-level direct preference optimisation (TDPO)", "2404.11999"),
    "wpo": Method("weighted preference optimisation (WPO)", "2406.11827"),
    "wpo_clamped": Method("weighted preference optimisation (WPO)", "2406.11827"),
    "r_dpo": Method("length-regularised DPO (R-DPO)", "2403.19159"),
    "ln_dpo": Method("length-normalised DPO", "2411.15124"),
    "ld_dpo": Method("length-desensitised DPO (LD-DPO)", "2409.06411"),
    "discopop": Method("discovered preference optimisation (DiscoPOP)", "2406.08414"),
    "fdpo_forward": Method("f-DPO with the forward KL", "2309.16240"),
    "fdpo_js": Method("f-DPO with the Jensen-Shannon divergence", "2309.16240"),
    "fdpo_alpha": Method("f-DPO with an alpha-divergence", "2309.16240"),
    "beta_dpo": Method("DPO with a dynamic beta (beta-DPO)", "2407.08639"),
    "plackett_luce": Method("DPO over rankings (Plackett-Luce)", "2305.18290"),
}


@dataclass(frozen=True)
class Card:
    """What a card says.

    ``verb`` looks up METHODS. ``base_model`` and ``datasets`` are what the recipe names: hub ids go
    into the front matter, local paths only by their last part (a card is made to be shared).
    ``data`` holds lines about the rows, ``results`` the final metrics by name, ``command`` the
    exact command. ``license`` is given only if the user said one: it cannot be guessed. A reward is
    the score less ``offset``. ``classes`` names those of a classifier,
    which is read behind ``end`` (the end token's text; empty where the tokenizer adds it).
    """

    name: str
    verb: str
    command: str
    base_model: str | None = None
    datasets: Sequence[str] = ()
    data: Sequence[str] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    license: str | None = None
    adapter: bool = False
    conversational: bool = True
    kind: Kind = "text-generation"
    offset: float = 0.0
    classes: Sequence[str] = ()
    end: str = ""


def write_model_card(folder: Path, card: Card) -> Path:
    """Write ``folder/README.md``."""
    path = folder / "README.md"
    files.write_atomic(path, render_model_card(card).encode())
    return path


def render_model_card(card: Card) -> str:
    """The card as Markdown with YAML front matter, as the Hugging Face hub reads it."""
    parts = [
        "---\n" + _front_matter(card) + "---",
        f"# {card.name}",
        _introduction(card),
        "## Quick start\n\n```python\n" + _snippet(card) + "\n```",
        _data(card),
        _table("## Hyper-parameters", "key", card.hyperparameters),
        _table("## Results", "metric", card.results),
        "## Repeat it\n\n```\n" + card.command + "\n```\n\n" + _versions(),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(card: Card) -> str:
    import yaml

    tags = ["trimtab", "generated_from_trainer", card.verb, *(["lora"] if card.adapter else [])]
    front: dict[str, Any] = {}
    if card.base_model and is_hub_id(card.base_model):
        front["base_model"] = card.base_model
    hub_data = [name for name in card.datasets if is_hub_id(name)]
    if hub_data:
        front["datasets"] = hub_data
    front["library_name"] = "peft" if card.adapter else "transformers"
    front["pipeline_tag"] = card.kind
    if card.license:
        front["license"] = card.license
    front["model_name"] = card.name
    front["tags"] = list(dict.fromkeys(tags))
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _introduction(card: Card) -> str:
    # A weighted sum of losses is named after its members.
    titles = [METHODS.get(name, Method(name)).title for name in card.verb.split("+")]
    method = METHODS.get(card.verb, Method(" and ".join(titles)))
    start = f"made from {_shown(card.base_model)}" if card.base_model else "trained from scratch"
    paper = ""
    if method.arxiv:
        paper = f" ([arXiv:{method.arxiv}](https://arxiv.org/abs/{method.arxiv}))"
    return f"A model {start} with {method.title}{paper}, by trimtab."


def _snippet(card: Card) -> str:
    folder = '"path/to/this/folder"'
    if card.classes:
        return _classifying_snippet(card, folder)
    if card.kind == "text-classification":
        return _scoring_snippet(card, folder)
    prompt = "Which animals live longest?"
    shown = f'[{{"role": "user", "content": "{prompt}"}}]' if card.conversational else f'"{prompt}"'
    return "\n".join(
        (
            "from transformers import pipeline",
            "",
            f'generate = pipeline("text-generation", model={folder})',
            f"print(generate({shown}, max_new_tokens=100, return_full_text=False))",
        )
    )


def _scoring_snippet(card: Card, folder: str) -> str:
    """How transformers alone reads the scores: at the last token, which is the stop token."""
    if card.adapter:
        load = "AutoPeftModelForSequenceClassification"
        lines = [
            f"from peft import {load}",
            "from transformers import AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({folder})",
            f"model = {load}.from_pretrained({folder}, num_labels=1)",
            "model.config.pad_token_id = tokenizer.pad_token_id",
        ]
    else:
        lines = [
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            f"tokenizer = AutoTokenizer.from_pretrained({folder})",
            f"model = AutoModelForSequenceClassification.from_pretrained({folder})",
        ]
    if card.conversational:
        lines += [
            'chat = [{"role": "user", "content": "A question"}, '
            '{"role": "assistant", "content": "An answer"}]',
            "text = tokenizer.apply_chat_template(chat, tokenize=False).rstrip()  # up to the stop "
            "token",
            'inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")',
        ]
    else:
        lines.append(
            'inputs = tokenizer("A prompt and its response" + tokenizer.eos_token, '
            'return_tensors="pt")'
        )
    taken = f" - {card.offset:.6g}" if card.offset else ""
    return "\n".join([*lines, f"print(model(**inputs).logits{taken})"])


def _classifying_snippet(card: Card, folder: str) -> str:
    """How transformers alone reads the classes: at the end token, which the text must have."""
    lines = ["from transformers import pipeline", ""]
    given = f"model={folder}"
    if card.adapter:
        lines = [
            "import json",
            "from pathlib import Path",
            "",
            "from peft import AutoPeftModelForSequenceClassification",
            "from transformers import AutoTokenizer, pipeline",
            "",
            f"folder = Path({folder})",
            'labels = json.loads((folder / "score_head.json").read_text())["labels"]',
            "names = {number: str(label) for number, label in enumerate(labels)}",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            "model = AutoPeftModelForSequenceClassification.from_pretrained(",
            "    folder, id2label=names",
            ")",
            "model.config.pad_token_id = tokenizer.pad_token_id",
        ]
        given = "model=model, tokenizer=tokenizer"
    lines.append(f'classify = pipeline("text-classification", {given}, top_k=None)')
    if card.end:
        lines.append(f"end = {json.dumps(card.end)}  # the class is read there; it is not added")
    text = '"A text" + end' if card.end else '"A text"'
    return "\n".join([*lines, f"print(classify({text}))"])


def _data(card: Card) -> str:
    lines = [f"- {_shown(name)}" for name in card.datasets] + [f"- {line}" for line in card.data]
    return "## Training data\n\n" + "\n".join(lines) if lines else ""


def _table(title: str, first: str, values: Mapping[str, Any]) -> str:
    if not values:
        return ""
    rows = [f"| {_cell(name)} | {_cell(_number(value))} |" for name, value in values.items()]
    return "\n".join((title, "", f"| {first} | value |", "|---|---|", *rows))


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _versions() -> str:
    names = ("trimtab", "torch", "transformers", "tokenizers", "peft")
    found: list[str] = []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "Versions: " + ", ".join(found) + ". The whole recipe is in `config.resolved.yaml`."


def is_hub_id(name: str) -> bool:
    """Whether a name is a hub id (``owner/name`` or ``name``) and no file or folder here."""
    part = r"[A-Za-z0-9][A-Za-z0-9._-]*"
    return re.fullmatch(f"{part}(/{part})?", name) is not None and not Path(name).exists()


def _shown(name: str) -> str:
    if is_hub_id(name):
        return f"[{name}](https://huggingface.co/{name})" if "/" in name else f"`{name}`"
    return f"`{Path(name).name}`"
