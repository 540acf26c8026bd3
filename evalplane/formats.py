"""Items to requests: the five ways an item is asked, byte for byte as OLMES asks them (tests/golden).

In: a format, items, the curated shots. Out: requests, in item order and then choice order.

    mc             lettered options in the prompt; the continuations are the letters
    cloze          no options in the prompt; the continuations are the choices themselves (or, where the prompt ends with the choice,
                   what follows it: partial scoring)
    generate       a greedy continuation, to be compared with the answers
    gold           the right answer alone, for its bits per byte
    bits_per_byte  the document itself, after the end-of-text token

Source: olmes b532dd5 (`make_mcq_prompt`, `make_cloze_prompt`), restated in reference/eval.md, A1.
"""

import re
from collections.abc import Sequence

from evalplane.task import Format, Item, Request
from triplane.errors import UsageError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FIELD = re.compile(r"\{(\w+)\}")


def clean_wikihow(text: str) -> str:
    """HellaSwag's cleaning: WikiHow's [title], [step] and [header] marks go, and doubled spaces once."""
    text = re.sub(r"\.? \[title\]", ". ", text.strip())
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def options(choices: Sequence[str]) -> str:
    """One line a choice; the space before the letter makes ` A` here the token that ` A` is as an answer."""
    return "".join(f" {letter}. {choice}\n" for letter, choice in zip(LETTERS, choices, strict=False))


def prompt(format: Format, item: Item, choice: int = 0) -> str:
    """The item's own part of the context, for a choice where that matters. UsageError when the template names a field the item lacks."""
    fields = {**item.fields, "options": options(item.choices)}
    if item.choices:
        fields["choice"] = item.choices[choice]
    filled = _fill(format.prompt, fields, item.id)
    return clean_wikihow(filled) if format.clean == "wikihow" else filled


def answers(format: Format, item: Item) -> list[str]:
    """What may follow the prompt, without the space before it: letters, choices, or the accepted answers."""
    if format.kind == "mc":
        return list(LETTERS[: len(item.choices)])
    if item.choices:
        return [clean_wikihow(choice) if format.clean == "wikihow" else choice for choice in item.choices]
    return list(item.answers)


def continuations(format: Format, item: Item) -> list[str]:
    """The candidate texts after the prompt, the joining space included; of kind `gold` the right one alone."""
    if format.kind != "gold":
        return [_fill(format.target, {**item.fields, "answer": answer}, item.id) for answer in answers(format, item)]
    right = answers(format, item)[item.gold or 0]
    return [_fill(format.target if item.choices else format.gold, {**item.fields, "answer": right}, item.id)]


def shots_text(format: Format, shots: Sequence[Item]) -> str:
    """Solved items, each followed by an empty line: what stands, after the description, before every prompt."""
    return "".join(_solved(format, shot) + "\n\n" for shot in shots)


def _solved(format: Format, shot: Item) -> str:
    gold = shot.gold or 0
    answer = answers(format, shot)[gold] if format.kind != "mc" else LETTERS[gold]
    return prompt(format, shot, gold) + _fill(format.target, {**shot.fields, "answer": answer}, shot.id)


def description(format: Format, item: Item) -> str:
    """What a part says before its shots: `{subject}` and the item's other fields are filled in."""
    return _fill(format.description, dict(item.fields), item.id)


def contexts(format: Format, items: Sequence[Item], shots: Sequence[Item]) -> list[list[str]]:
    """The context of every choice of every item (one shared string where they do not differ): description, shots of its part, prompt."""
    by_part: dict[str, list[Item]] = {}
    for shot in shots:
        by_part.setdefault(shot.part, []).append(shot)
    before = {part: shots_text(format, of) for part, of in by_part.items()}
    per_choice = format.kind != "mc" and "{choice}" in format.prompt
    made = []
    for item in items:
        start = description(format, item) + before.get(item.part, "")
        if format.kind == "gold":
            made.append([start + prompt(format, item, item.gold or 0)])
        elif per_choice:
            made.append([start + prompt(format, item, choice) for choice in range(len(item.choices))])
        else:
            made.append([start + prompt(format, item)] * max(1, len(item.choices)))
    return made


def requests(format: Format, items: Sequence[Item], shots: Sequence[Item]) -> list[Request]:
    """All requests of a format. Unconditioned ones, if the format wants them, come last, in the same order."""
    if format.kind == "bits_per_byte":
        return [Request(i, 0, "", item.fields["text"]) for i, item in enumerate(items)]
    asked = contexts(format, items, shots)
    if format.kind == "generate":
        return [
            Request(i, 0, context, max_new_tokens=format.max_new_tokens, stop=format.stop)
            for i, (context, *_) in enumerate(asked)
        ]
    made = [
        Request(i, choice, context, continuation)
        for i, (item, before) in enumerate(zip(items, asked, strict=True))
        for choice, (context, continuation) in enumerate(zip(before, continuations(format, item), strict=True))
    ]
    if format.unconditioned is None:
        return made
    return made + [Request(r.item, r.choice, format.unconditioned, r.continuation, unconditioned=True) for r in made]


def _fill(template: str, fields: dict[str, str], item_id: str) -> str:
    unknown = [name for name in _FIELD.findall(template) if name not in fields]
    if unknown:
        raise UsageError(
            f"the prompt names {{{unknown[0]}}}, which item {item_id} lacks; it has {', '.join(sorted(fields))}"
        )
    return _FIELD.sub(lambda match: fields[match[1]], template)
