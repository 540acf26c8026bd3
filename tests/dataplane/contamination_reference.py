"""The presets, slow and obvious: words are strings, n-grams are tuples, every item is looked for in every document."""

import functools
import math
import re
import unicodedata
from collections import Counter

APOSTROPHES = "'\u2018\u2019\u02bc\uff07`\u00b4"
Ngram = tuple[str, ...]


def is_ideograph(character: str) -> bool:
    ranges = (
        (0x2E80, 0x2FDF),
        (0x3005, 0x3007),
        (0x3021, 0x30FF),
        (0x31F0, 0x31FF),
        (0x3400, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x323FF),
    )
    return any(low <= ord(character) <= high for low, high in ranges)


@functools.cache  # items are looked for in every document, and read once
def words(text: str) -> list[str]:
    """As `contamination_words.fold`, on characters."""
    text = re.sub(r"(?<=[0-9])[,.](?=[0-9])", "", text)
    out = []
    for character in text:
        category = unicodedata.category(character)
        if character in APOSTROPHES or category == "Cf":
            continue
        if category[0] not in "LNM":
            out.append(" ")
            continue
        lower = character.lower() if len(character.lower()) == 1 else character
        out.append(f" {lower} " if is_ideograph(character) else lower)
    return [word for word in "".join(out).split(" ") if word]


def ngrams(w: list[str], n: int) -> list[Ngram]:
    return [tuple(w[i : i + n]) for i in range(len(w) - n + 1)]


def idf(texts: list[list[str]], n: int, least_distinct: int) -> dict[Ngram, float]:
    """By the distinct texts (as word lists) that have an n-gram."""
    distinct = {tuple(text): None for text in texts}
    counts = Counter(
        gram for text in distinct for gram in set(ngrams(list(text), n)) if len(set(gram)) >= least_distinct
    )
    return {gram: math.log((len(distinct) + 1) / count) for gram, count in counts.items()}


def required(count: float, start: float, end: float, threshold: float) -> float:
    return (
        1.0
        if count <= start
        else threshold
        if count >= end
        else 1.0 - (1.0 - threshold) * (count - start) / (end - start)
    )


def overlap(window: list[str], part: list[str], n: int, weights: dict[Ngram, float]) -> float:
    mine, there = set(ngrams(part, n)), set(ngrams(window, n))
    total = sum(weights[gram] for gram in mine)
    return sum(weights[gram] for gram in mine & there) / total if total else 0.0


def best_cluster(document: list[str], question: set[Ngram], weights: dict[Ngram, float]) -> tuple[float, int, int]:
    """(weight, first and last word) of the heaviest run of the question's 5-grams with fewer than 11 misses in a row."""
    places = [i for i, gram in enumerate(ngrams(document, 5)) if gram in question]
    clusters: list[list[int]] = []
    for place in places:
        if clusters and place - clusters[-1][-1] <= 11:
            clusters[-1].append(place)
        else:
            clusters.append([place])
    best = (0.0, 0, 0)
    for cluster in clusters:
        grams: dict[Ngram, int] = {}
        for place in cluster:
            grams.setdefault(tuple(document[place : place + 5]), place)
        weight = sum(weights[gram] for gram in grams)
        if weight > best[0] + 1e-9:
            best = (weight, cluster[0], max(grams.values()) + 4)
    return best


def answer_overlap(document: list[str], answer: list[str], start: int, weights: dict[Ngram, float]) -> float:
    if len(answer) <= 3:
        return float(
            any(document[at : at + len(answer)] == answer for at in range(start, min(start + 50, len(document))))
        )
    return overlap(document[start : start + max(100, 2 * len(answer))], answer, 3, weights)


def base(q: float, grams: int, a: float | None, a_words: int, p: float | None) -> float:
    confidence = min(1.0, 0.5 + 0.5 * grams / 20)
    if a is not None and p is not None:
        sure = min(1.0, 0.5 + 0.5 * a_words / 4)
        lost = 0.7 * (1 - confidence)
        of_a, of_p = 0.2 + lost / 2, 0.1 + lost / 2
        return 0.7 * confidence * q + of_a * sure * a + (of_p + of_a * (1 - sure)) * p
    if a is not None:
        return 0.75 * confidence * q + (1 - 0.75 * confidence) * a
    if p is not None:
        return 0.85 * confidence * q + (1 - 0.85 * confidence) * p
    return q


