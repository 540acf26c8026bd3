"""What each format asks, on an item small enough to read; the real prompts are in tests/golden."""

import pytest

from evalplane import formats, rows
from evalplane.task import Item, gold_format, load_task
from triplane.errors import UsageError

SKY = Item("1", {"question": "What colour is the sky?"}, ("red", "blue"), gold=1)
GRASS = Item("2", {"question": "What colour is grass?"}, ("green", "grey"), gold=0)


def test_letters() -> None:
    made = formats.requests(load_task("arc_easy").formats["mc"], [SKY], [GRASS])
    context = (
        "Question: What colour is grass?\n A. green\n B. grey\nAnswer: A\n\n"
        "Question: What colour is the sky?\n A. red\n B. blue\nAnswer:"
    )
    assert [(r.context, r.continuation, r.choice) for r in made] == [(context, " A", 0), (context, " B", 1)]


def test_cloze_with_and_without_unconditioned_requests() -> None:
    plain = load_task("arc_easy").formats["cloze"]
    context = "Question: What colour is the sky?\nAnswer:"
    assert [(r.context, r.continuation) for r in formats.requests(plain, [SKY], [])] == [
        (context, " red"),
        (context, " blue"),
    ]
    both = formats.requests(plain.model_copy(update={"unconditioned": "Answer:"}), [SKY], [])
    assert [(r.context, r.continuation, r.unconditioned) for r in both[2:]] == [
        ("Answer:", " red", True),
        ("Answer:", " blue", True),
    ]


def test_a_generated_answer_is_asked_with_its_stop_and_length() -> None:
    item = Item("1", {"question": "1+1=\n"}, answers=("2",))
    made = formats.requests(load_task("arithmetic").formats["generate"], [item], [])
    assert [(r.context, r.continuation, r.max_new_tokens, r.stop) for r in made] == [("1+1=\n", "", 24, ("\n",))]


def test_a_document_is_its_own_continuation() -> None:
    item = Item("1", {"text": "Some text.", "source": "web"})
    made = formats.requests(load_task("held_out_bits_per_byte").formats["bits_per_byte"], [item], [])
    assert [(r.context, r.continuation) for r in made] == [("", "Some text.")]


def test_wikihow_marks_go() -> None:
    # Strip comes first, so the mark's own space stays: the dumps have it too.
    assert formats.clean_wikihow(" [header] How to [title] Put off. [step] Wait") == " How to. Put off. Wait"
    assert formats.clean_wikihow("do this. [title] Then that") == "do this. Then that"


def test_values_are_not_templates_and_unknown_fields_are_named() -> None:
    item = Item("7", {"question": "What is {options}?"}, ("a", "b"), 0)
    format = load_task("arc_easy").formats["cloze"]
    assert formats.prompt(format, item) == "Question: What is {options}?\nAnswer:"
    with pytest.raises(UsageError, match=r"\{passage\}, which item 7 lacks"):
        formats.prompt(format.model_copy(update={"prompt": "{passage}"}), item)


def test_partial_scoring_ends_the_context_with_the_choice() -> None:
    row = {
        "index": 0,
        "sentence": "The cup fell off the table as _ was wet.",
        "option1": "it",
        "option2": "the cup",
        "answer": "2",
    }
    task, item = load_task("winogrande"), rows.winogrande(row)
    made = formats.requests(task.formats["cloze"], [item], [item])
    before = "The cup fell off the table as the cup was wet.\n\nThe cup fell off the table as "
    assert [(r.context, r.continuation) for r in made] == [
        (f"{before}it", " was wet."),
        (f"{before}the cup", " was wet."),
    ]
    assert formats.prompt(task.formats["mc"], item).startswith(
        "Fill in the blank: The cup fell off the table as ___ was wet.\n A. it"
    )


def test_each_part_has_its_own_description_and_shots() -> None:
    format = load_task("mmlu").formats["mc"]
    made = [
        Item(f"{part}{i}", {"question": f"{part} {i}?", "subject": part}, ("p", "q"), i, part=part)
        for part in "xy"
        for i in (0, 1)
    ]
    asked = formats.requests(format, [made[1], made[3]], [made[2], made[0]])
    assert [r.context.split("\n\n")[0] for r in asked[::2]] == [
        "The following are multiple choice questions (with answers) about x.",
        "The following are multiple choice questions (with answers) about y.",
    ]
    assert [r.context.split("\n\n")[1] for r in asked[::2]] == [
        "Question: x 0?\n A. p\n B. q\nAnswer: A",
        "Question: y 0?\n A. p\n B. q\nAnswer: A",
    ]


def test_gold_asks_for_the_right_answer_alone() -> None:
    cloze = gold_format(load_task("arc_easy"))
    assert [(r.context, r.continuation) for r in formats.requests(cloze, [SKY], [GRASS])] == [
        ("Question: What colour is grass?\nAnswer: green\n\nQuestion: What colour is the sky?\nAnswer:", " blue")
    ]
    item = Item("1", {"question": "1+1?", "solution": "1 and 1 is 2. So the answer is 2."}, answers=("2",))
    made = formats.requests(gold_format(load_task("gsm8k")), [item], [])
    assert [(r.context, r.continuation) for r in made] == [
        ("Question: 1+1?\nAnswer:", " 1 and 1 is 2. So the answer is 2.")
    ]
    with pytest.raises(UsageError, match="has no answers in words"):
        gold_format(load_task("mmlu_pro"))


def test_ten_choices_have_ten_letters() -> None:
    item = Item("1", {"question": "?"}, tuple("abcdefghij"), 9)
    made = formats.requests(load_task("mmlu_pro").formats["mc"], [item], [])
    assert made[0].context == "Question: ?\n" + "".join(f" {one}. {one.lower()}\n" for one in "ABCDEFGHIJ") + "Answer:"
    assert [r.continuation for r in made] == [f" {one}" for one in "ABCDEFGHIJ"]
