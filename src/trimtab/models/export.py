"""``trimtab export``: a finished run as a folder that other programs serve, and how to.

    merged    a plain transformers model: an adapter is added into its base's weights
    adapter   PEFT's files alone, to be put on the base again

A merge happens in fp32 and is checked before anything is written; the cast to another dtype comes
last, and what it costs is measured. Everything is written beside the output and renamed at the end.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.data.chat import ChatRenderer
from trimtab.errors import RecipeError, RunError
from trimtab.models import load
from trimtab.models.hub import ModelSource, is_scored, read_json
from trimtab.models.save import merge_adapter, save_model, verify_saved
from trimtab.models.scored import ADAPTER_FACTS, load_scored

Format = Literal["merged", "adapter"]
DtypeName = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GGUF_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
TOLERANCE = 1e-5  # of the largest logit: what a merge in fp32 may change
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_RANK = 16  # what it takes unasked
PROBE = (
    "The quick brown fox jumps over the lazy dog. 3 + 4 = 7, and in 1969 people walked on the "
    'moon: "one small step". Überraschung! def f(x): return x ** 2'
)
_ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    ADAPTER_FACTS,
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """The command line's options, by the same names."""

    run: str
    output: str
    format: Format = "merged"
    dtype: DtypeName = "auto"
    base_model: str | None = None


@dataclasses.dataclass
class Export:
    """What was written, for people (``lines``) and for programs.

    merged_difference   logits of the merged model less the adapter's, of the largest; fp32
    cast_difference     the same of the cast, None where nothing was cast
    commands            the exact lines for other programs, by program
    """

    folder: str
    format: Format
    architecture: str
    dtype: str | None = None
    parameters: int | None = None
    size: int = 0
    merged_difference: float | None = None
    cast_difference: float | None = None
    commands: dict[str, list[str]] = dataclasses.field(default_factory=dict[str, list[str]])
    notes: list[str] = dataclasses.field(default_factory=list[str])

    def lines(self) -> list[str]:
        """The account."""
        weights = f", {self.parameters:,} weights in {self.dtype}" if self.parameters else ""
        found = [
            f"{self.format:<9} {self.folder}: {self.architecture}{weights}, "
            f"{self.size / 1e6:,.1f} MB"
        ]
        if self.merged_difference is not None:
            found.append(
                "checked   the merged model's logits are the adapter's to "
                f"{self.merged_difference:.1g} of the largest, in fp32"
            )
        if self.cast_difference is not None:
            found.append(
                f"cast      to {self.dtype}, which moves logits by up to "
                f"{self.cast_difference:.1g} of the largest"
            )
        for program, commands in self.commands.items():
            for number, command in enumerate(commands):
                found.append(f"{program if not number else '':<9} {command}")
        return found + [f"note      {note}" for note in self.notes]


