"""Every physical record of a shard is read as a document or quarantined with its reason; nothing is lost silently."""

import base64
import gzip
import json
import random
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents
from dataplane.quarantine import REASONS
from triplane import storage
from triplane.errors import NotFound, UsageError

# What the reader says for each kind of bad line in the shared corpus. `part-bad.labels.json` calls duplicate keys "policy choice":
# they are refused here.
REASON_OF_KIND = {
    "array_not_object": "not_an_object",
    "bad_escape": "malformed_json",
    "bad_unicode_escape": "malformed_json",
    "bare_nan": "malformed_json",
    "bare_string": "not_an_object",
    "binary_garbage": "invalid_utf8",
    "bom_at_line_start": "byte_order_mark",
    "duplicate_keys": "duplicate_key",
    "empty_line": "blank_line",
    "html_error_page": "malformed_json",
    "invalid_utf8_bytes": "invalid_utf8",
    "missing_id": "missing_id",
    "missing_text": "missing_text",
    "nul_bytes": "malformed_json",
    "null": "not_an_object",
    "null_text": "text_not_string",
    "number_text": "text_not_string",
    "object_text": "text_not_string",
    "overlong_utf8": "invalid_utf8",
    "plain_text": "malformed_json",
    "raw_tab_in_string": "malformed_json",
    "trailing_comma": "malformed_json",
    "truncated_last_brace": "malformed_json",
    "truncated_mid_string": "malformed_json",
    "two_objects_one_line": "malformed_json",
    "unquoted_key": "malformed_json",
    "utf8_encoded_surrogate": "invalid_utf8",
    "whitespace_line": "blank_line",
}


def shard(path: Path) -> documents.DocumentShard:
    return documents.shards(str(path))[0]


def written(folder: Path, data: bytes, name: str = "part.jsonl") -> documents.DocumentShard:
    (folder / name).write_bytes(data)
    return shard(folder / name)


