"""Tasks no dump has: every request against what olmes b532dd5's own functions make of the same rows; and the version of every task."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evalplane import data, formats
from evalplane.data import Prepared
from evalplane.task import Format, Task, load_task, task_names

Prepare = Callable[..., tuple[Task, Prepared]]


def first_context(name: str, format: str, prepared: Prepare) -> str:
    task, ready = prepared(name)
    return formats.requests(task.formats[format], ready.items[:1], ready.shots)[0].context


OLMES = json.loads((Path(__file__).parent / "olmes_requests.json").read_text())["requests"]
BY_OLMES = [
    ("mmlu:mc", "mmlu", "mc", {"prompt": "Question: {question}\n{options}Answer: "}),
    ("mmlu:rc", "mmlu", "cloze", {"description": ""}),
    ("mmlu_pro:mc", "mmlu_pro", "mc", {"description": " "}),
    ("agi_eval_english:1shot", "agieval_english", "mc", {"prompt": "{passage} Question: {question}\n{options}Answer:"}),
    ("triviaqa", "triviaqa", "generate", {"target": " {answer}"}),
    ("bbh:cot-v1", "bbh", "generate", {"prompt": "Q: {question}\nAnswer: Let's think step by step."}),
]


@pytest.mark.parametrize(("theirs", "name", "key", "change"), BY_OLMES)
def test_requests_are_what_olmes_makes_of_the_same_rows(
    theirs: str, name: str, key: str, change: dict[str, str], prepared: Prepare
) -> None:
    """Every request of the task, byte for byte; MMLU-Pro's with the shots that stand in here for its own."""
    task, ready = prepared(name)
    assert requests_sha256(task.formats[key], ready) == OLMES[theirs]
    part = Prepared(ready.items[:300], ready.shots)
    assert requests_sha256(task.formats[key].model_copy(update=change), part) != requests_sha256(
        task.formats[key], part
    )


def requests_sha256(format: Format, ready: Prepared) -> str:
    """Of all requests in order: a context where it differs from the one before, then each continuation."""
    digest, before = hashlib.sha256(), None
    for one in formats.requests(format, ready.items, ready.shots):
        if one.context != before:
            digest.update(one.context.encode())
        before = one.context
        digest.update(b"\0" + one.continuation.encode() + b"\n")
    return digest.hexdigest()


def test_mmlu(prepared: Prepare) -> None:
    task, ready = prepared("mmlu")
    assert len(ready.items) == 14042 and len(task.data.parts) == 57 and len(ready.shots) == 57 * 5
    letters, cloze = (first_context("mmlu", format, prepared) for format in ("mc", "cloze"))
    start = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    assert letters.startswith(
        f"{start}Question: Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\n A. 0\n B. 1\n C. 2\n D. 3\nAnswer: B\n\nQuestion: "
    )
    assert letters.endswith("over Q.\n A. 0\n B. 4\n C. 2\n D. 6\nAnswer:") and letters.count("Answer:") == 6
    assert cloze.startswith(
        f"{start}Question: Find all c in Z_3 such that Z_3[x]/(x^2 + c) is a field.\nAnswer: 1\n\nQuestion: "
    )
    assert cloze.endswith("over Q.\nAnswer:")
    last = formats.requests(task.formats["mc"], ready.items[-1:], ready.shots)
    assert last[0].context.startswith(start.replace("abstract algebra", "world religions"))
    assert [one.continuation for one in last] == [" A", " B", " C", " D"]


def test_a_subject_alone_is_asked_as_it_is_among_the_others(prepared: Prepare) -> None:
    whole, ready = prepared("mmlu")
    alone, its = prepared("mmlu_anatomy:mc::olmes")
    items = [one for one in ready.items if one.part == "anatomy"]
    of_whole = formats.requests(whole.formats["mc"], items, ready.shots)
    assert formats.requests(alone.formats["mc"], its.items, its.shots) == of_whole
    assert len(items) == 135 and len(its.shots) == 5