def export(options: ExportOptions) -> Export:
    """Write ``options.output``, which must not be there; returns what was written.

    Raises RecipeError for what cannot be exported so, RunError where a check fails or the output
    cannot be written.
    """
    output = _free_place(options.output)
    source = load.locate(options.run, key="run")
    if options.format == "adapter":
        _check_adapter_options(options, source)
    elif options.base_model is not None:
        raise RecipeError(
            "base_model: the name of the base is written into an adapter; use format=adapter"
        )
    temporary = output.parent / f".tmp-{output.name}-{uuid.uuid4().hex[:8]}"
    try:
        temporary.mkdir(parents=True)
        write = _adapter if options.format == "adapter" else _merged
        made = write(options, source, temporary)
        if output.exists():
            output.rmdir()  # an empty folder, as checked
        temporary.rename(output)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise RunError(f"output={options.output}: cannot be written: {reason}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    made.folder = str(output)
    made.size = sum(file.stat().st_size for file in output.iterdir())
    return made


def _free_place(text: str) -> Path:
    output = Path(text).expanduser()
    if output.is_dir() and not any(output.iterdir()):
        return output
    if output.exists():
        raise RecipeError(f"output={text}: exists already; name a folder that does not")
    return output


# ---------------------------------------------------------------------- merged


def _merged(options: ExportOptions, source: ModelSource, folder: Path) -> Export:
    tokenizer: Any = load.load_tokenizer(source, key="run")
    renderer = ChatRenderer(tokenizer, generation_config=load.generation_config(source, "run"))
    ids = torch.tensor(renderer.prompt_ids(PROBE))
    scored = is_scored(source)
    own = _own_dtype(source)
    adapter = source.kind == "adapter"
    # A whole model is cast straight from what it is; sums of a merge want fp32.
    loader = load_scored if scored else load.load_model
    model: Any = loader(source, dtype=torch.float32 if adapter else None, key="run")
    made = Export(str(folder), "merged", "")
    if adapter:
        before = _outputs(model, ids)
        model = merge_adapter(model, ids)
        made.merged_difference = _difference(before, _outputs(model, ids))
        if not made.merged_difference <= TOLERANCE:
            raise RunError(
                f"merge: outputs changed by {made.merged_difference:.2g} of the largest (allowed "
                f"{TOLERANCE:g}); export it with format=adapter"
            )
    wanted = DTYPES.get(options.dtype, own)
    if wanted != next(model.parameters()).dtype:
        before = _outputs(model, ids)
        model = model.to(wanted)
        made.cast_difference = _difference(before, _outputs(model, ids))
        _refuse_overflow(model, options)
    save_model(model, tokenizer, folder, stop_ids=sorted(renderer.stop_ids))
    verify_saved(folder, model, tokenizer)
    card = source.folder / "README.md"
    if card.is_file():  # which of an adapter says that PEFT loads it
        text = card.read_text(encoding="utf-8")
        text = text.replace("library_name: peft\n", "library_name: transformers\n", 1)
        (folder / card.name).write_text(text, encoding="utf-8")
    config = read_json(folder / "config.json")
    made.architecture = (config.get("architectures") or ["?"])[0]
    made.dtype = next(name for name, dtype in DTYPES.items() if dtype == wanted)
    made.parameters = sum(p.numel() for p in model.parameters())
    _say_merged(made, options, tokenizer, scored=scored)
    return made


def _own_dtype(source: ModelSource) -> torch.dtype:
    """Of the folder's weights; of an adapter, its base's."""
    config = read_json(load.base_of(source, "run").folder / "config.json")
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    found = getattr(torch, str(name), torch.float32)
    return found if found in DTYPES.values() else torch.float32


@torch.no_grad()
def _outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """Everything that a model says about the probe: logits, and scores where it has them."""
    found = [model(input_ids=ids[None], use_cache=False).logits.float()]
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    if getattr(inner, "lm_head", None) is not None and getattr(inner, "score", None) is not None:
        states = model(input_ids=ids[None], use_cache=False, output_hidden_states=True)
        found.append(inner.score(states.hidden_states[-1]).float())
    return found


def _difference(before: list[Tensor], after: list[Tensor]) -> float:
    pairs = zip(before, after, strict=True)
    return max(float((b - a).abs().max() / a.abs().max().clamp(min=1e-30)) for a, b in pairs)


def _refuse_overflow(model: Any, options: ExportOptions) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise RunError(
                f"dtype={options.dtype}: {name} leaves its range (or was not finite before); "
                "use bf16 or fp32"
            )


def _say_merged(made: Export, options: ExportOptions, tokenizer: Any, *, scored: bool) -> None:
    here = shlex.quote(str(Path(options.output).expanduser()))
    if scored:
        made.commands["vLLM"] = [f"vllm serve {here} --runner pooling"]
        made.notes.append(
            "llama.cpp's converter is for language models; this one has scores, so no GGUF line"
        )
        return
    made.commands["vLLM"] = [f"vllm serve {here}"]
    file = shlex.quote(f"{Path(options.output).expanduser()}.gguf")
    small = shlex.quote(f"{Path(options.output).expanduser()}-q4_k_m.gguf")
    kind = GGUF_TYPES[str(made.dtype)]
    made.commands["GGUF"] = [
        f"python convert_hf_to_gguf.py {here} --outfile {file} --outtype {kind}",
        f"llama-quantize {file} {small} q4_k_m",
    ]
    made.notes.append("the GGUF lines are run in a checkout of llama.cpp; the second is optional")
    if made.dtype == "fp32":
        made.notes.append("vLLM serves fp32 weights in half precision unless given --dtype float32")
    if tokenizer.bos_token == "<|bos|>" and tokenizer.pad_token == "<|pad|>":
        made.notes.append(
            "the tokenizer is one that trimtab trained: llama.cpp knows tokenizers by a hash, and "
            "refuses this one until get_vocab_base_pre() in its converter is told (as gpt-2)"
        )


# ---------------------------------------------------------------------- adapter


def _check_adapter_options(options: ExportOptions, source: ModelSource) -> None:
    if source.kind != "adapter":
        raise RecipeError(
            f"format=adapter: {options.run} is a whole model, without an adapter; use merged"
        )
    if options.dtype != "auto":
        raise RecipeError(
            f"dtype={options.dtype}: an adapter is exported as it is; leave it out, or use merged"
        )


def _adapter(options: ExportOptions, source: ModelSource, folder: Path) -> Export:
    settings = read_json(source.folder / "adapter_config.json")
    for name in _ADAPTER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, folder / name)
    if not (folder / "adapter_model.safetensors").is_file():
        raise RecipeError(f"run={options.run}: it has no adapter_model.safetensors")
    if options.base_model is not None:
        settings["base_model_name_or_path"] = options.base_model
        text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")
    base = settings.get("base_model_name_or_path")
    if not base:
        raise RecipeError(
            f"run={options.run}: its adapter_config.json names no base model; give --base-model"
        )
    kind, rank = settings.get("peft_type", "LORA"), int(settings.get("r") or 0)
    made = Export(str(folder), "adapter", f"{kind} of rank {rank} on {base}")
    _say_adapter(made, options, settings, str(base), rank)
    return made


def _say_adapter(
    made: Export, options: ExportOptions, settings: dict[str, Any], base: str, rank: int
) -> None:
    output = Path(options.output).expanduser()
    here, below = shlex.quote(str(output)), shlex.quote(base)
    whole = settings.get("modules_to_save") or []
    if whole or rank > VLLM_RANKS[-1]:
        why = f"whole modules ({', '.join(whole)})" if whole else f"rank {rank}"
        made.notes.append(f"vLLM takes no adapter with {why}: export it merged")
    else:
        most = next(one for one in VLLM_RANKS if one >= rank)
        more = f" --max-lora-rank {most}" if most > VLLM_RANK else ""
        name = shlex.quote(f"{output.name}={output}")
        made.commands["vLLM"] = [f"vllm serve {below} --enable-lora --lora-modules {name}{more}"]
    if not whole:
        made.commands["GGUF"] = [
            f"python convert_lora_to_gguf.py {here} --base {below} --outfile "
            f"{shlex.quote(f'{output}.gguf')} --outtype f16"
        ]
        made.notes.append(
            "the GGUF line is run in a checkout of llama.cpp, with the base as a local folder; "
            "then llama-cli -m BASE.gguf --lora takes the file"
        )
    if Path(base).expanduser().is_dir() and not Path(base).is_absolute():
        made.notes.append(
            f"the base is written as {base}, a folder relative to here: --base-model NAME writes "
            "the name that other machines know it by"
        )