def read_all(one: documents.DocumentShard, **options: int) -> tuple[dict[int, str], dict[int, str]]:
    """({row: text}, {row: reason}); checks on the way that rows are numbered without a gap."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for batch in documents.read(one, **options):
        texts |= dict(zip(batch.rows.tolist(), batch.text.to_pylist(), strict=True))
        reasons |= {record.row: record.reason for record in batch.quarantined}
    assert sorted([*texts, *reasons]) == list(range(len(texts) + len(reasons)))
    assert set(reasons.values()) <= set(REASONS)
    return texts, reasons


def line(text: str, **more: object) -> bytes:
    return json.dumps({"id": "a", "text": text, **more}, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("batch_bytes", [1, 10_000, 16 << 20])
def test_every_label_of_the_bad_file_is_met(shared: Path, batch_bytes: int) -> None:
    folder = shared / "data/corpus/defects"
    labels = json.loads((folder / "part-bad.labels.json").read_text())
    texts, reasons = read_all(shard(folder / "part-bad.jsonl.zst"), batch_bytes=batch_bytes)
    assert sorted(texts) == [label["line"] - 1 for label in labels if label["good"]]
    assert reasons == {label["line"] - 1: REASON_OF_KIND[label["kind"]] for label in labels if not label["good"]}
    assert (len(texts), len(reasons)) == (40, 28)


def test_what_is_quarantined_says_where_and_what(shared: Path) -> None:
    [batch] = documents.read(shard(shared / "data/corpus/defects/part-bad.jsonl.zst"))
    of_line = {record.line: record for record in batch.quarantined}
    assert (of_line[28].detail, of_line[28].sample) == ("`text` is a JSON int", '{"id":"x","text":5,"source":"x"}')
    assert of_line[37].detail == "`id` occurs 2 times"
    assert of_line[9].sample == '{"id":"x","text":"caf\\xe9 \\xff\\xfe","source":"x"}'
    assert "column 20" in of_line[4].detail


def test_lone_surrogates_of_the_defects_are_the_only_lines_lost(shared: Path) -> None:
    one = shard(shared / "data/corpus/defects/part-00000.jsonl.zst")
    texts, reasons = read_all(one)
    assert (len(texts), Counter(reasons.values())) == (496, {"lone_surrogate": 6})
    with zstandard.open(shared / "data/corpus/defects/part-00000.jsonl.zst", "rb") as stream:
        lines = stream.read().split(b"\n")
    for row in reasons:
        assert json.loads(lines[row])["metadata"]["defect"] == "bad_unicode"
        with pytest.raises(UnicodeEncodeError):
            json.loads(lines[row])["text"].encode()


def test_frames_are_read_to_the_last_one(shared: Path) -> None:
    folder = shared / "data/corpus/defects"
    labels = json.loads((folder / "containers.labels.json").read_text())
    texts, reasons = read_all(shard(folder / "part-multiframe.jsonl.zst"))
    assert len(texts) == labels["part-multiframe.jsonl.zst"]["docs"] == 12
    assert reasons == {}


def test_a_cut_frame_is_one_quarantined_record(shared: Path) -> None:
    # The label's `docs_before_cut` 12 counts what the whole frame held: its one compressed block is cut, so no byte of it decodes.
    texts, reasons = read_all(shard(shared / "data/corpus/defects/part-truncated.jsonl.zst"))
    assert (texts, reasons) == ({}, {0: "truncated_stream"})


def compressed(data: bytes, suffix: str) -> bytes:
    return {"": data, ".gz": gzip.compress(data), ".zst": zstandard.compress(data)}[suffix]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("stem", ["a.json", "a.jsonl", "a.ndjson"])
def test_extensions_and_codecs(tmp_path: Path, stem: str, suffix: str) -> None:
    data = compressed(line("eins") + line("zwei"), suffix)
    assert read_all(written(tmp_path, data, stem + suffix)) == ({0: "eins", 1: "zwei"}, {})


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_misnamed_file_is_known_by_its_first_bytes(tmp_path: Path, suffix: str) -> None:
    assert read_all(written(tmp_path, compressed(line("eins"), suffix))) == ({0: "eins"}, {})


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_frames_empty_frames_and_damage(tmp_path: Path, suffix: str) -> None:
    name, empty = "a.jsonl" + suffix, compressed(b"", suffix)
    frames = [compressed(line(f"{i} " + "x" * 5000), suffix) for i in range(3)]
    whole, reasons = read_all(written(tmp_path, b"".join([empty, *frames, empty]), name))
    assert (len(whole), reasons) == (3, {})
    cut = b"".join(frames)[: -len(frames[2]) // 2]
    texts, reasons = read_all(written(tmp_path, cut, name))
    assert list(texts) == [0, 1] and reasons == {2: "truncated_stream"}
    texts, reasons = read_all(written(tmp_path, b"".join(frames) + b"garbage behind the data", name))
    assert (len(texts), reasons) == (3, {3: "corrupt_stream"})
    assert read_all(written(tmp_path, b"", name)) == ({}, {0: "truncated_stream"})
    assert read_all(written(tmp_path, empty, name)) == ({}, {})


def test_gzip_may_end_in_zeros_and_a_wrong_checksum_is_noticed(tmp_path: Path) -> None:
    data = gzip.compress(line("eins"))
    assert read_all(written(tmp_path, data + b"\0" * 512, "a.jsonl.gz")) == ({0: "eins"}, {})
    broken = data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    assert read_all(written(tmp_path, broken, "b.jsonl.gz")) == ({0: "eins"}, {1: "corrupt_stream"})


def test_a_skippable_frame_is_skipped(tmp_path: Path) -> None:
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    assert read_all(written(tmp_path, skippable + zstandard.compress(line("eins")))) == ({0: "eins"}, {})


@pytest.mark.parametrize("cut", [1, 17, 18, 19, 500])
def test_where_plain_text_ends_is_not_damage(tmp_path: Path, cut: int) -> None:
    """Without a container nobody can tell a cut from an end; a cut line shows as malformed."""
    data = line("eins") + line("z" * 1000)
    texts, reasons = read_all(written(tmp_path, data[: len(line("eins")) + cut]))
    assert (texts, reasons) == ({0: "eins"}, {1: "malformed_json"})


def test_line_ends_and_byte_order_marks(tmp_path: Path) -> None:
    two = line("eins").replace(b"\n", b"\r\n") + line("zwei").rstrip()
    assert read_all(written(tmp_path, two)) == ({0: "eins", 1: "zwei"}, {})
    assert read_all(written(tmp_path, b"\xef\xbb\xbf" + two)) == ({0: "eins", 1: "zwei"}, {})
    assert read_all(written(tmp_path, b"\xef\xbb\xbf")) == ({}, {})
    assert read_all(written(tmp_path, b"")) == ({}, {})
    assert read_all(written(tmp_path, b"\n\n" + line("eins"))) == ({2: "eins"}, {0: "blank_line", 1: "blank_line"})


@pytest.mark.parametrize("batch_bytes", [1, 100, 1 << 20])
def test_a_document_over_the_limit_is_one_record(tmp_path: Path, batch_bytes: int) -> None:
    size = len(line("x" * 3000)) - 1
    data = line("eins") + line("x" * 3000) + line("x" * 3001) + line("zwei") + line("x" * 9000)
    texts, reasons = read_all(written(tmp_path, data), batch_bytes=batch_bytes, max_document_bytes=size)
    assert list(texts) == [0, 1, 3] and reasons == {2: "too_large", 4: "too_large"}


def test_memory_is_bounded_by_the_limit_not_by_the_record(tmp_path: Path) -> None:
    one = written(tmp_path, giant_line(300) + zstandard.compress(line("eins")), "a.jsonl.zst")
    tracemalloc.start()
    texts, reasons = read_all(one, batch_bytes=1 << 20, max_document_bytes=1 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (texts, reasons) == ({1: "eins"}, {0: "too_large"})
    assert peak < 100 << 20


def giant_line(megabytes: int) -> bytes:
    """Zstd frames that decode to one line, LF included; they compress about 80 times, as a repeated page does and a bomb does not."""
    page = base64.b64encode(random.Random(1).randbytes(96 << 10))  # 128 KiB
    frame = zstandard.compress(page * 64)  # 8 MiB
    return zstandard.compress(b'{"id": "a", "text": "') + frame * (megabytes // 8) + zstandard.compress(b'"}\n')


READ_IN_LITTLE_MEMORY = """
import resource, sys
from dataplane import documents

