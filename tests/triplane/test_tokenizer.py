"""The tokenizer wrapper: the same ids as `tokenizers` on everything, bounded time and memory, and its own checks shown to fail."""

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tokenizers
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from triplane import tokenizer as module
from triplane.errors import Corrupt, UsageError
from triplane.tokenizer import Tokenizer, train

GOLDEN = Path(__file__).parents[1] / "golden/tokenizer_corpus.json"
SURROGATES = re.compile("[\ud800-\udfff]")
MASKED = "Mail |||EMAIL_ADDRESS||| or call|||PHONE_NUMBER|||, <|extra_id_10|><|extra_id_1|>0|>"
SPECIAL = "a<|endoftext|> b <|pad|><|im_start|>user<|fim_prefix|>"
PIECES = [
    "|||EMAIL_ADDRESS|||",
    "<|extra_id_1|>",
    "<|extra_id_10|>",
    "<|endoftext|>",
    "<|pad|>",
    "<|",
    "|||",
    "|>",
    " ",
    "\n",
    "\r\n",
    "  \t",
    "don't",
    "'LL",
    "ſ",
    "e\u0301",
    "\u200d",
    "👩‍👩‍👧",
    "\u3000",
    "\xa0",
    "٣",
    "12345",
    "日本",
    "\x00",
    "\ufeff",
    "İ",
    "ǅ",
    "\U0001d7d8",
    "\U000e0041",
]


@pytest.fixture(scope="module")
def path(shared: Path) -> Path:
    return shared / "data/tokenizer/allenai_dolma2.json"


@pytest.fixture(scope="module")
def dolma2(path: Path) -> Tokenizer:
    return Tokenizer.load(path)


@pytest.fixture(scope="module")
def reference(path: Path) -> tokenizers.Tokenizer:
    peer = tokenizers.Tokenizer.from_file(str(path))
    peer.encode_special_tokens = True
    return peer


@pytest.fixture(scope="module")
def small() -> bytes:
    return train(["the cat sat on the mat and the cat ran\n" * 50], 320)


def rows(encoded: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    ids, offsets = encoded
    assert ids.dtype == np.uint32 and offsets.dtype == np.int64 and offsets[0] == 0 and offsets[-1] == len(ids)
    return [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]


def expected(reference: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in reference.encode_batch_fast(texts, add_special_tokens=False)]


def corpus(shared: Path, part: str = "part-0000[0-9]") -> Iterator[tuple[str, list[str]]]:
    """(file, texts) of the documents, the defects too; texts that are not UTF-8 are left out."""
    for file in sorted((shared / "data/corpus").glob(f"*/{part}.jsonl.zst")):
        with file.open("rb") as stream:
            lines = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True).read().split(b"\n")
        texts = [json.loads(line)["text"] for line in lines if line]
        yield f"{file.parent.name}/{file.name}", [text for text in texts if not SURROGATES.search(text)]


def digest(ids: np.ndarray, offsets: np.ndarray) -> str:
    return hashlib.sha256(ids.astype("<u4").tobytes() + np.diff(offsets).astype("<i8").tobytes()).hexdigest()


def digest_rows(ids: list[list[int]]) -> str:
    offsets = np.cumsum([0, *(len(row) for row in ids)])
    return digest(np.concatenate([np.array(row, np.uint32) for row in ids]), offsets)


def record(shared: Path) -> None:
    """Writes the golden digests, with `tokenizers` alone: two minutes, so the test reads them instead of making them."""
    peer = tokenizers.Tokenizer.from_file(str(shared / "data/tokenizer/allenai_dolma2.json"))
    peer.encode_special_tokens = True
    found = {name: digest_rows(expected(peer, texts)) for name, texts in corpus(shared)}
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")


def test_ids_and_offsets_of_a_batch(dolma2: Tokenizer) -> None:
    ids, offsets = dolma2.encode(["Hello world", "", "Hello world"])
    assert ids.tolist() == [9906, 1917, 9906, 1917] and ids.dtype == np.uint32
    assert offsets.tolist() == [0, 2, 2, 4] and offsets.dtype == np.int64
    assert (dolma2.eos_id, dolma2.vocab_size) == (100257, 100278)
    assert len(dolma2.sha256) == 64 and json.loads(dolma2.json_bytes)["version"] == "1.0"


