"""How a generated answer is judged, by name: one question -> one grade.

In: `Question` (text, accepted answers, options). Out: `Grade`: each metric in [0, 1] and the answer as it was understood. Pure functions of
their arguments, the same in any thread or process; `worker` runs them where they cannot take the run down.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from triplane.lm.verifiers import numeric, overlap, patterns


@dataclass(frozen=True)
class Question:
    """A text and what it is held against. `spans` are answers of several texts each; `options` is what the grader needs besides."""

    text: str
    answers: tuple[str, ...]
    spans: tuple[tuple[str, ...], ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Grade:
    """The metrics, the answer as understood; `failure` is time, memory, crash or an error where none could be given, and every metric is then 0."""

    metrics: Mapping[str, float]
    extracted: str
    failure: str | None = None


def exact(asked: Question) -> Grade:
    """The text itself, spaces around it aside."""
    text = asked.text.strip()
    return Grade({"exact_match": float(text in {one.strip() for one in asked.answers})}, text)


def last_number(asked: Question) -> Grade:
    found = numeric.last_number(asked.text)
    is_right = any(numeric.is_same_number(found, numeric.last_number(one)) for one in asked.answers)
    return Grade({"exact_match": float(is_right)}, found)


def squad(asked: Question) -> Grade:
    f1, match = overlap.squad_f1(asked.text, asked.answers), overlap.squad_match(asked.text, asked.answers)
    return Grade(
        {"f1": f1, "exact_match": match, "recall": overlap.recall(asked.text, asked.answers)}, asked.text.strip()
    )


def drop(asked: Question) -> Grade:
    """DROP's rules, also for answers that are not spans (Natural Questions)."""
    golds = asked.spans or tuple((one,) for one in asked.answers)
    f1, match = overlap.drop_f1(asked.text, golds), overlap.drop_match(asked.text, golds)
    return Grade({"f1": f1, "exact_match": match}, asked.text.strip())


def pattern(asked: Question) -> Grade:
    """An answer of the shape `options["pattern"]`; `keep_punctuation` where that is the answer."""
    found = patterns.extract(asked.text, asked.options["pattern"])
    keep = asked.options.get("keep_punctuation") == "yes"
    return Grade({"exact_match": float(any(patterns.is_same(found, one, keep) for one in asked.answers))}, found)


GRADERS: dict[str, Callable[[Question], Grade]] = {
    "exact": exact,
    "last_number": last_number,
    "squad": squad,
    "drop": drop,
    "pattern": pattern,
}
METRICS: dict[str, tuple[str, ...]] = {
    "exact": ("exact_match",),
    "last_number": ("exact_match",),
    "squad": ("f1", "exact_match", "recall"),
    "drop": ("f1", "exact_match"),
    "pattern": ("exact_match",),
}
OPTIONS = ("pattern", "keep_punctuation")
