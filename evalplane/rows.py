"""A row as a benchmark publishes it -> an Item, one function a form; and the same item from the document of an OLMES request dump.

In: a row with its number (`index`). Out: an Item whose fields the prompts of the task file name. What OLMES does to a row before it is a
prompt (olmes b532dd5, `oe_eval/tasks/oe_eval_tasks/`) is done here and nowhere else.
"""

import re
from collections.abc import Callable
from typing import Any

from evalplane.task import Item

Row = dict[str, Any]
_AGIEVAL_LABEL = re.compile(r"^\s*\([A-E]\)\s*|^\s*[A-E][.?]?\s*")
_JEOPARDY = re.compile(r"(.*?):\s*(.*)")
_OPERATORS = frozenset("+-*/=")


def arc(row: Row) -> Item:
    """ARC and CommonsenseQA. Labels are A to E or 1 to 5; the prompt always shows letters."""
    gold = row["choices"]["label"].index(row["answerKey"])
    return Item(row["id"], {"question": row["question"]}, tuple(row["choices"]["text"]), gold)


def openbookqa(row: Row) -> Item:
    return arc({**row, "question": row["question_stem"]})


def question_document(row: Row) -> Item:
    """ARC and OpenBookQA from a cloze dump: the question is the query without its wording."""
    question = row["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
    return Item(row["id"], {"question": question}, tuple(row["choices"]), row["gold"])


def boolq(row: Row) -> Item:
    """BoolQ as SuperGLUE has it, the passage after its title. The choices are yes and no, in this order."""
    fields = {"passage": row["passage"], "question": row["question"]}
    return Item(str(row["idx"]), fields, ("yes", "no"), 1 - row["label"])


def boolq_document(row: Row) -> Item:
    """BoolQ from a cloze dump, whose query is passage, question and question mark."""
    passage, _, question = row["query"].removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
    return Item(str(row["idx"]), {"passage": passage, "question": question}, tuple(row["choices"]), row["gold"])


def hellaswag(row: Row) -> Item:
    """HellaSwag: the activity and both halves of the context, uncleaned (the format cleans the whole prompt)."""
    question = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
    return Item(str(row["ind"]), {"question": question}, tuple(row["endings"]), int(row["label"]))


def piqa(row: Row) -> Item:
    return Item(str(row["index"]), {"question": row["goal"]}, (row["sol1"], row["sol2"]), row["label"])


def social_i_qa(row: Row) -> Item:
    choices = (row["answerA"], row["answerB"], row["answerC"])
    return Item(str(row["index"]), {"question": f"{row['context']} {row['question']}"}, choices, int(row["label"]) - 1)


def winogrande(row: Row) -> Item:
    """WinoGrande: `before` and `after` the blank for partial scoring (Trinh and Le, arXiv 1806.02847), and the sentence with ___."""
    before, _, after = row["sentence"].partition("_")
    fields = {"before": before, "after": after.strip(), "sentence": row["sentence"].replace("_", "___")}
    return Item(str(row["index"]), fields, (row["option1"], row["option2"]), int(row["answer"]) - 1)


def mmlu(row: Row) -> Item:
    fields = {"question": row["question"], "subject": row["subject"].replace("_", " ")}
    return Item(str(row["index"]), fields, tuple(row["choices"]), row["answer"], part=row["subject"])


def mmlu_pro(row: Row) -> Item:
    """MMLU-Pro: up to ten choices."""
    fields = {"question": row["question"]}
    gold = row["answer_index"]
    return Item(str(row["question_id"]), fields, tuple(row["options"]), gold, part=row["category"])


def agieval(row: Row) -> Item:
    """AGIEval: choices lose the (A), A. or A before them, as they are inconsistent; a passage goes before the question."""
    passage = f"{row['passage']}\n" if row["passage"] else ""
    choices = tuple(_AGIEVAL_LABEL.sub("", choice) for choice in row["options"])
    fields = {"passage": passage, "question": row["question"]}
    return Item(str(row["index"]), fields, choices, "ABCDE".index(row["label"]))


def natural_questions(row: Row) -> Item:
    """NQ-open: all answers are accepted; a shot shows them joined."""
    fields = {"question": row["question"], "joined": ", ".join(row["answer"])}
    return Item(str(row["index"]), fields, answers=tuple(row["answer"]))


def triviaqa(row: Row) -> Item:
    """TriviaQA: the value is asked for first, its aliases and their normalised forms are accepted."""
    accepted = (*row["answer"]["aliases"], *row["answer"]["normalized_aliases"])
    fields = {"question": row["question"], "value": row["answer"]["value"]}
    return Item(row["question_id"], fields, answers=tuple(dict.fromkeys(accepted)))


def drop(row: Row) -> Item:
    """DROP: a number, spans, or a date; those of the validators too, each once."""
    validated = row["validated_answers"]
    others = zip(validated["number"], validated["date"], validated["spans"], strict=True)
    asked = [row["answer"], *({"number": n, "date": d, "spans": s} for n, d, s in others)]
    return _drop(row, [_drop_spans(one) for one in asked])


def drop_document(row: Row) -> Item:
    return _drop(row, [tuple(spans) for spans in row["answers"]])


def _drop_spans(answer: Row) -> tuple[str, ...]:
    if answer["number"]:
        return (str(answer["number"]),)
    if answer["spans"]:
        return tuple(answer["spans"])
    return (" ".join(answer["date"][unit] for unit in ("day", "month", "year")).strip(),)


def _drop(row: Row, golds: list[tuple[str, ...]]) -> Item:
    spans = tuple(dict.fromkeys(golds))
    fields = {"passage": row["passage"], "question": row["question"]}
    return Item(row["query_id"], fields, answers=tuple(", ".join(one) for one in spans), spans=spans)


def squad(row: Row) -> Item:
    fields = {"title": row["title"], "passage": row["context"], "question": row["question"]}
    return Item(row["id"], fields, answers=tuple(row["answers"]["text"]))


def squad_document(row: Row) -> Item:
    """SQuAD from a dump, whose query is title, background and question."""
    background, _, question = row["query"].removesuffix("\nAnswer:").rpartition("\nQuestion: ")
    passage = background.removeprefix(f"Title: {row['title']}\nBackground: ")
    fields = {"title": row["title"], "passage": passage, "question": question}
    return Item(row["id"], fields, answers=tuple(row["answers_text"]))


def coqa(row: Row) -> list[Item]:
    """CoQA: an item a turn, which shows the turns before it with their first answers."""
    questions, answers = row["questions"]["input_text"], row["answers"]["input_text"]
    others = [one["input_text"] for one in row["additional_answers"].values()]
    made = []
    for turn, question in enumerate(questions):
        accepted = [answers[turn], *(more[turn] for more in others if len(more) > turn and more[turn])]
        before = list(zip(questions[:turn], answers[:turn], strict=True))
        made.append(_coqa(f"{row['id']}_turn{turn}", row["story"], before, question, accepted))
    return made


def coqa_document(row: Row) -> Item:
    """CoQA from a dump. Its `previous_qa` lists every turn of the story: those before this one are its first ones."""
    turn = int(row["id"].rpartition("_turn")[2])
    before = [(one["question"], one["answer"]) for one in row["previous_qa"][:turn]]
    return _coqa(row["id"], row["story"], before, row["question"], row["answers"])


def _coqa(name: str, story: str, before: list[tuple[str, str]], question: str, answers: list[str]) -> Item:
    turns = "".join(f"\n\nQuestion: {asked}\nAnswer: {answer}" for asked, answer in before)
    preceding = f"\n\nPreceding questions:{turns}" if before else ""
    return Item(name, {"passage": story, "preceding": preceding, "question": question}, answers=tuple(answers))


def jeopardy(row: Row) -> Item:
    """Jeopardy: the context is `CATEGORY: question`."""
    found = _JEOPARDY.search(row["context"])
    if found is None:
        raise ValueError(f"the context {row['context'][:40]!r} has no category before a colon")
    fields = {"category": found[1], "question": found[2]}
    return Item(str(row["index"]), fields, answers=(row["continuation"],))


def jeopardy_document(row: Row) -> Item:
    category, _, question = row["query"].removeprefix("Category: ").removesuffix("\nAnswer:").partition("\nQuestion: ")
    return Item(str(row["index"]), {"category": category, "question": question}, answers=(row["answer"],))


def gsm8k(row: Row) -> Item:
    """GSM8K: the answer is what follows ####; `solution` is the chain of thought as a shot writes it."""
    short = row["answer"].split("####")[-1].strip()
    fields = {"question": row["question"], "solution": gsm8k_solution(row["answer"], short)}
    return Item(str(row["index"]), fields, answers=(short,))


def gsm8k_shot(row: Row) -> Item:
    fields = {"question": row["question"], "solution": row["answer"]}
    return Item(str(row["index"]), fields, answers=(row["short_answer"],))


def gsm8k_solution(answer: str, short: str) -> str:
    """The gold chain of thought without calculator marks, on one line, with spaces around operators, ending `So the answer is N.`."""
    text = re.sub(r"\s+", " ", re.sub(r"<<.*?>>", "", answer)).strip().split("####")[0]
    text = (text[:1].capitalize() + text[1:]).strip()
    text += ("" if text.endswith(".") else ".") + f" So the answer is {short}."
    spaced = ""
    for char in text:
        if char in _OPERATORS:
            spaced += ("" if not spaced or spaced[-1] == " " else " ") + char + " "
        else:
            spaced += char
    return spaced.replace("  ", " ")


def bbh(row: Row) -> Item:
    """BIG-Bench Hard: a shot's target is its chain of thought, an item's the answer."""
    solution = row["target"].removeprefix("Let's think step by step.")
    fields = {"question": row["input"], "solution": solution}
    return Item(str(row["index"]), fields, answers=(row["target"],))


def math(row: Row) -> Item:
    """MATH (Minerva's prompt): problem and solution; the answer is checked elsewhere."""
    name = str(row["index"])
    return Item(name, {"question": row["problem"], "solution": row["solution"]}, answers=(row["solution"],))


def request_document(row: Row) -> Item:
    """Whatever a dump asks, as it asks it: for sets whose prompts cannot be rebuilt from their documents."""
    asked = row["request"]
    return Item(str(row["index"]), {"context": asked["context"], "question": ""}, answers=(asked["continuation"],))


def question_answer(row: Row) -> Item:
    return Item(str(row["id"]), {"question": row["question"]}, answers=(row["answer"],))


def document(row: Row) -> Item:
    return Item(str(row["id"]), {"text": row["text"], "source": row["source"]})


ROWS: dict[str, Callable[[Row], Item | list[Item]]] = {
    function.__name__: function
    for function in (
        *(arc, openbookqa, question_document, boolq, boolq_document, hellaswag, piqa, social_i_qa, winogrande, mmlu),
        *(mmlu_pro, agieval, natural_questions, triviaqa, drop, drop_document, squad, squad_document, coqa),
        *(coqa_document, jeopardy, jeopardy_document, gsm8k, gsm8k_shot, bbh, math, request_document),
        *(question_answer, document),
    )
}
