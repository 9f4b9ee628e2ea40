"""The harness on a model: its requests answered by the model's own probabilities, its tasks run
offline from local files.
"""

import json

import jax
import numpy as np
import pytest
from helpers import host_params, mesh_of, numerics_of, place
from interop_cases import case, expected_logits

from paxlike.config import UserError
from paxlike.data.tokenizer import BytesTokenizer
from paxlike.training.loaded_run import LoadedRun

pytestmark = pytest.mark.optional("lm_eval")
CONFIG = case()
CHOICES = """
task: colors
dataset_path: json
dataset_kwargs:
  data_files: {test: colors.jsonl, train: colors_train.jsonl}
output_type: multiple_choice
test_split: test
fewshot_split: train
fewshot_config: {sampler: first_n}
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: " "
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATED = """
task: continued
dataset_path: json
dataset_kwargs:
  data_files: {test: colors.jsonl}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: texts
dataset_path: json
dataset_kwargs:
  data_files: {test: colors.jsonl}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: byte_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
"""
DOCS = [
    {
        "question": f"{n} The color of {word} is",
        "choices": ["red", "green", "blue"],
        "answer": n % 3,
    }
    for n, word in enumerate(["grass", "blood", "sky", "coal", "snow"])
]


def logprob(context: str, continuation: str) -> tuple[float, bool]:
    """By the reference, in float64, of a byte-level model whose texts follow the end-of-document
    token.
    """
    encode = BytesTokenizer().encode
    before = encode(context).tolist() or [1]
    tokens = np.array(before + encode(continuation).tolist())
    logits = expected_logits(CONFIG, tokens=tokens[:-1])[len(before) - 1 :]
    targets = tokens[len(before) :]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logprobs[np.arange(len(targets)), targets].sum(), bool(
        (logits.argmax(-1) == targets).all()
    )


@pytest.fixture(scope="module")
def trained():
    mesh = mesh_of(1, 2, 4)
    with jax.set_mesh(mesh):
        params = place(CONFIG, host_params(CONFIG))
    return LoadedRun(CONFIG, numerics_of(CONFIG), params, 0, BytesTokenizer(), mesh)


@pytest.fixture(scope="module")
def harness(trained):
    from paxlike.interop.lm_eval_harness import Harness

    return Harness(trained, batch_size=4)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    for name, text in (("colors", CHOICES), ("continued", GENERATED), ("texts", ROLLING)):
        (folder / f"{name}.yaml").write_text(text)
    (folder / "colors.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / "colors_train.jsonl").write_text(
        "".join(json.dumps(doc) + "\n" for doc in DOCS[::-1])
    )
    return folder


def request(*arguments):
    from lm_eval.api.instance import Instance

    return Instance(request_type="loglikelihood", doc={}, arguments=arguments, idx=0)


def test_loglikelihoods_are_the_models(harness):
    pairs = [
        ("The sky is", " blue"),
        ("", "Once"),
        ("a", "b"),
        ("x " * 20, "end"),
        ("trailing ", "space"),
    ]
    for (found, greedy), (context, continuation) in zip(
        harness.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True),
        pairs,
        strict=True,
    ):
        if context.endswith(" "):  # the harness moves spaces to the continuation
            spaces = len(context) - len(context.rstrip())
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        expected, expected_greedy = logprob(context, continuation)
        assert found == pytest.approx(expected, abs=1e-3) and greedy == expected_greedy


def test_a_long_context_loses_its_beginning(harness):
    context = "y" * 100
    ((found, _),) = harness.loglikelihood([request(context, "ab")], disable_tqdm=True)
    assert found == pytest.approx(logprob(context[-63:], "ab")[0], abs=1e-3)
    with pytest.raises(UserError, match="a continuation has 100 tokens"):
        harness.loglikelihood([request("a", context)], disable_tqdm=True)


def test_rolling_covers_every_token_once(harness):
    text = "".join(chr(97 + n % 26) for n in range(150))
    found, short = harness.loglikelihood_rolling([request(text), request("short")])
    # 64 tokens after the end of a document, then windows of 64 that each see the token before them,
    # the last a full one.
    pieces = [("", text[:64]), (text[63], text[64:128])]
    total = sum(logprob(*piece)[0] for piece in pieces)
    total += logprob(text[85:128], text[128:])[0]
    assert found == pytest.approx(total, abs=1e-2)
    assert short == pytest.approx(logprob("", "short")[0], abs=1e-3)


def test_generation_stops_where_it_should(harness):
    greedy = {"max_gen_toks": 8, "until": []}
    (whole,) = harness.generate_until([request("abc", greedy)])
    assert whole
    stop = whole[1]
    cut, _, again = harness.generate_until(
        [
            request("abc", {**greedy, "until": [stop]}),
            request("zz", greedy),
            request("abc", {**greedy, "until": "never"}),
        ]
    )
    assert cut == whole.split(stop)[0] and again == whole


@pytest.mark.slow
@pytest.mark.parametrize("shots", [None, 1, 2])
def test_multiple_choice_with_examples(shots, trained, tasks, monkeypatch):
    from paxlike.interop import lm_eval_harness

    asked, answer = {}, lm_eval_harness.Harness.loglikelihood

    def remember(self, requests, **words):
        answers = answer(self, requests, **words)
        asked.update({one.args: found for one, (found, _) in zip(requests, answers, strict=True)})
        return answers

    monkeypatch.setattr(lm_eval_harness.Harness, "loglikelihood", remember)
    numbers, table = lm_eval_harness.evaluate_tasks(trained, ["colors"], tasks, shots, None, 4)
    shown = "".join(
        f"{doc['question']} {doc['choices'][doc['answer']]}\n\n" for doc in DOCS[::-1][: shots or 0]
    )
    right = 0
    for doc in DOCS:
        scores = [
            logprob((shown + doc["question"])[-64 + len(choice) :], f" {choice}")[0]
            for choice in doc["choices"]
        ]
        right += int(np.argmax(scores) == doc["answer"])
        for choice, expected in zip(doc["choices"], scores, strict=True):
            assert asked[shown + doc["question"], f" {choice}"] == pytest.approx(expected, abs=1e-3)
    assert (
        len(asked) == 15
        and numbers["colors"]["acc,none"] == pytest.approx(right / len(DOCS))
        and "colors" in table
    )


def test_tasks_that_fix_their_examples(trained, tasks, tmp_path):
    from paxlike.interop.lm_eval_harness import evaluate_tasks

    (tmp_path / "colors.yaml").write_text(CHOICES + "num_fewshot: 0\n")
    for name in ("colors.jsonl", "colors_train.jsonl"):
        (tmp_path / name).write_text((tasks / name).read_text())
    with pytest.raises(UserError, match=r"the tasks \['colors'\] set num_fewshot: 0 themselves"):
        evaluate_tasks(trained, ["colors"], tmp_path, 2, 1, 4)


@pytest.mark.slow
def test_generated_and_rolling_tasks(trained, tasks):
    from paxlike.interop.lm_eval_harness import evaluate_tasks

    numbers, _ = evaluate_tasks(trained, ["continued", "texts"], tasks, None, 3, 4)
    assert numbers["continued"]["exact_match,none"] == 0.0
    nats = -sum(logprob("", doc["question"])[0] for doc in DOCS[:3]) / sum(
        len(doc["question"]) for doc in DOCS[:3]
    )
    assert numbers["texts"]["byte_perplexity,none"] == pytest.approx(np.exp(nats), rel=1e-3)


def generated(harness, context: str, **settings) -> str:
    return harness.generate_until([request(context, {"until": [], **settings})])[0]


def test_the_prompt_keeps_its_end_and_what_fits_is_generated(trained, capsys):
    """The default, 256 new tokens, is more than the model's context of 64."""
    from paxlike.interop.lm_eval_harness import Harness

    harness = Harness(trained, batch_size=4)
    short, long = "The color is", "x" * 100 + "The color of grass is"
    found = generated(harness, short)
    assert found.startswith(generated(harness, short, max_gen_toks=8)[:4])
    assert found == generated(harness, short, max_gen_toks=64 - len(short))
    told = capsys.readouterr().err
    assert told.count("note: the model's context is 64 tokens") == 1
    assert "keeps its last 12 and gets at most 52 new ones" in told
    assert generated(harness, long) == generated(harness, long[-48:], max_gen_toks=16)
    both = harness.generate_until([request(text, {"until": []}) for text in (short, long)])
    assert both == [found, generated(harness, long)]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_names_of_the_maximum_number_of_new_tokens(harness, name):
    longest = generated(harness, "The color", max_gen_toks=20)
    found = generated(harness, "The color", **{name: 4})
    assert longest.startswith(found.rstrip("\ufffd")) and len(found) <= 4


def test_git_is_not_asked_for_a_commit():
    import lm_eval.evaluator

    import paxlike.interop.lm_eval_harness  # noqa: F401

    assert lm_eval.evaluator.get_git_commit_hash() is None


def test_tasks_that_are_not_there(trained, tasks):
    from paxlike.interop.lm_eval_harness import evaluate_tasks

    with pytest.raises(
        UserError,
        match=r"the tasks \['colours'\] are not in .*; "
        r"available are \['colors', 'continued', 'texts'\]",
    ):
        evaluate_tasks(trained, ["colours"], tasks, None, None, 4)
    with pytest.raises(UserError, match="there is no directory"):
        evaluate_tasks(trained, ["colors"], tasks / "nothing", None, None, 4)
