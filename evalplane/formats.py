"""Items to requests: the four ways an item is asked, byte for byte as OLMES asks them (tests/golden).

In: a format, items, the curated shots. Out: requests, in item order and then choice order.

    mc             lettered options in the prompt; the continuations are the letters
    cloze          no options in the prompt; the continuations are the choices themselves
    generate       a greedy continuation, to be compared with the answers
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


def prompt(format: Format, item: Item) -> str:
    """The item's own part of the context. UsageError when the template names a field the item lacks."""
    filled = _fill(format.prompt, {**item.fields, "options": options(item.choices)}, item.id)
    return clean_wikihow(filled) if format.clean == "wikihow" else filled


def answers(format: Format, item: Item) -> list[str]:
    """What may follow the prompt, without the space before it: letters, choices, or the accepted answers."""
    if format.kind == "mc":
        return list(LETTERS[: len(item.choices)])
    if format.kind == "cloze":
        return [clean_wikihow(choice) if format.clean == "wikihow" else choice for choice in item.choices]
    return list(item.answers)


def continuations(format: Format, item: Item) -> list[str]:
    """The candidate texts after the prompt, the joining space included."""
    return [format.target.replace("{answer}", answer) for answer in answers(format, item)]


def shots_text(format: Format, shots: Sequence[Item]) -> str:
    """Description and solved items, each followed by an empty line: what stands before every prompt."""
    solved = [prompt(format, shot) + continuations(format, shot)[shot.gold or 0] + "\n\n" for shot in shots]
    return format.description + "".join(solved)


def requests(format: Format, items: Sequence[Item], shots: Sequence[Item]) -> list[Request]:
    """All requests of a format. Unconditioned ones, if the format wants them, come last, in the same order."""
    if format.kind == "bits_per_byte":
        return [Request(i, 0, "", item.fields["text"]) for i, item in enumerate(items)]
    before = shots_text(format, shots)
    if format.kind == "generate":
        return [
            Request(i, 0, before + prompt(format, item), max_new_tokens=format.max_new_tokens, stop=format.stop)
            for i, item in enumerate(items)
        ]
    made = [
        Request(i, choice, context, continuation)
        for i, item in enumerate(items)
        for context in [before + prompt(format, item)]
        for choice, continuation in enumerate(continuations(format, item))
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
