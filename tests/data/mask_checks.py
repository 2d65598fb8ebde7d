"""What a right mask is, stated without the renderer: shared by the tests of chats and templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trimtab.data.chat import MASK_SOURCES, ChatRenderer, Rendered


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def runs(rendered: Rendered) -> list[list[int]]:
    """Ids of each unbroken run of trained tokens."""
    found: list[list[int]] = []
    previous = False
    for token, trained in zip(rendered.ids, rendered.trained, strict=True):
        if trained and not previous:
            found.append([])
        if trained:
            found[-1].append(token)
        previous = trained
    return found


def shown(renderer: ChatRenderer, ids: list[int]) -> str:
    """Text of ids, control tokens included."""
    return renderer.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False)


def mask_problems(
    renderer: ChatRenderer,
    results: list[Rendered],
    contents: list[str],
    stop: str,
    lead: str = "",
    clean: Callable[[str], str] = str,
) -> list[str]:
    """Why the masks are not exact; empty when each run is lead + content + stop and no more.

    A run's middle has to be the content itself, less white space that the template strips.
    ``clean`` takes out of the shown text what the tokenizer puts in.
    """
    problems: list[str] = []
    for result in results:
        if any(result.trained[: result.prompt]):
            problems.append("trained tokens in the prompt")
        if not result.trained[-1]:
            problems.append("something follows the last trained token")
        if len(result.ids) != len(result.trained):
            problems.append("lengths differ")
    found = [clean(shown(renderer, run)) for result in results for run in runs(result)]
    if len(found) != len(contents):
        return [*problems, f"{len(found)} runs for {len(contents)} turns: {found}"]
    for text, content in zip(found, contents, strict=True):
        middle = text.removeprefix(lead)
        if not text.startswith(lead) or not middle.endswith(stop):
            problems.append(f"{text!r} is not {lead!r} ... {stop!r}")
            continue
        middle = middle.removesuffix(stop)
        if middle.strip() != content.strip() or middle not in content:
            problems.append(f"{middle!r} is not {content!r}")
    return problems


def sources(renderer: ChatRenderer) -> dict[str, int]:
    """Turns by how their masks were found."""
    return {name: renderer.counts[name] for name in MASK_SOURCES if renderer.counts[name]}
