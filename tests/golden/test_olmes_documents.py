"""Tasks whose rows are here only inside a dump: what is proven is the prefix (made of the pools' raw shots) and how a prompt is put together.

That passage and question themselves are as published is not proven here: they are read from the dump's own documents.
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from evalplane import formats
from evalplane.data import Prepared
from evalplane.task import Request, Task

Prepare = Callable[..., tuple[Task, Prepared]]
Dump = Callable[[str], list[dict[str, Any]]]
Dumped = Callable[[str], list[tuple[str, str, int]]]
AsPairs = Callable[[Sequence[Request]], list[tuple[str, str, int]]]

TESTS = [
    ("arc_challenge", ("sample=null",), "arc_challenge/test_mc_5shot", "arc_challenge/test_rc_5shot", 1172),
    ("arc_easy", ("sample=null",), "arc_easy/test_mc_5shot", "arc_easy/test_rc_5shot", 2376),
    ("openbookqa", (), "openbookqa/test_mc_5shot", "openbookqa/test_rc_5shot", 500),
    ("boolq", (), "boolq/mc_5shot", "boolq/rc_5shot", 1000),
]


@pytest.mark.parametrize(("name", "overrides", "letters", "cloze", "num_items"), TESTS)
def test_both_formats_of_a_test_split(
    name: str,
    overrides: tuple[str, ...],
    letters: str,
    cloze: str,
    num_items: int,
    prepared: Prepare,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    """Letters are assembled from the cloze dump's choices, so the two dumps hold each other."""
    task, ready = prepared(name, *overrides)
    assert len(ready.items) == num_items
    assert as_pairs(formats.requests(task.formats["mc"], ready.items, ready.shots)) == dumped(letters)
    alone = None if name == "boolq" else "Answer:"
    plain = task.formats["cloze"].model_copy(update={"unconditioned": alone})
    assert as_pairs(formats.requests(plain, ready.items, ready.shots)) == dumped(cloze)


def test_arc_easy_scores_a_thousand_of_the_test_split(prepared: Prepare) -> None:
    every, drawn = prepared("arc_easy", "sample=null")[1].items, prepared("arc_easy")[1].items
    assert len({item.id for item in drawn}) == len(drawn) == 1000
    assert {item.id for item in drawn} < {item.id for item in every}


@pytest.mark.parametrize(
    ("name", "folder", "num_items"),
    [
        ("squad", "squad/bpb_5shot", 1000),
        ("coqa", "coqa/bpb_0shot", 7983),
        ("jeopardy", "jeopardy/bpb_5shot", 2116),
    ],
)
def test_generated_tasks(
    name: str,
    folder: str,
    num_items: int,
    prepared: Prepare,
    dump: Dump,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared(f"{name}:bpb")
    assert len(ready.items) == num_items
    assert as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots)) == dumped(folder)
    generated, asked = prepared(name)[0].formats["generate"], dump(folder)[0]["request"]
    assert (list(generated.stop), generated.max_new_tokens) == (asked["stop_sequences"], 50)


def test_drop_without_the_dump_s_defect(
    prepared: Prepare,
    dump: Dump,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    """All 1000 gold continuations of the dump are Python tuples, ` ('swedish',)`; ours are the spans, joined as a shot joins them."""
    task, ready = prepared("drop:bpb")
    made, theirs = as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots)), dumped("drop/bpb_5shot")
    assert [context for context, _, _ in made] == [context for context, _, _ in theirs]
    assert sum(text.startswith(" ('") or text.startswith(' ("') for _, text, _ in theirs) == 1000
    golds = [row["doc"]["answers"][0] for row in dump("drop/bpb_5shot")]
    assert [text for _, text, _ in made] == [" " + ", ".join(spans) for spans in golds]
    assert max(map(len, golds)) > 1
    generated = prepared("drop")[0].formats["generate"]
    assert list(generated.stop) == dump("drop/bpb_5shot")[0]["request"]["stop_sequences"]
    assert generated.max_new_tokens == 100  # drop::olmes; the in-loop dump says 50


MATH = [
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
]


@pytest.mark.parametrize("subject", MATH)
def test_math_in_loop(
    subject: str,
    prepared: Prepare,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared(f"math_bpb_{subject}")
    made = as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots))
    assert made == dumped(f"minerva_math_{subject}/gold_bpb_0shot")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("math500_bpb", "minerva_math_500/gold_bpb_0shot"),
        ("lambada", "lambada/bpb_0shot"),
        ("humaneval", "codex_humaneval/gold_bpb_3shot"),
        ("mbpp", "codex_mbpp/gold_bpb_3shot"),
    ],
)
def test_in_loop_sets(
    name: str,
    folder: str,
    prepared: Prepare,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    """MATH-500 is assembled; of the other three the prompt is the dump's own, so this shows only that nothing is lost."""
    task, ready = prepared(name)
    assert as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots)) == dumped(folder)


@pytest.mark.parametrize("name", ["csqa", "piqa", "hellaswag", "arc_easy", "boolq"])
def test_in_loop_choices_are_the_gold_ones_of_the_cloze_dump(
    name: str,
    prepared: Prepare,
    dump: Dump,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared(f"{name}:bpb", "sample=null") if name == "arc_easy" else prepared(f"{name}:bpb")
    rows = dump("arc_easy/test_rc_5shot" if name == "arc_easy" else f"{name}/rc_5shot")
    gold = [r["request"] for r in rows if r["doc_id"] < 1_000_000 and r["idx"] == r["label"]]
    made = as_pairs(formats.requests(task.formats["bpb"], ready.items, ready.shots))
    assert made == [(one["context"], one["continuation"], 0) for one in gold]


@pytest.mark.parametrize(
    ("name", "folder", "change"),
    [
        (
            "squad:bpb",
            "squad/bpb_5shot",
            {"prompt": "Title: {title}\nBackground: {passage}\nQuestion: {question}\nAnswer: "},
        ),
        ("coqa:bpb", "coqa/bpb_0shot", {"description": ""}),
        ("jeopardy:bpb", "jeopardy/bpb_5shot", {"prompt": "Category: {category}\nQuestion:  {question}\nAnswer:"}),
        ("math500_bpb", "minerva_math_500/gold_bpb_0shot", {"target": " {solution}\n"}),
    ],
)
def test_a_changed_byte_is_seen(
    name: str,
    folder: str,
    change: dict[str, str],
    prepared: Prepare,
    dumped: Dumped,
    as_pairs: AsPairs,
) -> None:
    task, ready = prepared(name)
    made = formats.requests(task.formats["bpb"].model_copy(update=change), ready.items, ready.shots)
    assert as_pairs(made) != dumped(folder)
