"""A row of each form becomes the item it should, and a row of another form is an error that its reader names."""

import pytest

from evalplane import rows
from evalplane.rows import ROWS
from evalplane.task import Item


def test_openbookqa_and_commonsense_qa_are_like_arc() -> None:
    choices = {"text": ["a", "b"], "label": ["A", "B"]}
    assert rows.openbookqa({"id": "7-1", "question_stem": "q", "choices": choices, "answerKey": "B"}) == Item(
        "7-1", {"question": "q"}, ("a", "b"), 1
    )


@pytest.mark.parametrize(("label", "gold"), [(1, 0), (0, 1)])
def test_boolq_s_yes_comes_first(label: int, gold: int) -> None:
    row = {"idx": 3, "passage": "T -- p", "question": "is it", "label": label}
    assert rows.boolq(row) == Item("3", {"passage": "T -- p", "question": "is it"}, ("yes", "no"), gold)


def test_a_document_of_a_dump_is_the_row_again() -> None:
    query = "T -- p\nQuestion: of what?\nQuestion: is it?\nAnswer:"
    found = rows.boolq_document({"idx": 3, "query": query, "choices": ["yes", "no"], "gold": 1})
    assert found == Item("3", {"passage": "T -- p\nQuestion: of what?", "question": "is it"}, ("yes", "no"), 1)
    squad = {
        "id": "s",
        "title": "T",
        "answers_text": ["a", "b"],
        "query": "Title: T\nBackground: p\nQuestion: q?\nAnswer:",
    }
    raw = {"id": "s", "title": "T", "context": "p", "question": "q?", "answers": {"text": ["a", "b"]}}
    assert rows.squad_document(squad) == rows.squad(raw)
    asked = {"index": 4, "query": "Category: SCIENCE: NEW\nQuestion: q\nAnswer:", "answer": "a"}
    assert rows.jeopardy_document(asked).fields == {"category": "SCIENCE: NEW", "question": "q"}


def test_winogrande_parts_the_sentence_at_the_first_blank() -> None:
    row = {"index": 5, "sentence": "He saw _ and _ left.", "option1": "x", "option2": "y", "answer": "1"}
    found = rows.winogrande(row)
    assert found.fields == {"before": "He saw ", "after": "and _ left.", "sentence": "He saw ___ and ___ left."}
    assert found.gold == 0


def test_agieval_takes_every_kind_of_label_off() -> None:
    options = ["(A)one", " B. two", "C three", "(D) four ", "five"]
    row = {"index": 0, "passage": None, "question": "q", "options": options, "label": "D"}
    found = rows.agieval(row)
    assert found.choices == ("one", "two", "three", "four ", "five")
    assert (found.fields["passage"], found.gold) == ("", 3)
    assert rows.agieval({**row, "passage": "p"}).fields["passage"] == "p\n"
    # As in olmes, a choice that starts with one of the letters loses it when it has no label.
    assert rows.agieval({**row, "options": ["Bees", "x"], "label": "A"}).choices == ("ees", "x")


def test_drop_s_answers_are_numbers_spans_or_dates_each_once() -> None:
    nothing = {"day": "", "month": "", "year": ""}
    row = {
        "query_id": "d",
        "passage": "p",
        "question": "q",
        "answer": {"number": "", "spans": ["red", "blue"], "date": nothing},
        "validated_answers": {
            "number": ["3", "", ""],
            "spans": [[], ["red", "blue"], []],
            "date": [nothing, nothing, {"day": "4", "month": "July", "year": ""}],
        },
    }
    found = rows.drop(row)
    assert found.spans == (("red", "blue"), ("3",), ("4 July",))
    assert found.answers == ("red, blue", "3", "4 July")
    asked = {"query_id": "d", "passage": "p", "question": "q", "answers": [["red", "blue"], ["3"], ["4 July"]]}
    assert rows.drop_document(asked) == found


def test_coqa_turns_see_the_turns_before_them() -> None:
    row = {
        "id": "c",
        "story": "s",
        "questions": {"input_text": ["one?", "two?"]},
        "answers": {"input_text": ["1", "2"]},
        "additional_answers": {"0": {"input_text": ["I", ""]}, "1": {"input_text": ["i"]}},
    }
    first, second = rows.coqa(row)
    assert (first.id, first.fields["preceding"], first.answers) == ("c_turn0", "", ("1", "I", "i"))
    assert second.fields["preceding"] == "\n\nPreceding questions:\n\nQuestion: one?\nAnswer: 1"
    assert second.answers == ("2",)
    every = [{"question": "one?", "answer": "1"}, {"question": "two?", "answer": "2"}]  # the dump lists later turns too
    asked = {"id": "c_turn1", "story": "s", "question": "two?", "answers": ["2"], "previous_qa": every}
    assert rows.coqa_document(asked) == second


def test_a_gold_chain_of_thought_is_cleaned() -> None:
    answer = "she has 3*4=<<3*4=12>>12 eggs\nThen $<<12-2=10>>10.\n#### 1,010"
    found = rows.gsm8k({"index": 0, "question": "q", "answer": answer})
    assert found.answers == ("1,010",)
    assert found.fields["solution"] == "She has 3 * 4 = 12 eggs Then $10. So the answer is 1,010."
    assert rows.gsm8k_solution("no end", "2") == "No end. So the answer is 2."


def test_jeopardy_without_a_category_is_no_row_of_it() -> None:
    assert rows.jeopardy({"index": 0, "context": "A: B: c", "continuation": "d"}).fields == {
        "category": "A",
        "question": "B: c",
    }
    with pytest.raises(ValueError, match="has no category"):
        rows.jeopardy({"index": 0, "context": "nothing", "continuation": "d"})


def test_triviaqa_accepts_aliases_once() -> None:
    answer = {"value": "X", "aliases": ["X", "Y"], "normalized_aliases": ["x", "Y"]}
    found = rows.triviaqa({"question_id": "t", "question": "q", "answer": answer})
    assert (found.answers, found.fields["value"]) == (("X", "Y", "x"), "X")


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("row", [{}, {"index": 0}, {"index": 0, "id": 1, "question": 2}])
def test_a_row_of_another_form_raises_what_its_reader_names(name: str, row: dict[str, object]) -> None:
    with pytest.raises((LookupError, ValueError, TypeError, AttributeError)):
        ROWS[name](row)