def test_identical_ids_on_every_document_of_the_corpus(shared: Path, dolma2: Tokenizer) -> None:
    golden = json.loads(GOLDEN.read_text())
    assert {name: digest(*dolma2.encode(texts)) for name, texts in corpus(shared)} == golden


def test_identical_ids_document_by_document_on_a_part_of_every_source(
    shared: Path, dolma2: Tokenizer, reference: tokenizers.Tokenizer
) -> None:
    golden = json.loads(GOLDEN.read_text())
    for number, (name, texts) in enumerate(corpus(shared, "part-00000")):
        is_whole = number % 4 == 0
        some = texts if is_whole else texts[::8]
        theirs = expected(reference, some)
        assert rows(dolma2.encode(some)) == theirs, name
        if is_whole:
            assert digest_rows(theirs) == golden[name], name  # so the golden file is what `tokenizers` says


def test_special_tokens_are_text_and_masks_keep_their_ids(dolma2: Tokenizer, reference: tokenizers.Tokenizer) -> None:
    texts = [MASKED, SPECIAL, MASKED + SPECIAL, "|||EMAIL_ADDRESS|||", "", "<|extra_id_1", "0|>"]
    got = rows(dolma2.encode(texts))
    assert got == expected(reference, texts)
    assert {100262, 100261, 100275, 100266} <= set(got[0])
    assert max(got[1]) < 100256
    assert got[3] == [100262]


@settings(max_examples=150)
@given(texts=st.lists(st.lists(st.text(max_size=20) | st.sampled_from(PIECES), max_size=12).map("".join), max_size=5))
def test_identical_ids_on_fuzzed_unicode(dolma2: Tokenizer, reference: tokenizers.Tokenizer, texts: list[str]) -> None:
    ids, offsets = dolma2.encode(texts)
    assert rows((ids, offsets)) == expected(reference, texts)
    assert [dolma2.decode(ids[a:b]) for a, b in itertools.pairwise(offsets)] == texts


def test_every_arrow_layout_of_strings_gives_the_same(dolma2: Tokenizer) -> None:
    texts = ["first", "", MASKED, "日本語", "last one"]
    want = rows(dolma2.encode(texts))
    whole = pa.array(["before", *texts, "after"], pa.string())
    assert rows(dolma2.encode(whole.slice(1, 5))) == want
    assert rows(dolma2.encode(whole.cast(pa.large_string()).slice(1, 5))) == want
    assert rows(dolma2.encode(whole.cast(pa.string_view()).slice(1, 5))) == want
    assert rows(dolma2.encode(whole.dictionary_encode().slice(1, 5))) == want
    assert rows(dolma2.encode(pa.chunked_array([whole.slice(1, 2), whole.slice(3, 0), whole.slice(3, 3)]))) == want