Item = tuple[str, str, str]  # question, answer, passage


@functools.cache
def read(items: tuple[Item, ...]) -> tuple[list[tuple[list[str], ...]], list[list[str]], list[dict[Ngram, float]]]:
    """(words of the parts of each item, the questions that can be found, idf of questions, answers and passages)."""
    parts = [tuple(words(text) for text in item) for item in items]
    usable = [q for q, _, _ in parts if len(q) >= 5 and len(set(q)) >= 4]
    answers, passages = [a for _, a, _ in parts if a], [p for _, _, p in parts if len(p) >= 4]
    return parts, usable, [idf(usable, 5, 3), idf(answers, 3, 1), idf(passages, 4, 1)]


def by_clusters(document: str, items: list[Item], is_strict: bool) -> dict[int, float]:
    """Item number -> score of those flagged."""
    parts, usable, (q_idf, a_idf, p_idf) = read(tuple(items))
    w, found = words(document), {}
    for number, (q, a, p) in enumerate(parts):
        question = {gram for gram in ngrams(q, 5) if gram in q_idf} if q in usable else set()
        if not question:
            continue
        weight, first, last = best_cluster(w, question, q_idf)
        of_q = weight / sum(q_idf[gram] for gram in question)
        of_a = answer_overlap(w, a, last + 1, a_idf) if a else None
        reach = 100 + 2 * len(p)
        of_p = overlap(w[max(0, first - reach) : last + 1 + reach], p, 4, p_idf) if len(p) >= 4 else None
        score = base(of_q, len(question), of_a, len(a), of_p)
        if weight and _is_flagged(
            is_strict,
            score,
            of_q,
            len(q),
            (of_a or 0.0) * len(a),
            (of_p or 0.0) * len(p),
            len(a) + (len(p) if len(p) >= 4 else 0),
        ):
            found[number] = score
    return found


def _is_flagged(is_strict: bool, score: float, of_q: float, q: int, a: float, p: float, others: int) -> bool:
    if not is_strict:
        return score >= required(q + others, 20, 50, 0.8) - 1e-9
    if q < 8 and a + p == 0:
        return False
    alone = q >= 8 and of_q >= required(q, 10, 25, 0.4) - 1e-9
    return alone or (of_q >= 0.3 - 1e-9 and score >= required(of_q * q + a + p, 20, 50, 0.5) - 1e-9)


def by_sets(document: str, items: list[Item], n: int, preset: str) -> dict[int, float]:
    """`flan`, `tulu`, `gpt3`. An instance is a question with its answer, or a passage."""
    instances = [(i, words(f"{q}\n{a}")) for i, (q, a, _) in enumerate(items)] + [
        (i, words(p)) for i, (_, _, p) in enumerate(items)
    ]
    instances = [(i, w) for i, w in instances if len(set(w)) >= 4]
    distinct = {tuple(w) for _, w in instances}
    counts = Counter(gram for w in distinct for gram in set(ngrams(list(w), n)))
    there, found = {gram for gram in ngrams(words(document), n) if len(set(gram)) >= 3}, dict[int, float]()
    for item, w in instances:
        grams = ngrams(w, n)
        if not any(gram in there and counts[gram] <= 10 for gram in grams):
            continue
        matched = [i for i, gram in enumerate(grams) if gram in there]
        share, covered = len(matched) / len(grams), len({k for i in matched for k in range(i, i + n)}) / len(w)
        score = covered if preset == "tulu" else share
        if (
            preset == "gpt3"
            or (preset == "flan" and share >= 0.1 - 1e-9)
            or (preset == "tulu" and covered > 0.5 + 1e-9)
        ):
            found[item] = max(score, found.get(item, 0.0))
    return found


def by_paragraphs(document: str, items: list[Item]) -> dict[int, float]:
    there, found = {tuple(words(line)) for line in document.split("\n")}, dict[int, float]()
    for number, (q, a, p) in enumerate(items):
        for text in (f"{q}\n{a}", p):
            if len(set(words(text))) < 4:
                continue
            held = {tuple(words(line)) for line in text.split("\n") if len(words(line)) >= 13} & there
            if held:
                found[number] = max(min(1.0, sum(map(len, held)) / len(words(text))), found.get(number, 0.0))
    return found
