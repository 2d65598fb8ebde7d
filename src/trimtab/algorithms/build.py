"""From a recipe to a stage that can be trained: tokenizer, rows, model, reference, samples."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trimtab.algorithms.language_model import LanguageModelling
from trimtab.algorithms.policy import Policy
from trimtab.algorithms.preference import PreferenceOptimisation, References
from trimtab.algorithms.reference import (
    CachedLogprobs,
    LiveReference,
    ReferenceCache,
    frozen_copy,
)
from trimtab.algorithms.rows import Rows, RowSettings, load_rows
from trimtab.algorithms.samples import SamplePrompt, Samples, prompts_of_trees
from trimtab.algorithms.stage import Mix, Stage
from trimtab.algorithms.stream import TreeStream
from trimtab.config.recipes import PreferenceRecipe, PretrainRecipe, SftRecipe
from trimtab.config.resolved import Resolved
from trimtab.data.chat import ChatRenderer
from trimtab.data.rows import Kind
from trimtab.data.store_cache import default_cache_dir
from trimtab.data.tokenise import TokeniseOptions
from trimtab.data.trees import TokenTree
from trimtab.errors import DataError, RecipeError
from trimtab.losses.contract import LossSpec, bind, describe
from trimtab.models import load, lora
from trimtab.models.fingerprint import fingerprint, fingerprint_tokenizer
from trimtab.models.forward import choose_layout
from trimtab.models.hub import quiet, read_json
from trimtab.models.save import merge_adapter, save_model, verify_saved
from trimtab.models.tokenizers import train_byte_level_bpe
from trimtab.training.progress import Progress
from trimtab.training.precision import PrecisionChoice, choose_precision
from trimtab.training.seeds import derive

DOCUMENT_OPENING = 16  # tokens of a document that a sample goes on from
EVALUATION_BUDGET = 2  # times token_budget: no gradients, so twice the tokens fit


@dataclasses.dataclass(frozen=True)
class Built:
    """A stage and all that the run around it needs."""

    stage: Stage
    tokenizer: Any
    stop_ids: tuple[int, ...]
    precision: PrecisionChoice
    samples: Samples | None
    longest: TokenTree
    source: str | None
    rows: tuple[Rows, ...]

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer as a Hugging Face folder."""
        save_model(self.stage.policy.model, self.tokenizer, folder, stop_ids=self.stop_ids)

    def save_and_verify(self, folder: Path) -> None:
        """Save, read back and compare."""
        self.save(folder)
        verify_saved(folder, self.stage.policy.model, self.tokenizer)


def build(
    resolved: Resolved, folder: Path, progress: Progress, *, precision: str | None
) -> Built:
    """Build the stage of a recipe. Rows come before weights: what is wrong with them is cheap.

    ``precision`` is what an earlier start of this run chose; None chooses.
    """
    return _Builder(resolved, folder, progress).build(precision)


