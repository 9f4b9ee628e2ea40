"""`Run.chat` and `generate --chat`."""

import io
import json
import types

import pytest
from interop_cases import case, make_run

from paxlike.api.run import open_run
from paxlike.commands import chat
from paxlike.commands.run import generate_command
from paxlike.config import UserError
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.chat.template import ChatTemplate

USER = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = make_run(tmp_path_factory.mktemp("run") / "mine", case())
    (made / "tokenizer" / "chat_template.jinja").write_text(NAMED_TEMPLATES["plain"])
    return made


@pytest.fixture(scope="module")
def run(folder):
    return open_run(folder)


@pytest.fixture
def command(run, folder, monkeypatch, capsys):
    """command(*arguments, typed="") -> what `generate RUN ... --chat` prints."""
    monkeypatch.setattr(chat, "platform", lambda: types.SimpleNamespace(start=lambda _: None))
    monkeypatch.setattr("paxlike.api.run.open_run", lambda *_: run)

    def call(*arguments: str, typed: str = "") -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        generate_command([str(folder), *arguments, "--chat", "--temperature", "0"])
        return capsys.readouterr().out

    return call


def test_an_answer_continues_the_rendered_prompt(run):
    pieces = []
    text = run.chat(USER, 6, temperature=0, on_text=pieces.append)
    assert text == run.generate(["User:\nHello\n\nAssistant:\n"], 6, temperature=0)[0]
    assert "".join(pieces) == text and len(text) > 1
    # By default, an answer has what fits the context of 64 tokens.
    prompt = len("User:\nHello\n\nAssistant:\n")
    assert len(run.chat(USER, temperature=0).encode()) <= 64 - prompt


def test_a_token_that_ends_a_turn_ends_the_answer(run):
    asked = [{"role": "system", "content": "Be brief."}, *USER]
    whole = run.chat(asked, 8, temperature=0)
    ids = run.tokenizer.encode(whole).tolist()
    later = next(token for token in ids if token != ids[0])
    for stop in (ids[0], later):

        class Stopping(ChatTemplate):
            stops = (stop,)

        template = Stopping("plain", NAMED_TEMPLATES["plain"], run.tokenizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("paxlike.api.run.found_template", lambda *_, found=template: found)
            text = run.chat(asked, 8, temperature=0)
        assert text == run.tokenizer.decode(ids[: ids.index(stop)]) != whole


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'messages' is empty"),
        ([{"role": "robot", "content": "x"}], "has the role 'robot'"),
        ([{"role": "user", "content": "x" * 70}], "the model's context is 64 tokens"),
    ],
)
def test_messages_that_cannot_be_answered(messages, message, run):
    with pytest.raises(UserError, match=message):
        run.chat(messages)


def test_a_run_without_a_template(tmp_path):
    plain = open_run(make_run(tmp_path / "plain", case()))
    with pytest.raises(UserError, match="has no chat template.*chatml, llama3, plain"):
        plain.chat(USER)
    assert isinstance(plain.chat(USER, 1, template="plain"), str)


def test_the_command_answers_a_prompt_or_a_file(command, run, tmp_path):
    expected = run.chat(USER, 5, temperature=0)
    assert command("Hello", "--max-new-tokens", "5") == expected + "\n"
    path = tmp_path / "a.json"
    for content in (USER, {"messages": USER}):
        path.write_text(json.dumps(content))
        assert command("--messages", str(path), "--max-new-tokens", "5") == expected + "\n"
    with pytest.raises(UserError, match="leave out PROMPT"):
        command("Hello", "--messages", str(path))
    path.write_text("[]")
    with pytest.raises(UserError, match="has no list of messages"):
        command("--messages", str(path))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        command("--messages", str(tmp_path / "none.json"))


def test_typed_lines_are_turns_of_one_conversation(command, run, monkeypatch):
    asked = []

    def answer(messages, *_):
        asked.append([(one["role"], one["content"]) for one in messages])
        return "" if messages[-1]["content"] == "silence" else f"answer {len(asked)}"

    monkeypatch.setattr(run, "chat", answer)
    command("--system", "S", typed="one\n\nsilence\n two \n")
    system = ("system", "S")
    first = [("user", "one"), ("assistant", "answer 1")]
    assert asked == [
        [system, ("user", "one")],
        [system, *first, ("user", "silence")],
        [system, *first, ("user", "two")],
    ]


def test_a_prompt_may_begin_with_a_dash(command, run, folder, capsys):
    expected = run.chat([{"role": "user", "content": "--x"}], 3, temperature=0)
    generate_command(
        [str(folder), "--chat", "--temperature", "0", "--max-new-tokens", "3", "--", "--x"]
    )
    assert capsys.readouterr().out == expected + "\n"
