"""The slow, obvious taggers that the fast ones must equal: Python strings, one document at a time."""

import re
from collections import Counter

from datatrove.utils.text import PUNCTUATION_SET

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def quality(text: str) -> dict[str, float]:
    words, lines = text.split(), text.splitlines()
    plain = [word for word in words if any(character not in PUNCTUATION_SET for character in word)]
    return {
        "gopher_words": len(plain),
        "gopher_mean_word_length": _ratio(sum(map(len, plain)), len(plain)),
        "gopher_hash_ratio": _ratio(text.count("#"), len(words)),
        "gopher_ellipsis_ratio": _ratio(text.count("...") + text.count("…"), len(words)),
        "gopher_bullet_lines": _ratio(sum(line.lstrip().startswith(("•", "-")) for line in lines), len(lines)),
        "gopher_ellipsis_lines": _ratio(sum(line.rstrip().endswith(("...", "…")) for line in lines), len(lines)),
        "gopher_alphabetic_words": _ratio(sum(any(map(str.isalpha, word)) for word in words), len(words)),
        "gopher_stop_words": len(STOP_WORDS & set(words)),
    }


def repetition(text: str) -> dict[str, float]:
    words = text.split()
    paragraphs, lines = re.split(r"\n{2,}", text.strip()), re.split(r"\n+", text)
    values = {
        "gopher_duplicate_paragraphs": _ratio(len(paragraphs) - len(set(paragraphs)), len(paragraphs)),
        "gopher_duplicate_paragraph_characters": _ratio(_duplicate_characters(paragraphs), len(text)),
        "gopher_duplicate_lines": _ratio(len(lines) - len(set(lines)), len(lines)),
        "gopher_duplicate_line_characters": _ratio(_duplicate_characters(lines), len(text)),
    }
    for n in (2, 3, 4):
        values[f"gopher_top_{n}gram"] = _ratio(_top_characters(words, n), len(text))
    for n in range(5, 11):
        values[f"gopher_duplicate_{n}grams"] = _ratio(_repeated_characters(words, n), len(text))
    return values


def lengths(text: str) -> dict[str, int]:
    return {
        "bytes": len(text.encode()),
        "characters": len(text),
        "words": len(text.split()),
        "lines": len(text.splitlines()),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _duplicate_characters(pieces: list[str]) -> int:
    return sum(map(len, pieces)) - sum(map(len, set(pieces)))


def _top_characters(words: list[str], n: int) -> int:
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not ngrams:
        return 0
    ngram, times = Counter(ngrams).most_common(1)[0]
    return len(" ".join(ngram)) * times


def _repeated_characters(words: list[str], n: int) -> int:
    seen, total, i = set(), 0, 0
    while i < len(words) - n + 1:
        ngram = tuple(words[i : i + n])
        if ngram in seen:
            total, i = total + len("".join(ngram)), i + n
        else:
            seen.add(ngram)
            i += 1
    return total
