"""Evaluation items -> the contamination index.

In: a table of items (task, split, item, question, answer, passage), as `triplane eval export-prompts` writes it. Out: `contamination_index.Index`.
A set without an item that can be found stops the build: a silently empty index finds nothing and says that all is clean.
"""

import numpy as np
import pyarrow as pa

from dataplane.contamination_index import PARAGRAPHS, QUESTIONS, Index, Set
from dataplane.documents import string_buffers
from dataplane.kernels import contamination_clusters as clusters
from dataplane.kernels import contamination_table as tables
from dataplane.kernels import contamination_words as folding
from dataplane.kernels.contamination_words import FoldedWords
from dataplane.paragraphs import MIN_WORDS, paragraphs
from triplane.errors import Corrupt

ITEM_SCHEMA = pa.schema([(name, pa.string()) for name in ("task", "split", "item", "question", "answer", "passage")])
NGRAMS = (8, 13)
MIN_DISTINCT = 4  # words of a question, or of an instance: decon's eval_min_unique_word_count


def build(items: pa.Table, items_sha256: str, ngrams: tuple[int, ...] = NGRAMS) -> Index:
    """The index of the items, in their order; of items of a task with equal words the first stays. Corrupt when a set has none that can be found."""
    if items.schema != ITEM_SCHEMA or not items.num_rows:
        raise Corrupt(
            f"evaluation items have columns {', '.join(ITEM_SCHEMA.names)}, one row an item: export them again"
        )
    items, folded = _without_repeats(items)
    questions, question_of = _units(folded["question"], clusters.QUESTION_WORDS)
    texts, instance_first, instance_items = _instances(items, folded)
    item_set, sets = _sets(items, (question_of >= 0) | np.isin(np.arange(items.num_rows), instance_items))
    held = {QUESTIONS: _table(questions, clusters.QUESTION_WORDS, by_place=False)}
    instances = _fold(texts)
    held |= {f"instances-{n}": _table(instances, n, by_place=True) for n in sorted({*NGRAMS, *ngrams})}
    held[PARAGRAPHS] = _paragraph_table(texts, instances)
    name_first, name_bytes = string_buffers(items.column("item").combine_chunks().cast(pa.large_string()))
    return Index(
        items_sha256,
        sets,
        held,
        _items(folded, question_of, len(questions.first) - 1),
        instance_first,
        instance_items,
        item_set,
        (name_first - name_first[0]).astype(np.uint64),
        name_bytes[name_first[0] : name_first[-1]],
    )


def _fold(texts: pa.Array) -> FoldedWords:
    return folding.fold(*string_buffers(texts.cast(pa.large_string())))


def _whole(words: FoldedWords) -> np.ndarray:
    """A hash of all words of each text, uint64 [texts]."""
    counts = np.diff(words.first)
    out = np.empty(len(counts), np.uint64)
    for text, (start, count) in enumerate(zip(words.first[:-1].tolist(), counts.tolist(), strict=True)):
        tables.ngram_hashes(words.hash, start, 1, count, out[text : text + 1])
    return out


def firsts(items: pa.Table) -> np.ndarray:
    """Of each item the number of the first of its task with the same words, int64 [items]: that one is in the index, for all of them."""
    _, first, which = np.unique(_keys(items, _folded(items)), axis=0, return_index=True, return_inverse=True)
    return first[which.ravel()].astype(np.int64)


def searched(items: pa.Table, least_words: int, by_question: bool) -> np.ndarray:
    """Whether an item can be found at all, bool [items]: its question, or an instance of it, has so many words and is informative."""
    columns = {name: items.column(name).combine_chunks() for name in ("question", "answer", "passage")}
    texts = [columns["question"]]
    if not by_question:
        asked = zip(columns["question"].to_pylist(), columns["answer"].to_pylist(), strict=True)
        texts = [pa.array([f"{question}\n{answer}" for question, answer in asked], pa.string()), columns["passage"]]
    able = np.zeros(items.num_rows, np.bool_)
    for words in map(_fold, texts):
        able |= (np.diff(words.first) >= least_words) & _is_informative(words)
    return able


def _folded(items: pa.Table) -> dict[str, FoldedWords]:
    return {name: _fold(items.column(name).combine_chunks()) for name in ("question", "answer", "passage")}


def _keys(items: pa.Table, folded: dict[str, FoldedWords]) -> np.ndarray:
    """Task and words, uint64 [items, 4]."""
    task = items.column("task").combine_chunks().dictionary_encode().indices.to_numpy().astype(np.uint64)
    return np.stack([task, *(_whole(words) for words in folded.values())], 1)


def _without_repeats(items: pa.Table) -> tuple[pa.Table, dict[str, FoldedWords]]:
    """Without the later ones of items of a task with the same words, and those without a word of a question."""
    _, first = np.unique(_keys(items, _folded(items)), axis=0, return_index=True)
    kept = items.take(pa.array(np.sort(first)))
    return kept, _folded(kept)


def _chosen(words: FoldedWords, texts: np.ndarray) -> FoldedWords:
    """The words of these texts, one after another."""
    counts = np.diff(words.first)[texts]
    first = np.concatenate([[0], np.cumsum(counts)])
    places = np.repeat(words.first[texts] - first[:-1], counts) + np.arange(first[-1])
    return FoldedWords(first, words.hash[places], words.start[places], words.end[places])


