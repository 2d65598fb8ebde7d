"""Conversations with tiny models: streaming, history, commands, files, rewards, two at a time."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.tiny_runs import answers, make_tokenizer, save_tiny_model, sentence, texts, write_rows

from trimtab.chat import view
from trimtab.chat.conversation import Conversation
from trimtab.chat.judges import Judges
from trimtab.chat.session import Answer, Reward, Session, Settings, Turn, from_json, to_json
from trimtab.chat.speaker import Speaker, TextStream
from trimtab.chat.trained import manner_of
from trimtab.cli import main
from trimtab.errors import DataError, RecipeError, UsageError
from trimtab.models.tokenizers import CHAT_TEMPLATE
from trimtab.rollout import SamplingParams


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model") / "one"
    return save_tiny_model(made, chat_template=CHAT_TEMPLATE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "two", seed=1)


@pytest.fixture(scope="module")
def speaker(folder: Path) -> Speaker:
    return Speaker.load(str(folder), precision="fp32", note=lambda _: None)


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, str]] = []
        self.said: list[str] = []
        self.finished: list[list[Answer]] = []

    def begin(self, user: str) -> None:
        self.pieces = []

    def piece(self, model: int, text: str) -> None:
        self.pieces.append((model, text))

    def finish(self, answers: Any) -> None:
        self.finished.append(list(answers))

    def say(self, text: str) -> None:
        self.said.append(text)


def talk(*speakers: Speaker, judges: Judges | None = None, **settings: Any) -> Any:
    settings = {"max": 8, **settings}
    return Conversation(speakers, Settings(**settings), judges or Judges(), Seen())


# ---------------------------------------------------------------------- streaming


def test_pieces_are_whole_characters_and_add_up_to_the_text() -> None:
    tokenizer = make_tokenizer()
    text = "the cat 🙂 sees Ærø — 木 and\n a tree."
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(text) // 2
    stream = TextStream(tokenizer, [])
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) == stream.text == text and stream.rest() == ""
    assert not any("\ufffd" in piece for piece in pieces)
    assert "" in pieces  # the emoji is several tokens

    cut = TextStream(tokenizer, [])
    smile = tokenizer("🙂", add_special_tokens=False)["input_ids"]
    assert [cut.add(token) for token in smile[:-1]] == [""] * (len(smile) - 1)
    assert cut.rest() == "\ufffd"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_what_the_sampler_samples(speaker: Speaker, temperature: float) -> None:
    conversation = talk(speaker, temperature=temperature, top_p=1.0, max=12)
    (answer,) = conversation.ask("the red cat")
    ids = speaker.renderer.prompt_ids([{"role": "user", "content": "the red cat"}])
    params = SamplingParams(12, temperature=temperature)
    ((rollout,),) = speaker.sampler.sample([ids], 1, params, seed=0, numbers=[0])
    assert (answer.prompt, answer.ids, answer.ended) == (tuple(ids), rollout.ids, rollout.ended)
    shown = "".join(text for _, text in conversation.view.pieces)
    assert shown == answer.text != ""
    told = list(rollout.ids[:-1] if rollout.ended else rollout.ids)
    assert answer.text == speaker.renderer.tokenizer.decode(told, skip_special_tokens=True)


def test_ctrl_c_ends_the_answer_and_keeps_what_there_is(speaker: Speaker) -> None:
    conversation = talk(speaker, speaker, temperature=1.0, max=60)

    def interrupt(model: int, text: str) -> None:
        conversation.view.pieces.append((model, text))
        if len(conversation.view.pieces) == 3:
            raise KeyboardInterrupt

    conversation.view.piece = interrupt
    first, second = conversation.ask("a dog")
    assert first.stopped and not first.ended and 3 <= len(first.ids) < 60
    assert first.text == "".join(text for _, text in conversation.view.pieces)
    assert (second.text, second.stopped) == ("", True)
    assert len(conversation.session.turns) == 1
    assert not speaker.sampler.model.training


def test_the_context_is_a_limit(speaker: Speaker) -> None:
    conversation = talk(speaker)
    with pytest.raises(DataError, match=r"tokens fill its context of 512; /reset, /undo"):
        conversation.ask(sentence(random.Random(0), 600))
    assert conversation.session.turns == []


# ---------------------------------------------------------------------- history


def test_history_goes_through_the_template(speaker: Speaker) -> None:
    conversation = talk(speaker)
    conversation.line("/system be brief")
    (first,) = conversation.ask("the cat")
    (second,) = conversation.ask("the dog")
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "the dog"},
    ]
    assert list(second.prompt) == speaker.renderer.prompt_ids(messages)

    assert conversation.line("/undo") and len(conversation.session.turns) == 1
    assert conversation.line("/regenerate")
    (again,) = conversation.session.turns[0].answers
    assert again.prompt == first.prompt and again.ids != first.ids  # other draws
    conversation.line("/reset")
    assert conversation.session.turns == [] and conversation.session.settings.system == "be brief"
    (anew,) = conversation.ask("the cat")
    assert anew.ids == first.ids  # the same seed and words


def test_an_answer_that_was_cut_off_is_gone_on_with(speaker: Speaker) -> None:
    conversation = talk(speaker, temperature=0.0, max=4)
    (short,) = conversation.ask("a bird")
    assert not short.ended and len(short.ids) == 4
    conversation.line("/continue")
    (longer,) = conversation.session.turns[-1].answers
    whole = talk(speaker, temperature=0.0, max=8).ask("a bird")[0]
    assert longer.ids == whole.ids and longer.text == whole.text
    assert "".join(text for _, text in conversation.view.pieces) == whole.text
    with pytest.raises(UsageError, match="nothing has been said yet"):
        talk(speaker).line("/continue")


def test_a_plain_model_gets_the_text_alone(plain: Path) -> None:
    speaker = Speaker.load(str(plain), precision="fp32", note=lambda _: None)
    assert (speaker.style, speaker.newline) == ("plain", False)
    conversation = talk(speaker)
    conversation.ask("the cat")
    (answer,) = conversation.ask("the dog")
    assert list(answer.prompt) == speaker.renderer.prompt_ids("the dog")
    conversation.line("/newline on")
    (answer,) = conversation.ask("the dog")
    assert list(answer.prompt) == speaker.renderer.prompt_ids("the dog\n")
    for line, message in (
        ("/system be brief", "is asked by plain text, without messages"),
        ("/format chat", "has no chat template"),
    ):
        with pytest.raises(UsageError, match=message):
            conversation.line(line)
    assert speaker.style == "plain"


# ---------------------------------------------------------------------- commands and files


def test_settings_and_what_makes_no_sense(speaker: Speaker) -> None:
    conversation = talk(speaker)
    conversation.line("/temperature 0.25")
    conversation.line("/top-p 0.9")
    conversation.line("/max 17")
    conversation.line("/seed 5")
    assert conversation.session.settings == Settings(0.25, 0, 0.9, 17, 5)
    conversation.line("/settings")
    assert "temperature 0.25\ntop_k 0\ntop_p 0.9\nmax 17\nseed 5" in conversation.view.said[-1]
    for line, message in (
        ("/temperature hot", r"/temperature hot: is not a number"),
        ("/temperature -1", r"temperature=-1: must be a number, 0 \(greedy\) or more"),
        ("/max 1.5", r"/max 1\.5: is not a whole number"),
        ("/top_p 2", r"top_p=2: must be above 0"),
        ("/undoo", r"/undoo: no such command; did you mean /undo\?"),
        ("/undo", r"/undo: nothing has been said yet"),
        ("/undo it", r"/undo: takes nothing behind it"),
        ("/save", r"/save: FILE is missing"),
        ("/format json", r"/format json: is chat or plain"),
    ):
        with pytest.raises(UsageError, match=message):
            conversation.line(line)
    assert conversation.session.settings == Settings(0.25, 0, 0.9, 17, 5)
    assert conversation.line("/quit") is False
    assert conversation.line("  ") is True and conversation.session.turns == []
    conversation.line("//quit is a command")
    assert conversation.session.turns[0].user == "/quit is a command"
    conversation.line("/help")
    assert "/regenerate" in conversation.view.said[-1]


def test_save_and_load(speaker: Speaker, tmp_path: Path) -> None:
    conversation = talk(speaker, temperature=1.0)
    conversation.ask("the cat")
    file = tmp_path / "new" / "talk.json"
    conversation.line(f"/save {file}")
    expected = conversation.ask("and the dog")[0]
    conversation.line(f"/save {file}")  # its own file
    other = talk(speaker)
    with pytest.raises(UsageError, match="exists already; name another file"):
        other.line(f"/save {file}")
    other.line(f"/load {file}")
    assert [turn.user for turn in other.session.turns] == ["the cat", "and the dog"]
    other.line("/undo")
    other.session.drawn = 1
    assert other.ask("and the dog")[0].ids == expected.ids
    with pytest.raises(RecipeError, match="with 1 models, and here are 2"):
        talk(speaker, speaker).line(f"/load {file}")
    file.write_text('{"turns": []}')
    with pytest.raises(RecipeError, match=r"talk\.json: is no conversation that /save wrote"):
        other.line(f"/load {file}")


def test_a_session_is_its_json() -> None:
    answer = Answer("hello", ended=False, rewards=(Reward("gold", 1.5), Reward("x", None)))
    session = Session(("m",), Settings(system="s"), [Turn("hi", (answer,))], drawn=3)
    again = from_json(to_json(session), "f", ["m"])
    assert again.turns[0].answers[0].rewards == (Reward("gold", 1.5), Reward("x", None))
    assert (again.settings, again.drawn, again.turns[0].user) == (Settings(system="s"), 3, "hi")
    with pytest.raises(RecipeError, match=r"f: was written by another version of trimtab \(9\)"):
        from_json(to_json(session).replace('"trimtab_chat": 1', '"trimtab_chat": 9'), "f", ["m"])


# ---------------------------------------------------------------------- manners


def run_folder(tmp_path: Path, verb: str, rows: list[dict[str, Any]]) -> Path:
    """As a run leaves it, with rows named relative to where it was started."""
    write_rows(tmp_path / f"{verb}.jsonl", rows)
    folder = tmp_path / "runs" / verb
    folder.mkdir(parents=True)
    lines = f"verb: {verb}\ndataset_name: {verb}.jsonl\noutput_dir: runs/{verb}\n"
    more = "new_model: {}\ntokenizer_name_or_path: t\n"
    more = more if verb == "pretrain" else "model_name_or_path: m\n"
    (folder / "config.resolved.yaml").write_text(lines + more)
    return folder


def test_how_a_model_is_asked(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "sft", answers(5))
    found = manner_of(folder, template=True)
    assert (found.style, found.newline) == ("plain", True)
    assert found.reason == "it was trained on plain prompts that end with a line break"
    (tmp_path / "sft.jsonl").write_text('{"prompt": "hello", "completion": "you"}\n')
    assert manner_of(folder, template=True)[:2] == ("plain", False)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    write_rows(tmp_path / "sft.jsonl", [{"messages": messages}])
    assert manner_of(folder, template=True).style == "chat"
    assert manner_of(folder, template=False).style == "plain"
    (tmp_path / "sft.jsonl").unlink()  # the rows are gone: the template decides
    assert manner_of(folder, template=True).reason == "its tokenizer has a chat template"
    pretrained = run_folder(tmp_path, "pretrain", texts(3))
    assert manner_of(pretrained, template=True).reason == "it was pretrained on text"


# ---------------------------------------------------------------------- rewards and views


def words(completions: list[Any], prompts: list[Any], **_: Any) -> list[float | None]:
    """Words of each answer, none for conversations that mention a dog."""
    texts = [one if isinstance(one, str) else one[-1]["content"] for one in completions]
    return [None if "dog" in str(p) else float(len(t)) for t, p in zip(texts, prompts, strict=True)]


def test_rewards(speaker: Speaker) -> None:
    judges = Judges(functions=[f"{__name__}:words", "length(target=3)"])
    conversation = talk(speaker, judges=judges, max=6)
    (answer,) = conversation.ask("the cat")
    assert answer.rewards[0] == Reward("words", float(len(answer.text)))
    assert answer.rewards[1].name == "length" and answer.rewards[1].value is not None
    (answer,) = conversation.ask("the dog")
    assert answer.rewards[0].value is None and answer.rewards[0].why
    assert judges.rewards("x", " ")[0] == Reward("words", None, "the answer is blank")
    with pytest.raises(RecipeError, match="it needs column 'answer' or 'solution'"):
        Judges(functions=["math_answer"])


ANSWERS = [Answer("one two " * 20, (1,), (2, 3), False), Answer("three\x1b[31m", (1,), (2,), True)]


def screen(width: int) -> str:
    out = Console(file=io.StringIO(), width=width, height=24, force_terminal=False)
    shown = view.Terminal(["left", "right"], out)
    shown.begin("hi")
    for model, answer in enumerate(ANSWERS):
        shown.piece(model, answer.text)
    shown.finish(ANSWERS)
    return out.file.getvalue()  # type: ignore[attr-defined]


def test_side_by_side_or_one_below_the_other() -> None:
    wide = screen(100).splitlines()
    head = next(line for line in wide if "left" in line)
    assert head.index("right") == 51
    assert wide[wide.index(head) + 1].startswith("one two one two")
    assert wide[wide.index(head) + 1][51:].startswith("three\ufffd[31m")
    assert all(len(line) <= 100 for line in wide)
    narrow = screen(60)
    assert narrow.index("left") < narrow.index("one two") < narrow.index("right\n")
    assert narrow.index("right\n") < narrow.index("three")
    for text in (screen(100), narrow):
        assert "\x1b" not in text and "cut off (/continue)" in text and "2 tokens" in text


# ---------------------------------------------------------------------- as a command


def test_a_pipe(folder: Path, plain: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "the cat\n/temperature 0\n\nthe dog\n/quit\nnever\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    words = ["chat", str(folder), "--vs", str(plain), "--max", "5", "--precision", "fp32"]
    assert main([*words, "--json", "--reward-funcs", "length(target=3)"]) == 0
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["user"] for row in rows] == ["the cat", "the dog"]
    assert [one["model"] for one in rows[0]["answers"]] == ["one", "two"]
    assert all(one["tokens"] <= 5 and "length" in one["rewards"] for one in rows[1]["answers"])
    assert "one (" in captured.err and "chat style: its tokenizer has a chat templ" in captured.err

    monkeypatch.setattr("sys.stdin", io.StringIO("a dog\n/tempp 1\nnever\n"))
    assert main([*words]) == 2
    captured = capsys.readouterr()
    assert captured.out.startswith("[one] ") and "\n[two] " in captured.out
    assert captured.err.splitlines()[-1].startswith("trimtab: /tempp: no such command")


def test_one_shot_and_refusals(folder: Path, plain: Path, capsys: Any, tmp_path: Path) -> None:
    words = ["chat", str(folder), "--max", "3", "--precision", "fp32", "--temperature", "0"]
    assert main([*words, "--prompt", "the cat"]) == 0
    first = capsys.readouterr().out
    assert main([*words, "--prompt", "the cat"]) == 0
    assert capsys.readouterr().out == first != "\n"
    for more, message in (
        (["--prompt", ""], "prompt: is empty"),
        (["--temperature", "-1"], "temperature=-1: must be a number"),
        (["--vs", str(tmp_path)], f"vs='{tmp_path}': not a model folder, it is empty"),
        (["--vs", str(plain), "--system", "x"], "system: a model that is asked by plain text"),
    ):
        given = words[:-2] if "--temperature" in more else words
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