def records(url, limit):
    return [found for batch in documents.read(documents.shards(url)[0], max_document_bytes=limit) for found in batch.quarantined]

records(sys.argv[1], 64 << 20)  # everything is loaded and compiled
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (384 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
for found in records(sys.argv[2], int(sys.argv[3])):
    print(found.row, found.reason, found.detail)
"""


def read_in_little_memory(small: Path, large: Path, limit: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", READ_IN_LITTLE_MEMORY, str(small), str(large), str(limit)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_line_of_a_gigabyte_is_too_large_and_takes_little_memory(tmp_path: Path) -> None:
    """1 GiB in one line, read where no more than 384 MiB can be allocated; without the limit on documents that is not enough."""
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl.zst"
    small.write_bytes(line("eins") + b"[]\n")
    large.write_bytes(giant_line(1024) + zstandard.compress(line("zwei") + b"[]\n"))
    assert large.stat().st_size < 20 << 20
    done = read_in_little_memory(small, large, 64 << 20)
    assert done.stdout.splitlines() == [
        f"0 too_large {(1 << 30) + 23} bytes, at most {64 << 20} are allowed",
        "2 not_an_object the record is a JSON list",
    ], done.stderr
    control = read_in_little_memory(small, large, 2 << 30)
    assert control.returncode != 0 and "MemoryError" in control.stderr


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_one_record_behind_the_documents_before_it(tmp_path: Path, suffix: str) -> None:
    """A gigabyte of one byte is refused as a bomb before it can be too large; a document of that kind within the limit is still read."""
    longest = "x" * (60 << 20)
    bomb = compressed(line("eins") + line(longest), suffix) + compressed(b"x" * (256 << 20), suffix) + b"behind"
    texts, reasons = read_all(written(tmp_path, bomb, "a.jsonl" + suffix))
    assert (list(texts), reasons) == ([0, 1], {2: "decompression_bomb"})
    assert texts[1] == longest


def test_long_and_empty_texts_are_documents(tmp_path: Path) -> None:
    long = "no space ".replace(" ", "-") * 600_000
    texts, reasons = read_all(written(tmp_path, line("") + line(long) + line("\0")), batch_bytes=1 << 16)
    assert (texts, reasons) == ({0: "", 1: long, 2: "\0"}, {})


def test_the_columns_of_a_batch(tmp_path: Path) -> None:
    data = (
        b'{"id": "a", "source": "s", "text": "eins", "metadata": {"stars": 5, "x": [1, {}]}}\n'
        b"\n"
        b'{"metadata": null, "text": "zw\\u00e4i \\ud83d\\ude00", "\\u0069d": "b", "added": [[], "\\"", -0.5, true]}\n'
        b'{"id": "c", "text": "drei", "source": null, "n": 1e3}\n'
    )
    [batch] = documents.read(written(tmp_path, data), metadata=True)
    assert batch.rows.dtype == np.int64 and batch.rows.tolist() == [0, 2, 3]
    assert batch.id.to_pylist() == ["a", "b", "c"]
    assert batch.text.to_pylist() == ["eins", "zwäi 😀", "drei"]
    assert batch.source.to_pylist() == ["s", None, None]
    assert batch.metadata is not None
    assert batch.metadata.to_pylist() == ['{"stars": 5, "x": [1, {}]}', "null", None]
    assert (batch.num_documents, batch.num_records) == (3, 4)
    offsets, values = batch.text_buffers()
    assert bytes(values[offsets[1] : offsets[2]]).decode() == "zwäi 😀"
    for column in (batch.id, batch.text, batch.source, batch.metadata):
        column.validate(full=True)


KEYS = st.sampled_from(["id", "text", "source", "metadata", "x", "t\u0065xt", "ä\n"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
RECORDS = st.dictionaries(KEYS, st.text() | VALUES, max_size=6) | VALUES


def encoded(record: object, ascii_only: bool, spread: bool) -> bytes:
    return json.dumps(record, ensure_ascii=ascii_only, separators=(" , ", "\t: ") if spread else (",", ":")).encode(
        "utf-8", "surrogatepass"
    )


@given(
    st.lists(st.tuples(RECORDS, st.booleans(), st.booleans(), st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.booleans(),
)
def test_scan_and_slow_path_agree_with_a_json_parser(
    tmp_path_factory: pytest.TempPathFactory, records: list, spoil: bool
) -> None:
    """Random records, a byte of each overwritten at random: the reader accepts a line exactly when orjson does and it is a document."""
    lines = []
    for record, ascii_only, spread, at, byte in records:
        data = bytearray(encoded(record, ascii_only, spread))
        if spoil and at < len(data):
            data[at] = byte
        lines.append(bytes(data).replace(b"\n", b" "))
    path = tmp_path_factory.mktemp("agree")
    found: dict[int, tuple] = {}
    refused = set()
    for batch in documents.read(written(path, b"\n".join(lines) + b"\n" if lines else b""), batch_bytes=50):
        columns = (batch.id.to_pylist(), batch.text.to_pylist(), batch.source.to_pylist())
        found |= {row: values for row, *values in zip(batch.rows.tolist(), *columns, strict=True)}
        refused |= {record.row for record in batch.quarantined}
    assert set(found) | refused == set(range(len(lines)))
    for row, data in enumerate(lines):
        value = _loads(data)
        is_document = (
            isinstance(value, dict) and isinstance(value.get("id"), str) and isinstance(value.get("text"), str)
        )
        if row in found:
            assert is_document and found[row] == [value["id"], value["text"], value.get("source")]
        elif is_document:
            assert not isinstance(value.get("source"), str | None) or _has_duplicates(data)


def _loads(data: bytes) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return None


def _has_duplicates(data: bytes) -> bool:
    keys: list[str] = []
    json.loads(data, object_pairs_hook=lambda pairs: keys.__setitem__(slice(None), [key for key, _ in pairs]))
    return len(keys) != len(set(keys))


def test_folders_globs_and_files(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.json.gz", "a/x.jsonl.zst", "README.md", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    root = str(tmp_path)
    assert [s.name for s in documents.shards(root)] == ["a/1.json.gz", "a/x.jsonl.zst", "b/2.jsonl"]
    assert [s.name for s in documents.shards(root + "/**/*.jsonl")] == ["b/2.jsonl"]
    assert [s.name for s in documents.shards(root + "/*/*.jsonl*")] == ["a/x.jsonl.zst", "b/2.jsonl"]
    assert [s.name for s in documents.shards(root + "/a/?.json.gz")] == ["1.json.gz"]
    assert documents.shards(root + "/b/2.jsonl") == [documents.DocumentShard("2.jsonl", root + "/b/2.jsonl", 0)]
    with pytest.raises(UsageError, match=r"holds no document files .*check the path"):
        documents.shards(root + "/c")
    with pytest.raises(UsageError, match="document format csv"):
        documents.shards(root, "csv")
    with pytest.raises(NotFound):
        list(documents.read(documents.DocumentShard("x.jsonl", root + "/x.jsonl", 0)))


def test_shards_on_s3(s3_root: str) -> None:
    url = storage.join(s3_root, "documents/0000/part.jsonl.zst")
    storage.put(url, zstandard.compress(line("eins") + b"[]\n"))
    [one] = documents.shards(storage.join(s3_root, "documents"))
    assert (one.name, one.url) == ("0000/part.jsonl.zst", url)
    assert read_all(one) == ({0: "eins"}, {1: "not_an_object"})


def test_documents_in_are_documents_out_on_the_whole_corpus(shared: Path) -> None:
    """in = read + quarantined, against a count of line feeds by other means."""
    for one in documents.shards(str(shared / "data/corpus") + "/*/part-0000?.jsonl.zst"):
        with zstandard.open(one.url, "rb") as stream:
            lines = stream.read().count(b"\n")
        batches = list(documents.read(one, batch_bytes=1 << 20))
        assert sum(batch.num_records for batch in batches) == lines
        assert sum(batch.num_documents for batch in batches) + sum(len(b.quarantined) for b in batches) == lines
