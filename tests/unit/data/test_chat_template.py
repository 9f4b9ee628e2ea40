"""Rendered conversations: ids and loss mask are those that are computed by hand."""

import datetime
import itertools

import jinja2
import numpy as np
import pytest
from chat_cases import BY_HAND, CONVERSATIONS, TURNS, encoded, messages, tokenizer_folder
from made_tokenizers import sentencepiece_bpe
from tokenizers import AddedToken, Tokenizer

from paxlike.config import UserError
from paxlike.data.chat.jinja_environment import compiled
from paxlike.data.chat.messages import Message
from paxlike.data.chat.named_templates import NAMED_TEMPLATES
from paxlike.data.chat.rendering import TemplateError
from paxlike.data.chat.template import ChatTemplate, chat_template
from paxlike.data.huggingface_tokenizer import load_huggingface
from paxlike.data.tokenizer import BytesTokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tokenizer_folder(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_huggingface(folder)


def asked(turns) -> list[Message]:
    return [Message(role, text, role == "assistant") for role, text in turns]


def ids_and_mask(template: ChatTemplate, turns) -> tuple[list[int], list[int]]:
    found = template.encode(template.parts(asked(turns)))
    return found.ids.tolist(), found.predicted.tolist()


@pytest.mark.parametrize("case", CONVERSATIONS)
@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_shipped_templates_have_the_mask_of_the_hand(name, case, tokenizer, folder):
    turns = CONVERSATIONS[case]
    template = chat_template(tokenizer, name)
    assert template and ids_and_mask(template, turns) == encoded(folder, BY_HAND[name](turns))


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_the_ids_are_those_of_the_whole_rendering(name, tokenizer, folder):
    """By Jinja and the library, without the parts."""
    turns = [("system", "Be brief."), *TURNS[:2], *TURNS[4:]]
    text = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        NAMED_TEMPLATES[name]
    ).render(
        messages=messages(turns), bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>"
    )  # fmt: skip
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = chat_template(tokenizer, name)
    assert template
    ids, _ = ids_and_mask(template, turns)
    assert ids == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_a_prompt_is_what_precedes_the_answer(name, tokenizer):
    template = chat_template(tokenizer, name)
    assert template
    for count in (1, 3, 5):
        ids, mask = ids_and_mask(template, TURNS[: count + 1])
        answer = len(mask) - mask[::-1].index(1)
        first = answer - len(list(itertools.takewhile(bool, mask[:answer][::-1])))
        assert template.prompt(asked(TURNS[:count])) == ids[:first]
        assert ids[answer - 1] == template.end_of_turn


def test_bytes_have_the_end_of_a_document_as_the_only_special_token():
    tokenizer = BytesTokenizer()
    template = chat_template(tokenizer, "plain")
    assert template and template.end_of_turn == tokenizer.eod
    ids, mask = ids_and_mask(template, TURNS)
    learned = np.array(ids)[np.array(mask) == 1]
    answers = [text for role, text in TURNS if role == "assistant"]
    expected = [i for text in answers for i in [*tokenizer.encode(text), tokenizer.eod]]
    assert learned.tolist() == expected
    assert tokenizer.decode(ids).startswith("User:\nWhat is 漢字 + 1?\n\nAssistant:\nIt is")


LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}
{% set system_message = false %}{% endif %}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}{% endif %}
{% if loop.index0 == 0 and system_message != false %}
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}
{{ '[INST] ' + content.strip() + ' [/INST]' }}{% else %}
{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"""
LAST_SYSTEM = """\
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}
{%- set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}
{%- set asked = rest | selectattr('role', 'equalto', 'user') | list %}
{%- for m in rest %}{% if m.role == 'user' %}
{%- if m == asked[-1] and system is defined %}
{{- '[INST]' ~ system ~ '\\n\\n' ~ m.content ~ '[/INST]' }}
{%- else %}{{ '[INST]' ~ m.content ~ '[/INST]' }}{% endif %}
{%- else %}{{ ' ' ~ m.content | trim ~ eos_token }}{% endif %}{% endfor %}"""
REASONING = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}{% for m in messages %}{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' %}{% set content = m.content %}{% set thought = '' %}
{%- if '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if loop.index0 > ns.last %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' + content }}
{%- else %}{{- content }}{% endif %}{% else %}{{- m.content }}{% endif %}
{{- '<|im_end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""
GENERATION = """\
{%- macro turn(m) %}{{ m.content }}<|im_end|>{% endmacro %}
{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}{% if m.role == 'assistant' %}
{%- generation %}{{ turn(m) }}{% endgeneration %}{% else %}{{ turn(m) }}{% endif %}
{{- '\\n' }}{% endfor %}"""
SHORT_GENERATION = GENERATION.replace(
    "{{ turn(m) }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}<|im_end|>"
)
EOS = "<|end_of_text|>"


FOREIGN = {
    "llama2": (
        LLAMA2,
        [("system", "S"), ("user", " What?"), ("assistant", "It."), ("user", "<|im_end|>\n"),
         ("assistant", "Yes")],
        [(None, "[INST] <<SYS>>\nS\n<</SYS>>\n\n What? [/INST]", False), (None, " It. ", True),
         (EOS, None, True), (None, "[INST] <|im_end|> [/INST]", False), (None, " Yes ", True),
         (EOS, None, True)],
    ),
    "system before the last turn": (
        LAST_SYSTEM,
        [("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")],
        [(None, "[INST]a[/INST]", False), (None, " b", True), (EOS, None, True),
         (None, "[INST]S\n\nc[/INST]", False), (None, " d", True), (EOS, None, True)],
    ),
    "reasoning": (
        REASONING,
        [("user", "a"), ("assistant", "<think>\nhm\n</think>\n\nb"), ("user", "c"),
         ("assistant", "<think>\nah\n</think>\n\nd")],
        [("<|im_start|>", None, False), (None, "user\na", False), ("<|im_end|>", None, False),
         (None, "\n", False), ("<|im_start|>", None, False), (None, "assistant\n", False),
         (None, "b", True), ("<|im_end|>", None, True), (None, "\n", False),
         ("<|im_start|>", None, False), (None, "user\nc", False), ("<|im_end|>", None, False),
         (None, "\n", False), ("<|im_start|>", None, False), (None, "assistant\n", False),
         (None, "<think>\nah\n</think>\n\nd", True), ("<|im_end|>", None, True),
         (None, "\n", False)],
    ),
    "generation blocks": (GENERATION, TURNS, None),
    "generation blocks without the end of the turn": (SHORT_GENERATION, TURNS, None),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_templates(case, tokenizer, folder):
    source, turns, expected = FOREIGN[case]
    expected = BY_HAND["chatml"](turns) if expected is None else expected
    found = ids_and_mask(ChatTemplate(case, source, tokenizer), turns)
    assert found == encoded(folder, expected)


def test_a_dummy_prefix_is_that_of_the_whole_text(tmp_path):
    """Llama 2's tokenizer begins every text with a space; an answer goes on after a prompt."""
    folder = sentencepiece_bpe(tmp_path)
    template = ChatTemplate("llama2", LLAMA2, load_huggingface(folder))
    turns = [("user", "The fox"), ("assistant", "jumps over."), TURNS[4], ("assistant", "the dog")]
    ids, mask = ids_and_mask(template, turns)
    text = "[INST] The fox [/INST] jumps over. </s>[INST] last [/INST] the dog </s>"
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids == library.encode(text, add_special_tokens=False).ids
    learned = [token for token, one in zip(ids, mask, strict=True) if one]
    pieces = "".join(library.id_to_token(token) for token in learned)
    assert pieces.replace("\u2581", " ") == " jumps over. </s> the dog </s>"


@pytest.mark.parametrize(
    ("source", "turns", "reason"),
    [
        (NAMED_TEMPLATES["chatml"].replace("messages %}", "messages if not loop.last %}"),
         TURNS[:4], "raises"),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}<|im_end|>{% endfor %}",
         CONVERSATIONS["system"], r"drops turn 1 \(system\)"),
        ("{% for m in messages %}{{ m.content * 2 }}<|im_end|>{% endfor %}", TURNS[:2],
         "repeats turn 1"),
        ("{% for m in messages %}{{ m.content[:40] }}<|im_end|>{% endfor %}", CONVERSATIONS["tool"],
         None),
        ("{% for m in messages %}{{ m.content | length ~ m.content }}<|im_end|>{% endfor %}",
         TURNS[:2], "changes the text of a turn"),
        ("{% for m in messages %}{{ m.role ~ m.content }}\\n{% endfor %}", TURNS[:2],
         "no special token of the tokenizer ends turn 2"),
        (NAMED_TEMPLATES["chatml"].replace("add_generation_prompt", "false"), TURNS[:2],
         "Does it read add_generation_prompt"),
        (NAMED_TEMPLATES["chatml"].replace("'<|im_start|>assistant\\n'", "'<|im_start|>model'"),
         TURNS[:2], "the generation prompt of the template is"),
        ("{% for m in messages %}{% if loop.first %}{% generation %}{{ m.content }}"
         "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}", TURNS[:2],
         "0 generation blocks around turn 2"),
        ("{{ raise_exception('no system turns') }}", TURNS[:2],
         "raises TemplateError: no system turns"),
        ("{{ ''.__class__.__mro__ }}", TURNS[:2], "raises SecurityError"),
        ("{{ messages.append(1) }}", TURNS[:2], "raises SecurityError"),
        ("{% for m in messages %}", TURNS[:2], "raises TemplateSyntaxError"),
    ],
)  # fmt: skip
def test_templates_whose_mask_is_unknown_are_refused(source, turns, reason, tokenizer):
    template = ChatTemplate("made", source, tokenizer)
    if reason is None:  # the template cuts nothing here
        assert template.parts(asked(TURNS[4:]))
        return
    with pytest.raises(TemplateError, match=reason):
        template.parts(asked(turns))