class _Builder:
    def __init__(self, resolved: Resolved, folder: Path, progress: Progress) -> None:
        self.resolved = resolved
        self.recipe: Any = resolved.recipe
        self.progress = progress
        self.note = progress.note
        self.device = choose_device(self.recipe.device)
        self.cache_dir = Path(self.recipe.cache_dir or default_cache_dir())
        self.settings = RowSettings(
            max_bad_rows=self.recipe.max_bad_rows,
            max_dropped_rows=self.recipe.max_dropped_rows,
            cache_dir=self.cache_dir,
            quarantine_folder=folder,
            seed=self.recipe.seed,
        )
        self.folder = folder
        self.spec: LossSpec | None = None
        if isinstance(self.recipe, PreferenceRecipe):
            self.spec = describe(self.recipe.loss.name)
            with _as_recipe_error("loss"):
                bind(self.recipe.loss.name, self.recipe.loss.parameters)
        self.source = self._locate()

    def build(self, precision: str | None) -> Built:
        recipe = self.recipe
        quiet()
        self.progress.stage("reading rows")
        self.tokenizer = self._tokenizer()
        self.renderer = ChatRenderer(
            self.tokenizer, generation_config=self._generation_config()
        )
        train = self._rows("training", recipe.train_specs(), recipe.max_train_rows)
        held_out = self._held_out()
        mix = self._mix_rows()
        self._check_rows(train)
        stream = self._stream(train, recipe.rows_per_step, "main")
        total = self._total_steps(stream)
        policy, chosen = self._policy(precision)
        longest = self._longest([r for r in (train, held_out, mix) if r is not None], policy)
        stage = self._stage(policy, stream, held_out, mix, total)
        return Built(
            stage=stage,
            tokenizer=self.tokenizer,
            stop_ids=tuple(sorted(self.renderer.stop_ids)),
            precision=chosen,
            samples=self._samples(policy, train, held_out),
            longest=longest,
            source=recipe.model_name_or_path,
            rows=tuple(r for r in (train, held_out, mix) if r is not None),
        )

    # ------------------------------------------------------------------ tokenizer and rows

    def _locate(self) -> load.ModelSource | None:
        """Find the model's folder before anything else is read; nothing is loaded yet."""
        recipe = self.recipe
        if recipe.model_name_or_path is None:
            return None
        source = load.locate(recipe.model_name_or_path, revision=recipe.model_revision)
        self.note(source.notice)
        return source

    def _generation_config(self) -> Any:
        if self.source is None:
            return None
        folder = load.base_of(self.source).folder
        if not (folder / "generation_config.json").is_file():
            return None
        from transformers import GenerationConfig

        return GenerationConfig.from_pretrained(folder)

    def _tokenizer(self) -> Any:
        recipe = self.recipe
        if isinstance(recipe, PretrainRecipe) and recipe.new_tokenizer is not None:
            return self._new_tokenizer(recipe)
        if recipe.tokenizer_name_or_path is not None:
            return load.load_tokenizer(recipe.tokenizer_name_or_path)
        assert self.source is not None
        return load.load_tokenizer(
            self.source, trust_remote_code=recipe.trust_remote_code, key="model_name_or_path"
        )

    def _new_tokenizer(self, recipe: PretrainRecipe) -> Any:
        """A byte-level BPE of the training texts."""
        from trimtab.data.rows import TextExample
        from trimtab.data.sources import load_examples

        assert recipe.new_tokenizer is not None
        loaded = load_examples(
            recipe.train_specs(),
            frozenset(ACCEPT["pretrain"]),
            max_rows=recipe.new_tokenizer.max_rows or recipe.max_train_rows,
            max_bad_rows=recipe.max_bad_rows,
            seed=recipe.seed,  # no quarantine: the same rows are read again to be trained on
        )
        texts = (
            text
            for examples in loaded.examples
            for example in examples
            for text in (
                [example.text]
                if isinstance(example, TextExample)
                else [str(m.get("content") or "") for m in example.messages]  # type: ignore[attr-defined]
            )
        )
        self.note(f"training a tokenizer of {recipe.new_tokenizer.vocab_size} tokens")
        return train_byte_level_bpe(texts, recipe.new_tokenizer.vocab_size)

    def _options(self) -> TokeniseOptions:
        recipe = self.recipe
        if isinstance(recipe, PretrainRecipe):
            return TokeniseOptions(max_length=None, context_length=recipe.context_length)
        common: dict[str, Any] = {
            "max_length": recipe.max_length,
            "max_prompt_length": recipe.max_prompt_length,
            "truncation_mode": recipe.truncation_mode,
        }
        if isinstance(recipe, SftRecipe):
            return TokeniseOptions(
                **common,
                completion_only=recipe.completion_only_loss,
                assistant_only=recipe.assistant_only_loss is not False,
            )
        assert self.spec is not None
        return TokeniseOptions(
            **common,
            train_trunk=recipe.nll_weight > 0 and recipe.nll_span == "prompt_and_completion",
            unpaired=self.spec.kind == "unpaired",
            group_by_prompt=recipe.group_by_prompt,
        )

    def _rows(self, role: str, specs: Sequence[Any], max_rows: int | None) -> Rows:
        accept = ACCEPT[self.spec.kind if self.spec else self.resolved.verb]
        options = self._options()
        if role == "held-out" and isinstance(self.recipe, PretrainRecipe):
            options = dataclasses.replace(options, stride=self.recipe.eval_stride)
        return load_rows(
            role,
            specs,
            self.renderer,
            options,
            frozenset(accept),
            self.settings,
            self.note,
            max_rows=max_rows,
        )

    def _held_out(self) -> Rows | None:
        specs = self.recipe.eval_specs()
        return self._rows("held-out", specs, self.recipe.max_eval_rows) if specs else None

    def _mix_rows(self) -> Rows | None:
        mix = self.recipe.mix
        if mix is None:
            return None
        length = mix.max_length or getattr(
            self.recipe, "context_length", getattr(self.recipe, "max_length", None)
        )
        options = TokeniseOptions(max_length=length, context_length=length)
        return load_rows(
            "mix",
            mix.specs(),
            self.renderer,
            options,
            frozenset(ACCEPT["mix"]),
            self.settings,
            self.note,
        )

    def _check_rows(self, rows: Rows) -> None:
        """What would train on nonsense: no stop token in any target, tied or single rows."""
        branches = sum(report.branches for report in rows.reports)
        stopped = sum(report.branches_stopped for report in rows.reports)
        if self.resolved.verb == "sft" and branches and not stopped and self.renderer.stop_ids:
            raise DataError(
                f"{rows.loaded.report.sources[0].source}: none of {branches} responses ends in a stop token "
                f"({sorted(self.renderer.stop_ids)}), so the model would never stop; raise "
                "max_length, or mend the chat template"
            )
        if self.spec is not None and self.spec.kind == "ranking":
            for store in rows.stores:
                for tree in store:
                    if len(set(tree.ranks)) != len(tree.ranks):
                        raise DataError(
                            f"{tree.origin.source}:{tree.origin.row}: ranks: {list(tree.ranks)} "
                            f"holds a tie, which {self.spec.name} cannot express; break the tie, "
                            "or use --loss dpo, which takes all ordered pairs"
                        )

    def _longest(self, rows: Sequence[Rows], policy: Policy) -> TokenTree:
        """The tree with most tokens; refuses one deeper than the model's positions."""
        stores = [store for r in rows for store in r.stores]
        limit = getattr(policy.model.config, "max_position_embeddings", None)
        deepest = max((int(store.depths.max()), i) for i, store in enumerate(stores))
        if limit is not None and deepest[0] > limit:
            store = stores[deepest[1]]
            origin = store[int(store.depths.argmax())].origin
            raise DataError(
                f"{origin.source}:{origin.row}: {deepest[0]} tokens are more than the model's "
                f"{limit} positions; set max_length (context_length) to at most {limit}"
            )
        main = [store for store in rows[0].stores]
        best = max(main, key=lambda store: int(store.token_counts.max()))
        return best[int(best.token_counts.argmax())]

    # ------------------------------------------------------------------ model

    def _policy(self, precision: str | None) -> tuple[Policy, PrecisionChoice]:
        recipe = self.recipe
        self.progress.stage("loading the model")
        width = self._width()
        chosen = choose_precision(precision or recipe.precision, self.device, width)
        self.note(f"precision: {chosen.name} ({chosen.reason}); device: {self.device}")
        if self.source is not None:
            model: Any = load.load_model(
                self.source,
                dtype=chosen.dtype,
                device=self.device,
                trust_remote_code=recipe.trust_remote_code,
            )
        else:
            model = self._new_model(chosen.dtype)
        model = self._adapters(model)
        if recipe.gradient_checkpointing:
            load.checkpoint_activations(model)
        model.train()
        choice = choose_layout(model, recipe.attn_layout)
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        every = sum(p.numel() for p in model.parameters())
        self.note(
            f"layout: {choice.layout} ({choice.reason}); {trainable:,} of {every:,} weights trained"
        )
        return Policy(model, choice.layout, self.device), chosen

    def _width(self) -> int:
        if self.source is None:
            return self.recipe.new_model.hidden_size
        config = read_json(load.base_of(self.source).folder / "config.json")
        found = config.get("hidden_size") or config.get("n_embd")
        return int(found or config.get("text_config", {}).get("hidden_size", 1024))

    def _new_model(self, dtype: torch.dtype) -> Any:
        spec = self.recipe.new_model
        model = load.model_from_config(
            spec.architecture,
            spec.config(self.recipe.context_length + 1),  # the token before a window is in it
            vocab_size=len(self.tokenizer),
            seed=derive(self.recipe.seed, "weights") % 2**32,
            dtype=dtype,
            bos_token_id=self.tokenizer.bos_token_id,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return model.to(self.device)

    def _adapters(self, model: Any) -> Any:
        """LoRA on a plain model; an adapter folder goes on as LoRA, or merged into full weights."""
        recipe = self.recipe
        is_adapter = self.source is not None and self.source.kind == "adapter"
        if not recipe.use_peft:
            if is_adapter:
                ids = self.renderer.prompt_ids("The quick brown fox jumps over the lazy dog.")
                model = merge_adapter(model, torch.tensor(ids, device=self.device))
            return model.requires_grad_(True)
        if is_adapter:
            return lora.continue_adapter(model, dropout=recipe.lora_dropout)
        return lora.attach(
            model,
            r=recipe.lora_r,
            alpha=recipe.lora_alpha,
            dropout=recipe.lora_dropout,
            target_modules=recipe.lora_target_modules,
            seed=derive(recipe.seed, "adapters") % 2**32,
        )

    # ------------------------------------------------------------------ streams and stages

    def _stream(self, rows: Rows, per_step: int, name: str, budget: int = 1) -> TreeStream:
        return TreeStream(
            rows.stores,
            rows_per_step=per_step,
            token_budget=self.recipe.token_budget * budget,
            seed=derive(self.recipe.seed, f"order of {name}"),
            weights=rows.weights,
            shuffle=self.recipe.shuffle,
            name=name,
        )

    def _total_steps(self, stream: TreeStream) -> int:
        if self.recipe.max_steps > 0:
            return self.recipe.max_steps
        return max(1, round(self.recipe.num_train_epochs * stream.steps_per_epoch))

    def _stage(
        self,
        policy: Policy,
        stream: TreeStream,
        held_out: Rows | None,
        mix_rows: Rows | None,
        total: int,
    ) -> Stage:
        mix = None
        if mix_rows is not None:
            settings = self.recipe.mix
            per_step = settings.batch_size or self.recipe.rows_per_step
            mix_stream = self._stream(mix_rows, per_step, "mix")
            mix = Mix(mix_stream, settings.weight, settings.reduction)
        held = self._stream(held_out, 1, "eval", EVALUATION_BUDGET) if held_out else None
        if self.spec is None:
            return LanguageModelling(
                policy,
                stream,
                total_steps=total,
                mix=mix,
                held_out=held,
                held_out_bytes=self._bytes(held) if held else None,
            )
        parameters = dict(self.recipe.loss.parameters)
        return PreferenceOptimisation(
            policy,
            stream,
            spec=self.spec,
            make_loss=lambda: bind(self.recipe.loss.name, parameters),
            references=self._references(policy, stream, held, total),
            seed=self.recipe.seed,
            total_steps=total,
            nll_weight=self.recipe.nll_weight,
            mix=mix,
            held_out=held,
        )

    def _bytes(self, stream: TreeStream) -> int:
        """UTF-8 length of the held-out targets, for bits per byte."""
        total = 0
        for number in range(len(stream)):
            tree = stream.tree(number)
            for branch in tree.branches:
                ids = [i for i, t in zip(branch.ids, branch.trained, strict=True) if t]
                total += len(self.tokenizer.decode(ids, skip_special_tokens=True).encode())
        return total

    # ------------------------------------------------------------------ reference

    def _needs_live(self) -> bool:
        """Whether sums of log-probs, computed once, are not enough."""
        if self.spec is None or not self._needs_reference():
            return False
        special = {"sequence_kl", "mismatched_reference"}
        asked = special & (self.spec.needs | self.spec.prepare_needs)
        return bool(asked) or not self.recipe.precompute_ref_log_probs

    def _needs_reference(self) -> bool:
        assert self.spec is not None
        needs = self.spec.needs | self.spec.prepare_needs
        return bool(needs & {"reference", "sequence_kl", "mismatched_reference"})

    def _references(
        self, policy: Policy, stream: TreeStream, held: TreeStream | None, total: int
    ) -> References:
        if not self._needs_reference():
            return References()
        source, identity = self._reference_policy(policy)
        live: LiveReference | None = None
        if self._needs_live():
            live = self._live(policy, source)
        if not self.recipe.precompute_ref_log_probs:
            return References(live=live)
        cache = ReferenceCache(
            self.cache_dir, identity, self.recipe.token_budget * EVALUATION_BUDGET
        )
        epoch_steps = min(total, stream.steps_per_epoch)
        rows = sorted({row for step in range(epoch_steps) for row in stream.rows(step)})
        if total > epoch_steps and stream.order.shares is not None:
            rows = sorted({row for step in range(total) for row in stream.rows(step)})
        train = self._logprobs(cache, source, stream, rows, "training")
        kept = None
        if held is not None:
            kept = self._logprobs(cache, source, held, range(len(held)), "held-out")
        return References(train, kept, live)

    def _logprobs(
        self,
        cache: ReferenceCache,
        source: Policy,
        stream: TreeStream,
        rows: Sequence[int],
        role: str,
    ) -> CachedLogprobs:
        self.progress.stage(f"reference log-probs of {role} rows", len(rows))
        return cache.compute(source, stream, rows, lambda done: self.progress.update(done))

    def _reference_policy(self, policy: Policy) -> tuple[Policy, str]:
        """Who the reference is, and a name for exactly that model in exactly this arithmetic."""
        name = self.recipe.ref_model_name_or_path
        dtype = str(next(policy.model.parameters()).dtype)
        if name is None:
            assert self.source is not None
            # A live fingerprint covers base and adapter; a folder's is the same for every run.
            adapter = self.source.kind == "adapter"
            who = fingerprint(policy.model if adapter else self.source.folder)
            reference = policy
        else:
            found = load.locate(name, key="ref_model_name_or_path")
            model: Any = load.load_model(
                found,
                dtype=next(policy.model.parameters()).dtype,
                device=self.device,
                key="ref_model_name_or_path",
            )
            theirs = fingerprint_tokenizer(load.load_tokenizer(found))
            if theirs != fingerprint_tokenizer(self.tokenizer):
                raise RecipeError(
                    f"ref_model_name_or_path={name!r}: its tokenizer differs from the policy's; "
                    "token log-probs cannot be compared, choose a reference with the same one"
                )
            layout = choose_layout(model, self.recipe.attn_layout).layout
            reference = Policy(model.requires_grad_(False), layout, self.device)
            who = fingerprint(found.folder)
        return reference, ":".join([who, dtype, reference.layout, str(self.device)])

    def _live(self, policy: Policy, source: Policy) -> LiveReference:
        if source is not policy:
            return LiveReference(source, contextlib.nullcontext)
        if self.recipe.use_peft:
            model: Any = policy.model
            return LiveReference(policy, lambda: lora.reference_context(model))
        return frozen_copy(policy)

    # ------------------------------------------------------------------ samples

    def _samples(self, policy: Policy, train: Rows, held_out: Rows | None) -> Samples | None:
        wanted = self.recipe.sample_prompts
        if not wanted:
            return None
        if isinstance(wanted, int):
            store = (held_out or train).stores[0]
            whole = [i for i in range(min(len(store), 50 * wanted)) if store[i].origin.part == 0]
            opening = DOCUMENT_OPENING if self.resolved.verb == "pretrain" else 0
            trees = [store[i] for i in whole[:wanted]]
            prompts = prompts_of_trees(self.tokenizer, trees, opening)
        else:
            prompts = [self._prompt(text) for text in wanted]
        return Samples(
            policy,
            self.tokenizer,
            prompts,
            stop_ids=sorted(self.renderer.stop_ids),
            max_new_tokens=self.recipe.sample_max_new_tokens,
            folder=self.folder / "completions",
            seed=self.recipe.seed,
        )

    def _prompt(self, text: str) -> SamplePrompt:
        """A prompt of the recipe: a user message where the tokenizer has a chat template."""
        chat = self.renderer.template.source and self.resolved.verb != "pretrain"
        prompt: Any = [{"role": "user", "content": text}] if chat else text
        return SamplePrompt(tuple(self.renderer.prompt_ids(prompt)), text)


ACCEPT: dict[str, set[Kind]] = {
    "pretrain": {"text", "chat"},
    "mix": {"text", "chat"},
    "sft": {"text", "chat", "completion"},
    "pair": {"preference", "ranked"},
    "ranking": {"ranked", "preference"},
    "unpaired": {"unpaired", "preference"},
}


def choose_device(requested: str) -> torch.device:
    """``auto`` takes cuda, else mps, else the cpu; a device that is not there is refused."""
    has = {
        "cpu": lambda: True,
        "cuda": torch.cuda.is_available,
        "mps": torch.backends.mps.is_available,
    }
    if requested == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if has[name]()))
    device = torch.device(requested)
    if not has[device.type]():
        raise RecipeError(f"device={requested}: torch finds none here; use auto or cpu")
    return device


@contextlib.contextmanager
def _as_recipe_error(key: str) -> Iterator[None]:
    """A loss refuses its hyper-parameters with ValueErrors; users get the recipe's key."""
    try:
        yield
    except ValueError as error:
        raise RecipeError(f"{key}.{error}") from None