def _is_informative(words: FoldedWords) -> np.ndarray:
    """Whether a text has at least `MIN_DISTINCT` different words, bool [texts]."""
    text = np.repeat(np.arange(len(words.first) - 1), np.diff(words.first))
    order = np.lexsort((words.hash, text))
    hashes, text = words.hash[order], text[order]
    is_new = np.ones(len(text), np.bool_)
    is_new[1:] = (hashes[1:] != hashes[:-1]) | (text[1:] != text[:-1])
    return np.bincount(text[is_new], minlength=len(words.first) - 1) >= MIN_DISTINCT


def _units(words: FoldedWords, least_words: int) -> tuple[FoldedWords, np.ndarray]:
    """The distinct texts of at least so many words that are informative, and which of them each text is, int64 [texts]; -1: none."""
    usable = np.flatnonzero((np.diff(words.first) >= least_words) & _is_informative(words))
    _, first, which = np.unique(_whole(words)[usable], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # in the order of the items
    of_text = np.full(len(words.first) - 1, -1, np.int64)
    of_text[usable] = rank[which]
    return _chosen(words, usable[np.sort(first)]), of_text


def _grouped(of_item: np.ndarray, items: np.ndarray, num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Items by group: first uint32 [groups + 1], items uint32; -1 is in none."""
    used = of_item >= 0
    of_item, items = of_item[used], items[used]
    order = np.lexsort((items, of_item))
    return np.searchsorted(of_item[order], np.arange(num_groups + 1)).astype(np.uint32), items[order].astype(np.uint32)


def _instances(items: pa.Table, folded: dict[str, FoldedWords]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """The distinct instances: a question with its answer, or a passage. (texts, items by instance)."""
    questions, answers = (items.column(name).to_pylist() for name in ("question", "answer"))
    asked = [f"{question}\n{answer}" for question, answer in zip(questions, answers, strict=True)]
    texts = pa.array(asked + items.column("passage").to_pylist(), pa.string())
    words = _fold(texts)
    usable = np.flatnonzero(_is_informative(words))
    _, first, which = np.unique(_whole(words)[usable], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    of_item, item = rank[which], usable % items.num_rows
    pairs = np.unique(np.stack([of_item, item], 1), axis=0)
    return texts.take(pa.array(usable[np.sort(first)])), *_grouped(pairs[:, 0], pairs[:, 1], len(first))


def _table(words: FoldedWords, n: int, by_place: bool) -> tables.Table:
    hashes, units, is_used = tables.unit_ngrams(words.hash, words.first, n, tables.MIN_DISTINCT_WORDS)
    return tables.make(hashes, units, is_used, np.diff(words.first), by_place)


def _paragraph_table(texts: pa.Array, words: FoldedWords) -> tables.Table:
    """Each unit has its paragraphs of `MIN_WORDS` words or more, by place."""
    found = paragraphs(*string_buffers(texts.cast(pa.large_string())), words, MIN_WORDS)
    used = np.ones(len(found.hash), np.bool_)
    return tables.make(found.hash, found.document.astype(np.uint32), used, np.diff(words.first), True)


def _sets(items: pa.Table, is_indexed: np.ndarray) -> tuple[np.ndarray, tuple[Set, ...]]:
    names = list(zip(items.column("task").to_pylist(), items.column("split").to_pylist(), strict=True))
    known = {name: number for number, name in enumerate(dict.fromkeys(names))}
    item_set = np.array([known[name] for name in names], np.uint32)
    counts = np.bincount(item_set, minlength=len(known))
    indexed = np.bincount(item_set[is_indexed], minlength=len(known))
    sets = tuple(Set(*name, int(counts[i]), int(indexed[i])) for name, i in known.items())
    for one in sets:
        if one.indexed == 0:
            raise Corrupt(
                f"of the {one.items} items of {one.task} ({one.split or 'no split'}) none has {MIN_DISTINCT} different words, so none could be "
                "found: export the set again, or leave it out"
            )
    return item_set, sets


def _items(folded: dict[str, FoldedWords], question_of: np.ndarray, num_questions: int) -> clusters.Items:
    question_first, question_items = _grouped(question_of, np.arange(len(question_of)), num_questions)
    answers, answer_of = _distinct(folded["answer"], 1)
    passages, passage_of = _distinct(folded["passage"], clusters.PASSAGE_WORDS)
    return clusters.Items(
        question_first,
        question_items,
        answer_of,
        passage_of,
        answers.first.astype(np.uint32),
        answers.hash,
        *_part(answers, clusters.ANSWER_WORDS),
        *_part(passages, clusters.PASSAGE_WORDS),
        np.diff(passages.first).astype(np.uint32),
    )


def _distinct(words: FoldedWords, least_words: int) -> tuple[FoldedWords, np.ndarray]:
    """Distinct texts of so many words or more, and which each text is, uint32; NONE: none."""
    usable = np.flatnonzero(np.diff(words.first) >= least_words)
    _, first, which = np.unique(_whole(words)[usable], return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    of_text = np.full(len(words.first) - 1, tables.NONE)
    of_text[usable] = rank[which]
    return _chosen(words, usable[np.sort(first)]), of_text


def _part(words: FoldedWords, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct n-grams of each text: first uint32 [texts + 1], hashes uint64 ascending in each text, idf float32."""
    hashes, units, is_used = tables.unit_ngrams(words.hash, words.first, n, 1)
    table = tables.make(hashes, units, is_used, np.diff(words.first), by_place=False)
    return table.unit_first, table.hashes[table.unit_grams], table.weight[table.unit_grams]