def test_mmlu_pro_says_what_stands_in_for_its_shots(prepared: Prepare) -> None:
    task, ready = prepared("mmlu_pro")
    assert ready.reason is not None
    assert "the first 5 rows of each part are the shots, and those 70 rows are not scored" in ready.reason
    assert len(ready.items) == 12032 - 70 and len(ready.shots) == 70
    asked = formats.requests(task.formats["mc"], ready.items[:1], ready.shots)
    assert asked[0].context.startswith("Question: ") and asked[0].context.count("\nAnswer:") == 6
    assert "\n J. " in asked[0].context and asked[-1].continuation in (" I", " J")
    assert {one.part for one in ready.shots} == set(task.data.parts)
    assert not {one.id for one in ready.shots} & {one.id for one in ready.items}


def test_agieval(prepared: Prepare) -> None:
    task, ready = prepared("agieval_english")
    counts = {part: len(of) for part, of in data.by_part(ready.items).items()}
    assert list(counts.values()) == [230, 510, 269, 651, 220, 206, 254, 306] and len(ready.shots) == 8
    context = first_context("agieval_english", "mc", prepared)
    assert context.startswith("A soloist will play six different guitar concertos")
    assert "\nQuestion: " in context and "\n A. " in context and "(A)" not in context
    maths = formats.requests(
        task.formats["mc"], [one for one in ready.items if one.part == "sat-math"][:1], ready.shots
    )
    assert maths[0].context.startswith("Question: $$(x-6)^{2}")  # no passage, so no empty line before it
    unlabelled = [
        choice for one in ready.items if one.part == "gaokao-english" for choice in one.choices if " A. " in choice[:4]
    ]
    assert unlabelled == []


def test_triviaqa(prepared: Prepare) -> None:
    _, ready = prepared("triviaqa")
    context = first_context("triviaqa", "generate", prepared)
    start = "Question: From which country did Angola achieve independence in 1975?\nAnswer: Portugal\n\nQuestion: "
    assert context.startswith(start)
    assert context.endswith(
        "\n\nQuestion: Which Lloyd Webber musical premiered in the US on 10th December 1993?\nAnswer:"
    )
    assert len(ready.items) == 7993 and "sunset boulevard" in ready.items[0].answers


def test_bbh_says_what_its_authors_said(prepared: Prepare, shared: Path) -> None:
    """Description and shots are those of the authors' prompt files but for `Q:` and `A:`, which OLMES writes out."""
    task, ready = prepared("bbh")
    assert len(ready.items) == 6511 and len(task.data.parts) == 27
    for part, (first, *_) in data.by_part(ready.items).items():
        authors = (shared / "data/eval/bbh/cot-prompts" / f"{part}.txt").read_text().split("-----\n", 1)[1]
        context = formats.requests(task.formats["generate"], [first], ready.shots)[0].context
        theirs = f"{authors}\n\nQ: {first.fields['question']}\nA: Let's think step by step."
        written_out = theirs.replace("\n\nQ: ", "\n\nQuestion: ").replace("\nA: Let's", "\nAnswer: Let's")
        assert _squeezed(context) == _squeezed(written_out), part


def _squeezed(text: str) -> str:
    return " ".join(text.split())


WHOLE = sorted(set(task_names()) - {"arithmetic", "held_out_bits_per_byte"})
VERSIONS = json.loads((Path(__file__).parent / "task_versions.json").read_text())


@pytest.mark.parametrize("name", WHOLE)
def test_a_task_that_asks_otherwise_has_another_version(name: str, prepared: Prepare) -> None:
    """All that the task file asks as it stands: a change here means `version` in the YAML must rise, and a line in task_versions.json."""
    task, ready = prepared(name)
    digest = hashlib.sha256()
    for key, format in task.formats.items():
        kept = {
            one: getattr(format, one)
            for one in ("metric", "average", "unconditioned", "grader", "max_new_tokens", "stop")
        }
        digest.update(json.dumps([key, kept, formats.shots_text(format, ready.shots)]).encode())
        for item in ready.items:
            asked = [formats.description(format, item), formats.prompt(format, item, item.gold or 0)]
            digest.update(json.dumps([*asked, formats.continuations(format, item), item.gold]).encode())
    assert VERSIONS[f"{name} {task.version}"] == digest.hexdigest()


def test_every_task_says_where_its_rows_are_from() -> None:
    for name in WHOLE:
        task = load_task(name)
        assert "prove" in task.source or "No dump has its prompts" in task.source or "as dumped" in task.source, name
        assert task.data.sha256 is not None, name
