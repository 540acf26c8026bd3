"""Where an n-gram is repeated 32 times: the same stretches as a slow search, and as OLMo-core's; documents skipped by bytes have none."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from olmo_core.data.utils import find_periodic_sequences

from dataplane import documents
from dataplane.kernels import repeated_regions
from dataplane.taggers.table import TAGGERS
from triplane import repetition

ONE = TAGGERS["ngram_regions"]
RUNS = st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 7)), max_size=6)


def mark(ids: list[int], max_period: int, times: int) -> list[bool]:
    """Position by position: is it in a stretch of `times` copies of the n-gram that starts there, for any n."""
    marked = [False] * len(ids)
    for period in range(1, max_period + 1):
        for start in range(len(ids) - period * times + 1):
            if ids[start : start + period * times] == ids[start : start + period] * times:
                marked[start : start + period * times] = [True] * (period * times)
    return marked


@given(documents=st.lists(RUNS, max_size=4))
def test_equal_to_a_slow_search(documents: list[list[tuple[list[int], int]]]) -> None:
    texts = [[value for ngram, times in runs for value in ngram * times] for runs in documents]
    offsets = np.cumsum([0, *map(len, texts)])
    bounds, flat = repeated_regions.find(
        np.array([value for ids in texts for value in ids], np.uint32), offsets, max_period=4, times=3
    )
    for ids, a, b in zip(texts, bounds, bounds[1:], strict=False):
        regions = flat[a:b].reshape(-1, 2)
        marked = np.zeros(len(ids), bool)
        for start, end in regions.tolist():
            marked[start:end] = True
        slow = np.array(mark(ids, 4, 3), bool)
        assert np.array_equal(marked, slow)
        assert (np.diff(flat[a:b]) > 0).all()


@given(RUNS)
def test_bytes_that_cannot_repeat_hold_no_region(runs: list[tuple[list[int], int]]) -> None:
    """The necessary condition on bytes, with "tokens" of one to three bytes."""
    spelling = {0: b"a", 1: b"ab", 2: b"bca", 3: b" "}
    ids = [value for ngram, times in runs for value in ngram * times]
    data = np.frombuffer(b"".join(spelling[value] for value in ids), np.uint8)
    [possible] = repeated_regions.can_repeat(np.array([0, len(data)]), data, times=3)
    if not possible:
        assert not any(mark(ids, 4, 3))


def test_regions_are_those_of_olmo_core() -> None:
    rng = np.random.default_rng(0)
    for period in (1, 2, 5, 13):
        ids = np.concatenate([rng.integers(100, 200, 50), np.tile(np.arange(period), 40), rng.integers(100, 200, 50)])
        found = [(r.start, r.end) for r in find_periodic_sequences(ids, max_period=13) if r.times >= 32]
        _, flat = repeated_regions.find(ids.astype(np.uint32), np.array([0, len(ids)]))
        assert flat.tolist() == [min(start for start, _ in found), max(end for _, end in found)]


def test_planted_repeats(shared: Path) -> None:
    """A document has a region exactly when the whole-document rule flags it; below 32 and controls have none."""
    params = ONE.params(tokenizer=str(shared / "data/tokenizer/allenai_dolma2.json"))
    rule = TAGGERS["ngram_repetition"]
    flagged = 0
    for batch in documents.read(
        documents.shards(str(shared / "data/corpus/defects/part-00000.jsonl.zst"))[0], metadata=True
    ):
        assert batch.metadata is not None
        rows, whole = ONE.tag(batch, params).to_pylist(), rule.tag(batch, params).to_pylist()
        for row, repeats, metadata in zip(rows, whole, batch.metadata.to_pylist(), strict=True):
            assert bool(row["ngram_regions"]) == (repeats["ngram_repeat_times"] >= repetition.MAX_TIMES)
            if json.loads(metadata)["defect"] in ("ngram_repeat", "ngram_repeat_symbols"):
                start, end = row["ngram_regions"][0], row["ngram_regions"][-1]
                assert 0 <= start < end <= repeats["token_count"]
                flagged += 1
    assert flagged == 43


def test_a_small_text(shared: Path) -> None:
    params = ONE.params(tokenizer=str(shared / "data/tokenizer/allenai_dolma2.json"))
    texts = ["Once." + " and the" * 32 + " end", "", "no repeats", "x" + " a" * 32 + " b c d" + " e f" * 40]
    columns = ONE.tag(documents.make_batch(range(4), ["x"] * 4, texts), params)
    assert columns.schema == ONE.columns(params)
    assert columns["ngram_regions"].to_pylist() == [[2, 66], [], [], [1, 33, 36, 116]]
    assert ONE.tag(documents.make_batch([], [], []), params).num_rows == 0