@pytest.mark.parametrize(
    "nothing",
    [[], pa.array([], pa.string()), pa.array([]), pa.chunked_array([], pa.large_string()), pa.array(["a"]).slice(1)],
)
def test_no_documents(dolma2: Tokenizer, nothing: list[str] | pa.Array) -> None:
    ids, offsets = dolma2.encode(nothing)
    assert (ids.tolist(), offsets.tolist(), ids.dtype, offsets.dtype) == ([], [0], np.uint32, np.int64)
    assert rows(dolma2.encode(["", ""])) == [[], []]


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        (pa.array(["a", None]), UsageError, "text 1 is null"),
        (["a", None], UsageError, "text 1 is null"),
        (pa.array([b"a"], pa.binary()), UsageError, "array of binary"),
        ([1], UsageError, "encode takes texts"),
        ("one text", UsageError, r"give \[text\]"),
        (["fine", "bad \ud83d here"], Corrupt, "text 1 holds a lone surrogate at character 4"),
        (
            pa.LargeStringArray.from_buffers(1, pa.py_buffer(np.array([0, 2])), pa.py_buffer(b"\xff\xfe")),
            Corrupt,
            "not valid UTF-8",
        ),
    ],
)
def test_what_is_not_text_is_refused(dolma2: Tokenizer, texts: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        dolma2.encode(texts)


def test_decode(dolma2: Tokenizer) -> None:
    assert dolma2.decode([9906, 1917, dolma2.eos_id, 100262]) == "Hello world<|endoftext|>|||EMAIL_ADDRESS|||"
    assert dolma2.decode(np.array([], np.uint32)) == ""
    half_an_emoji = dolma2.encode(["🙂"])[0][:1]
    assert "\ufffd" in dolma2.decode(half_an_emoji)
    for outside in ([100278], [-1]):
        with pytest.raises(UsageError, match=r"ids must be in \[0, 100278\)"):
            dolma2.decode(outside)


def test_a_large_batch_is_cut_into_slices(
    dolma2: Tokenizer, reference: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["short", "", "a longer one than the slice " * 3, MASKED, "x"]
    monkeypatch.setattr(module, "SLICE_BYTES", 10)
    assert rows(dolma2.encode(texts)) == expected(reference, texts)


def test_a_wrong_id_from_the_engine_stops_the_build(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(small, "small")
    honest = Tokenizer._engine_encode

    def lying(self: Tokenizer, data: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = honest(self, data, bounds)
        return np.where(np.arange(len(ids)) == 2, ids + np.uint32(1), ids), offsets

    monkeypatch.setattr(Tokenizer, "_engine_encode", lying)
    with pytest.raises(Corrupt, match="document 0 encoded with small differs from `tokenizers` at token 2"):
        tokenizer.encode(["the cat sat on the mat"])
    with pytest.raises(UsageError, match="small has rules that cannot be encoded exactly"):
        Tokenizer(small, "small")


def test_the_sample_is_spread_and_cheap(small: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(small, "small")
    checked: list[str] = []
    honest = tokenizer._reference_ids
    monkeypatch.setattr(tokenizer, "_reference_ids", lambda text: checked.append(text.decode()) or honest(text))
    monkeypatch.setattr(module, "CHECK_EVERY_BYTES", 4000)
    for batch in range(20):
        tokenizer.encode([f"batch {batch} document {i} " + "the cat " * 10 for i in range(10)])  # about 1 kB
    assert 4 <= len(checked) <= 6
    assert len({text.split(" the ")[0].split(" document ")[1] for text in checked}) > 1


def test_check_sample(dolma2: Tokenizer) -> None:
    texts = [MASKED, "Plain words and more of them. " * 2000, "a" * 20_000]
    ids, offsets = dolma2.encode(texts)
    assert dolma2.check_sample(texts, ids, offsets, range(3)) == 2  # the last has no safe cut
    for document, position in ((0, 3), (1, 5)):
        wrong = ids.copy()
        wrong[offsets[document] + position] += 1
        with pytest.raises(Corrupt, match=f"document {document} .* at token {position} "):
            dolma2.check_sample(texts, wrong, offsets, [document])
    with pytest.raises(Corrupt, match="document 0"):
        dolma2.check_sample(texts, ids[:-1], np.array([0, offsets[1] - 1, *offsets[2:]]), [0])


def test_a_false_alarm_of_the_sample_is_decided_by_the_whole_document(small: bytes) -> None:
    config = json.loads(small)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    config["added_tokens"].append({"id": 400, "content": "cat ran", **flags})
    config["model"]["vocab"]["cat ran"] = 400
    tokenizer = Tokenizer(json.dumps(config).encode(), "with a space")
    text = "cat ran" * 2000
    ids, offsets = tokenizer.encode([text])
    assert ids.tolist() == [400] * 2000
    assert tokenizer.check_sample([text], ids, offsets) == 1


def test_rules_that_cannot_be_kept_are_refused_on_load(small: bytes) -> None:
    config = json.loads(small)
    config["added_tokens"][0]["lstrip"] = True
    with pytest.raises(UsageError, match=r"stripping\.json has rules that cannot be encoded exactly"):
        Tokenizer(json.dumps(config).encode(), "stripping.json")
    with pytest.raises(UsageError, match=r"broken\.json cannot be loaded as a tokenizer\.json"):
        Tokenizer(b"{}", "broken.json")


def test_no_end_of_document_token(small: bytes) -> None:
    renamed = small.replace(b"<|endoftext|>", b"<|stop here|>")
    with pytest.raises(UsageError, match="renamed has no end-of-document token"):
        _ = Tokenizer(renamed, "renamed").eos_id


if __name__ == "__main__":
    record(Path(os.environ.get("TRIPLANE_SHARED", Path(__file__).parents[3] / "shared")))
