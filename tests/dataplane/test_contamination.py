"""Every preset against a slow reference, item for item; the planted set; what is refused."""

import dataclasses
import importlib.util
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from dataplane import contamination, contamination_build, contamination_index, edits
from dataplane.documents import string_buffers
from dataplane.kernels import contamination_words
from triplane.errors import Corrupt, Refused, UsageError


def _load_reference() -> ModuleType:
    path = Path(__file__).with_name("contamination_reference.py")
    spec = importlib.util.spec_from_file_location("contamination_reference", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _load_reference()
SHARED = Path(os.environ.get("TRIPLANE_SHARED", Path(__file__).parents[3] / "shared"))
DEFECTS = SHARED / "data/corpus/defects/part-00000.jsonl.zst"
GSM8K = SHARED / "data/eval/gsm8k/test.jsonl"
VOCABULARY = "river stone 7 bridge under old the map 12,500 island don't sailed morning light water café 北京 a".split()


def item_table(items: list[tuple[str, str, str]], task: str = "t") -> pa.Table:
    rows = [(task, "test", str(i), *item) for i, item in enumerate(items)]
    return pa.Table.from_arrays(
        [pa.array(column) for column in zip(*rows, strict=True)], schema=contamination_build.ITEM_SCHEMA
    )


def index_of(items: pa.Table, folder: Path) -> contamination_index.Index:
    path = folder / "x.index"
    path.write_bytes(contamination_index.to_bytes(contamination_build.build(items, "0" * 64)))
    return contamination_index.open_file(path)


def found(index: contamination_index.Index, texts: list[str], preset: str) -> list[dict[int, float]]:
    """By document: item number (its name) -> score."""
    buffers = string_buffers(pa.array(texts, pa.large_string()))
    matches = contamination.match(*buffers, contamination_words.fold(*buffers), index, preset, 8)
    out: list[dict[int, float]] = [{} for _ in texts]
    for document, item, score in zip(
        matches.document.tolist(), matches.item.tolist(), matches.score.tolist(), strict=True
    ):
        name = int(index.name(item))
        out[document][name] = max(score, out[document].get(name, 0.0))
    return out


def sentence(r: random.Random, words: int) -> str:
    return " ".join(r.choice(VOCABULARY) + r.choice(["", "", "", ",", ".\n"]) for _ in range(words))


def sample(seed: int) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Items of few different words, so that they share n-grams, some from one template; documents made of pieces of them."""
    r = random.Random(seed)
    template = sentence(r, 14)
    items = [
        (sentence(r, r.randrange(1, 60)), sentence(r, r.choice([0, 1, 2, 9, 30])), sentence(r, r.choice([0, 0, 3, 40])))
        for _ in range(40)
    ]
    items += [(f"{template} {sentence(r, 9)}", "yes", "") for _ in range(15)]
    items += [("0 0 0 0 0 0 0 0 0 0 0 0 0 0", "0", ""), ("", "", "")]
    items = list(dict.fromkeys(items))
    documents = ["", "0 " * 300, template]
    for _ in range(60):
        pieces = []
        for _ in range(r.randrange(1, 4)):
            q, a, p = r.choice(items)
            words = f"{p} {q} {a}".split(" ") if r.random() < 0.7 else q.split(" ")
            for _ in range(r.randrange(3)):
                words[r.randrange(len(words))] = r.choice(VOCABULARY)
            begin = r.choice([0, 0, r.randrange(len(words))])
            pieces += [" ".join(words[begin:]), sentence(r, r.randrange(20))]
        documents.append(r.choice(["\n", " "]).join(pieces))
    return items, documents


@pytest.mark.parametrize("preset", list(contamination.PRESETS))
def test_equals_brute_force_item_for_item(preset: str, tmp_path: Path) -> None:
    total = 0
    for seed in range(2):
        items, documents = sample(seed)
        index = index_of(item_table(items), tmp_path)
        for text, ours in zip(documents, found(index, documents, preset), strict=True):
            if preset in ("strict", "simple"):
                expected = reference.by_clusters(text, items, preset == "strict")
            elif preset == "paragraph":
                expected = reference.by_paragraphs(text, items)
            else:
                expected = reference.by_sets(text, items, 13 if preset == "gpt3" else 8, preset)
            assert ours == pytest.approx(expected, abs=1e-6), text
            total += len(ours)
    assert total > 20


def test_what_says_nothing_matches_nothing(tmp_path: Path) -> None:
    template = "which of the following statements about the old stone bridge is the most correct one"
    items = [(f"{template} number {n}", "", "") for n in range(40)] + [
        ("0 0 0 0 0 0 0 0 0 0 0 0 0 0", "0", ""),
        ("?", "", ""),
    ]
    index = index_of(item_table(items), tmp_path)
    for preset in contamination.PRESETS:
        assert found(index, ["0 " * 500, "", "? ? ?"], preset) == [{}, {}, {}], preset
        if preset not in ("strict", "simple"):  # whose answer to a template is the weight of its n-grams
            assert found(index, [template], preset) == [{}], preset
    assert 7 in found(index, [f"{template} number 7"], "gpt3")[0]


def planted() -> list[dict[str, Any]]:
    with DEFECTS.open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        row for row in rows if row["metadata"]["defect"] in ("contamination_gsm8k", "hard_negative_gsm8k_train", "none")
    ]


@pytest.fixture(scope="module")
def gsm8k(tmp_path_factory: pytest.TempPathFactory) -> contamination_index.Index:
    rows = [json.loads(line) for line in GSM8K.read_text().splitlines()]
    return index_of(
        item_table([(row["question"], row["answer"], "") for row in rows], "gsm8k"), tmp_path_factory.mktemp("gsm8k")
    )


@pytest.mark.skipif(not DEFECTS.exists(), reason="the shared corpus is not here")
def test_strict_finds_what_is_planted_and_nothing_else(gsm8k: contamination_index.Index) -> None:
    rows = planted()
    recall: dict[str, list[bool]] = defaultdict(list)
    others = 0
    for row, matched in zip(rows, found(gsm8k, [row["text"] for row in rows], "strict"), strict=True):
        metadata = row["metadata"]
        if metadata["defect"] == "contamination_gsm8k":
            detail = json.loads(metadata["defect_detail"])
            recall[detail["edit"]].append(detail["test_index"] in matched)
        else:
            others += len(matched)
    assert {edit: sum(hits) for edit, hits in recall.items()} == {
        "verbatim": 12, "case_punct": 12, "whitespace": 12, "two_words": 12, "drop_one_sentence": 11,
    }  # fmt: skip
    assert others == 0 and len(rows) == 60 + 25 + 60


def two_words(text: str, r: random.Random) -> str:
    words = text.split(" ")
    for place in r.sample(range(len(words)), 2):
        words[place] = r.choice(VOCABULARY)
    return " ".join(words)


def dropped_sentence(text: str, r: random.Random) -> str:
    """Any one of them, the longest and the question itself too; nothing of a text of one sentence."""
    sentences = re.split(r"(?<=[.?!])\s+", text)
    del sentences[r.randrange(len(sentences))]
    return " ".join(sentences)


EDITS: dict[str, tuple[Callable[[str, random.Random], str], float]] = {
    "verbatim": (lambda text, r: text, 1.0),
    "whitespace": (lambda text, r: re.sub(r"\s", lambda _: r.choice([" ", "  ", "\n", "\n\n", "\t"]), text), 1.0),
    "case_punct": (lambda text, r: re.sub(r"[^\w\s]", "", r.choice([text.lower(), text.upper()])), 0.995),
    "two_words": (two_words, 0.97),
    "dropped_sentence": (dropped_sentence, 0.83),
}


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared evaluation data is not here")
@pytest.mark.parametrize("edit", list(EDITS))
def test_strict_finds_edited_questions_without_their_answers(gsm8k: contamination_index.Index, edit: str) -> None:
    """All test items but the planted ones, by seeds that the rule was not tuned on (it was on 5 and 6)."""
    known = {json.loads(row["metadata"].get("defect_detail") or "{}").get("test_index") for row in planted()}
    questions = [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()]
    recalls = []
    for seed in (977, 31):
        r = random.Random(seed)
        edited = {n: EDITS[edit][0](q, r) for n, q in enumerate(questions) if n not in known}
        edited = {n: text for n, text in edited.items() if text}
        matched = found(gsm8k, list(edited.values()), "strict")
        recalls.append(sum(n in one for n, one in zip(edited, matched, strict=True)) / len(edited))
    assert len(edited) > 1200 and min(recalls) >= EDITS[edit][1], recalls


@pytest.mark.skipif(not GSM8K.exists(), reason="the shared evaluation data is not here")
def test_the_words_in_another_order_are_no_match(gsm8k: contamination_index.Index) -> None:
    r, questions = random.Random(977), [json.loads(line)["question"] for line in GSM8K.read_text().splitlines()]
    shuffled = [" ".join(r.sample(question.split(" "), len(question.split(" ")))) for question in questions]
    assert not any(found(gsm8k, shuffled, "strict"))


def test_spans_are_bytes_of_the_text(tmp_path: Path) -> None:
    question = "How many old stone bridges cross the river under the morning light of the island"
    index = index_of(item_table([(question, "twelve", "")]), tmp_path)
    text = f"Ünïcode – befóre. {question}? It is twelve, they say; and more."
    buffers = string_buffers(pa.array(["x", text], pa.large_string()))
    matches = contamination.match(*buffers, contamination_words.fold(*buffers), index, "strict", 8)
    cut = text.encode()[matches.start[0] : matches.end[0]].decode()
    assert (matches.document.tolist(), cut) == ([1], f"{question}? It is twelve")
    assert matches.spans.tolist() == [[1, matches.start[0], matches.end[0]]]


def without_spans(index: contamination_index.Index, texts: list[str], preset: str) -> list[str]:
    """What is left when all that matched is cut."""
    buffers = string_buffers(pa.array(texts, pa.large_string()))
    matches = contamination.match(*buffers, contamination_words.fold(*buffers), index, preset, 8)
    rows = matches.spans
    spans = [rows[rows[:, 0] == number, 1:].reshape(-1).tolist() for number in range(len(texts))]
    left: list[str] = edits.applied(pa.array(texts, pa.large_string()), pa.array(spans, edits.SPANS)).to_pylist()
    return left


@pytest.mark.parametrize("preset", ["strict", "simple", "flan", "tulu", "gpt3"])
def test_every_copy_in_a_document_is_cut_and_an_item_is_one_hit(preset: str, tmp_path: Path) -> None:
    question = "How many old stone bridges cross the river under the morning light of the island of the seven sailors"
    index = index_of(item_table([(question, "twelve of them", "")]), tmp_path)
    apart = " ".join(f"other{n} words" for n in range(150))
    text = f"One. {question}? twelve of them. {apart} Two. {question.upper()}? twelve of them. {apart} Three. {question}? twelve of them."
    [left] = without_spans(index, [text], preset)
    assert "bridges" not in left.lower() and left.count("other") == 300 and "Three." in left
    assert [list(one) for one in found(index, [text, left], preset)] == [[0], []]


def test_nothing_is_found_in_what_is_left(tmp_path: Path) -> None:
    items, documents = sample(0)
    index = index_of(item_table(items), tmp_path)
    for preset in ("strict", "simple"):
        flagged = [text for text, hits in zip(documents, found(index, documents, preset), strict=True) if hits]
        left = found(index, without_spans(index, flagged, preset), preset)
        assert len(flagged) > 3 and not any(left), preset


def test_a_set_that_cannot_be_found_stops_the_build() -> None:
    with pytest.raises(Corrupt, match=r"of the 1 items of t \(test\) none"):
        contamination_build.build(item_table([("? ?", "", "")]), "0" * 64)
    with pytest.raises(Corrupt, match="export them again"):
        contamination_build.build(item_table([("a b c d e f", "", "")]).drop_columns(["answer"]), "0" * 64)


def test_another_normalisation_schema_or_a_cut_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = contamination_build.build(item_table([("one two three four five six", "", "")]), "0" * 64)
    data, path = contamination_index.to_bytes(built), tmp_path / "i.index"
    for key, value in (("SCHEMA", 2), ("NORMALISATION", "words-0")):
        with monkeypatch.context() as patch:
            patch.setattr(contamination_index, key, value)
            path.write_bytes(contamination_index.to_bytes(built))
        with pytest.raises(Refused, match=f"has {key.lower()}"):
            contamination_index.open_file(path)
    for wrong in (data[:-64], data[:40], b"", b"TPCONTAM" + b"\xff" * 100, data[:16] + b"[" + data[17:]):
        path.write_bytes(wrong)
        with pytest.raises(Corrupt):
            contamination_index.open_file(path)
    path.write_bytes(data)
    index = contamination_index.open_file(path)
    assert not index.tables["questions"].hashes.flags.writeable
    with pytest.raises(Refused, match="--ngrams 6"):
        index.instances(6)
    nothing = string_buffers(pa.array([""], pa.large_string()))
    with pytest.raises(UsageError, match="unknown"):
        contamination.match(*nothing, contamination_words.fold(*nothing), index, "x", 8)


def test_which_items_can_be_found_at_all() -> None:
    long = "seven sailors counted every single island they had passed since that morning of the first day"
    items = item_table(
        [
            ("Why not?", "because of that", ""),
            ("one two three four five", "", ""),
            ("0 0 0 0 0 0", "0", long),
            ("?", long, ""),
        ]
    )
    by_question, by_instance = (contamination_build.searched(items, *rule) for rule in ((5, True), (13, False)))
    assert by_question.tolist() == [False, True, False, False]
    assert by_instance.tolist() == [False, False, True, True]


def test_repeated_items_count_once_and_tasks_share_questions(tmp_path: Path) -> None:
    text = "seven sailors counted every single island they had passed since the morning of the first day"
    table = pa.concat_tables(
        [item_table([(text, "", ""), (text.upper(), "", "")], "a"), item_table([(text, "", "")], "b")]
    )
    index = index_of(table, tmp_path)
    assert [dataclasses.astuple(one) for one in index.sets] == [("a", "test", 1, 1), ("b", "test", 1, 1)]
    buffers = string_buffers(pa.array([text], pa.large_string()))
    matches = contamination.match(*buffers, contamination_words.fold(*buffers), index, "strict", 8)
    assert [index.set_of(item).task for item in matches.item.tolist()] == ["a", "b"]