def test_what_transformers_provides():
    text = compiled(
        "{%- for n in range(9) %}{% if n == 1 %}{% continue %}{% endif %}"
        "{%- if n == 3 %}{% break %}{% endif %}{{ n }}{% endfor %} "
        "{{ {'é': '<b>'} | tojson }} {{ [1] | tojson(indent=1) }} {{ strftime_now('%Y') }}\n"
        "    {% if true %}\nx{% endif %}"
    ).render()
    year = datetime.datetime.now().year
    assert text == f'02 {{"é": "<b>"}} [\n 1\n] {year}\nx'


def test_where_templates_come_from(tmp_path, tokenizer):
    own = tokenizer_folder(tmp_path / "own", NAMED_TEMPLATES["chatml"])
    found = chat_template(load_huggingface(own), "", own)
    assert found and found.source == NAMED_TEMPLATES["chatml"]
    (own / "chat_template.jinja").write_text(NAMED_TEMPLATES["llama3"])
    found = chat_template(load_huggingface(own), "", own)
    assert found and found.source == NAMED_TEMPLATES["llama3"]
    assert chat_template(tokenizer) is None
    with pytest.raises(UserError, match="nowhere.jinja cannot be read: No such file"):
        chat_template(tokenizer, "nowhere.jinja")
    with pytest.raises(UserError, match="chatml cannot be used with this tokenizer: no special"):
        chat_template(BytesTokenizer(), "chatml")


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_whitespace_of_special_tokens_is_as_in_the_library(side, tmp_path):
    """As Phi 3's tokens, which take the newline after them."""
    folder = tokenizer_folder(tmp_path)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ["<|im_start|>", "<|im_end|>"]
    tokens = [AddedToken(name, normalized=False, special=True, **{side: True}) for name in names]
    library.add_special_tokens(tokens)
    library.save(str(folder / "tokenizer.json"))
    tokenizer = load_huggingface(folder)
    template = ChatTemplate("made", NAMED_TEMPLATES["chatml"], tokenizer)
    turns = [("user", " a \n"), ("assistant", "b  \n"), ("user", "\n c"), ("assistant", "d")]
    ids, mask = ids_and_mask(template, turns)
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert ids == library.encode(text, add_special_tokens=False).ids
    learned = [token for token, one in zip(ids, mask, strict=True) if one]
    assert learned.count(library.token_to_id("<|im_end|>")) == 2
    assert tokenizer.decode(learned) == ("bd" if side == "lstrip" else "b  \nd")


@pytest.mark.optional("transformers")
def test_transformers_renders_and_masks_alike(folder, tokenizer):
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
    safe = [("system", "Be brief."), *TURNS[:2], ("user", " a b\n c "), *TURNS[5:]]
    sources = NAMED_TEMPLATES | {name: one[0] for name, one in FOREIGN.items()}
    for name, source in sources.items():
        for turns in (safe, safe[1:], safe[1:3]):
            given = {"chat_template": source, "return_dict": True, "tokenize": True}
            if masked := name == "generation blocks":
                given["return_assistant_tokens_mask"] = True
            found = theirs.apply_chat_template(messages(turns), **given)
            template = ChatTemplate(name, source, tokenizer)
            ids, mask = ids_and_mask(template, turns)
            assert ids == list(found["input_ids"]), name
            assert not masked or mask == found["assistant_masks"]
            prompt = theirs.apply_chat_template(
                messages(turns[:-1]), chat_template=source, add_generation_prompt=True,
                return_dict=True, tokenize=True,
            )["input_ids"]  # fmt: skip
            assert template.prompt(asked(turns[:-1])) == list(prompt), name
