"""``trimtab chat``."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def chat(
    run: str,
    /,
    *,
    vs: str | None = None,
    prompt: str | None = None,
    reward_model: str | None = None,
    reward_funcs: Annotated[tuple[str, ...], Parameter(negative="", consume_multiple=True)] = (),
    temperature: float = 0.5,
    top_k: int = 0,
    top_p: float = 0.9,
    max_completion_length: Annotated[
        int, Parameter(name=["--max-completion-length", "--max"])
    ] = 256,
    seed: int = 0,
    system: str = "",
    style: Annotated[Literal["auto", "chat", "plain"], Parameter(name="--format")] = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Talk with a model, or two side by side, in the terminal; lines of a pipe are answered, too.

    Parameters
    ----------
    run
        Language model: run folder, model or adapter folder, or hub id.
    vs
        A second model, whose answers stand beside the first one's.
    prompt
        Answer this and end.
    reward_model
        Reward model or ensemble of them, whose reward is shown below each answer.
    reward_funcs
        Reward functions, as in score.
    temperature
        Divides the logits; 0 is greedy. This and what follows can be changed by /temperature ...
        (/help lists all).
    top_k
        Only the k likeliest tokens; 0 is all.
    top_p
        Only the likeliest tokens that together have this probability; 1 is all.
    max_completion_length
        Tokens after which an answer is cut off.
    seed
        Of the draws: the same seed and words give the same answers.
    system
        System message.
    style
        chat: through the chat template; plain: text to go on with; auto: as the rows were that the
        run was trained on, else chat where there is a template.
    precision
        auto: bf16 where its products run at least 1.5 times as fast.
    as_json
        Print one JSON object for every message: user, answers with text, tokens, ended, rewards.
    """
    from trimtab.chat.command import ChatOptions
    from trimtab.chat.command import chat as talk
    from trimtab.chat.session import Settings

    settings = Settings(temperature, top_k, top_p, max_completion_length, seed, system)
    return talk(
        ChatOptions(
            run=run,
            vs=vs,
            prompt=prompt,
            settings=settings,
            style=style,
            reward_model=reward_model,
            reward_funcs=reward_funcs,
            precision=precision,
            as_json=as_json,
        )
    )
