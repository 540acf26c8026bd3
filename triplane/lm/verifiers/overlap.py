"""Word overlap of an answer with the accepted ones: F1 and exact match as SQuAD and as DROP define them.

In: text as generated, accepted answers. Out: numbers in [0, 1], the best over the accepted answers. Sources: SQuAD's evaluate-v1.1.py
(Rajpurkar et al. 2016), DROP's drop_eval.py (Dua et al. 2019). An answer here is one text; DROP's may be several spans.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BETWEEN_WORDS = re.compile("[ -]")


def squad_words(text: str) -> list[str]:
    """Lower case, no punctuation, no articles."""
    return _ARTICLE.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def squad_f1(text: str, answers: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of words, with their counts; 0 where none is shared (also where neither has any)."""
    return max(_squad_f1(squad_words(text), squad_words(answer)) for answer in answers)


def _squad_f1(found: list[str], gold: list[str]) -> float:
    shared = sum((Counter(found) & Counter(gold)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(found), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def squad_match(text: str, answers: Sequence[str]) -> float:
    return float(any(squad_words(text) == squad_words(answer) for answer in answers))


def recall(text: str, answers: Sequence[str]) -> float:
    """Whether an accepted answer stands anywhere in the text, case aside."""
    return float(any(answer.strip().lower() in text.strip().lower() for answer in answers))


def drop_words(text: str) -> list[str]:
    """Words split at spaces and hyphens; numbers in one form (`5` is `5.0`), others without punctuation and articles."""
    words = [_drop_word(word.lower()) for word in _BETWEEN_WORDS.split(text)]
    return " ".join(word for word in words if word).split()


def _drop_word(word: str) -> str:
    if not _is_number(word):
        word = word.translate(_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", str(float(word)) if _is_number(word) else word).split())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def drop_f1(text: str, golds: Sequence[Sequence[str]]) -> float:
    """DROP's F1 of one text against golds of one or more spans, to two decimals as the official script (numpy) rounds it.

    The text is paired with the span it fits best, and spans it leaves unpaired count as 0; a span with numbers fits only where a number is
    shared. A gold whose first span is blank is none.
    """
    return max((_drop_f1(text, gold) for gold in golds if gold[0].strip()), default=0.0)


def _drop_f1(text: str, gold: Sequence[str]) -> float:
    found = set(drop_words(text))
    fits = [_bag_f1(found, set(drop_words(span))) for span in gold]
    return round(max(fits) / len(gold) * 100) / 100


def _bag_f1(found: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & found:
        return 0.0
    shared = len(found & gold)
    precision = shared / len(found) if found else 1.0
    recalled = shared / len(gold) if gold else 1.0
    return 2 * precision * recalled / (precision + recalled) if precision + recalled else 0.0


def drop_match(text: str, golds: Sequence[Sequence[str]]) -> float:
    """Whether the text is a gold of one span."""
    found = " ".join(drop_words(text))
    matches = ([" ".join(drop_words(span)) for span in gold] == [found] for gold in golds if gold[0].strip())
    return float(any(matches))
