"""The scan accepts only documents that a strict JSON parser accepts, with equal values, and nearly all lines of real files."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.kernels import json_lines

TEXT = st.text() | st.text(st.sampled_from('a"\\/\n\t\x00\x1f\x7f\x80éß中😀\u2028\uffff'))
INNER = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DOCUMENTS = st.fixed_dictionaries(
    {"id": TEXT, "text": TEXT}, optional={"source": TEXT | st.none(), "metadata": INNER, "x": INNER}
)


def scan(*lines: bytes) -> json_lines.Scan:
    return json_lines.scan(np.frombuffer(b"".join(line + b"\n" for line in lines), np.uint8))


def value(strings: json_lines.Strings, k: int) -> str | None:
    found = bytes(strings.data[strings.offsets[k] : strings.offsets[k + 1]]).decode()
    assert strings.valid[k] or found == ""
    return found if strings.valid[k] else None


@given(st.lists(st.tuples(DOCUMENTS, st.booleans()), min_size=1, max_size=4))
def test_every_well_formed_document_is_accepted(documents: list) -> None:
    lines = [json.dumps(document, ensure_ascii=ascii_only).encode() for document, ascii_only in documents]
    found = scan(*lines)
    plain = [k for k, (document, _) in enumerate(documents) if not _is_huge(document)]
    assert set(plain) <= set(found.documents.tolist())
    for k, row in enumerate(found.documents.tolist()):
        document = documents[row][0]
        assert value(found.id, k) == document["id"] and value(found.text, k) == document["text"]
        assert value(found.source, k) == document.get("source")
        metadata = value(found.metadata, k)
        assert (metadata is None) == ("metadata" not in document)
        assert metadata is None or json.loads(metadata) == document["metadata"]


def _is_huge(inner: object) -> bool:
    """Exponents of three digits are left to the slow path."""
    if isinstance(inner, dict | list):
        return any(map(_is_huge, inner.values() if isinstance(inner, dict) else inner))
    return isinstance(inner, float) and abs(inner) >= 1e100


@settings(max_examples=400)
@given(
    DOCUMENTS,
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255), st.integers(0, 2)), max_size=3),
)
def test_what_is_accepted_is_json_however_it_was_spoiled(
    document: dict, ascii_only: bool, edits: list[tuple[int, int, int]]
) -> None:
    """Bytes overwritten, put in or taken out: whatever the scan still accepts, orjson accepts with the same values."""
    line = bytearray(json.dumps(document, ensure_ascii=ascii_only).encode())
    for at, byte, kind in edits:
        at %= len(line) or 1
        line[at : at + (kind != 1)] = b"" if kind == 2 else bytes([byte])
    line = line.replace(b"\n", b" ")
    found = scan(bytes(line))
    if len(found.documents):
        parsed = orjson.loads(line)
        assert [value(found.id, 0), value(found.text, 0), value(found.source, 0)] == [
            parsed["id"],
            parsed["text"],
            parsed.get("source"),
        ]


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":"a","text":"b"',
        b'{"id":"a","text":"b"}}',
        b'{"id":"a","text":"b",}',
        b'{"id":"a" "text":"b"}',
        b'{"id":"a","text":"b","x":01}',
        b'{"id":"a","text":"b","x":1.}',
        b'{"id":"a","text":"b","x":-}',
        b'{"id":"a","text":"b","x":+1}',
        b'{"id":"a","text":"b","x":1e}',
        b'{"id":"a","text":"b","x":1e+}',
        b'{"id":"a","text":"b","x":1e400}',
        b'{"id":"a","text":"b","x":nul}',
        b'{"id":"a","text":"b","x":truee}',
        b'{"id":"a","text":"b","x":[1,]}',
        b'{"id":"a","text":"b","x":[}]}',
        b'{"id":"a","text":"b","x":{"y"}}',
        b'{"id":"a","text":"b","x":"\xed\xa0\x80"}',
        b'{"id":"a","text":"\xf4\x90\x80\x80"}',
        b'{"id":"a","text":"\xc0\xaf"}',
        b'{"id":"a","text":"\xe4\xb8"}',
        b'{"id":"a","text":"\\ud83d"}',
        b'{"id":"a","text":"\\ude00\\ud83d"}',
        b'{"id":"a","text":"\\u12g4"}',
        b'{"id":"a","text":"\\x"}',
        b'{"id":"a","text":"b","id":"a"}',
        b'{"id":"a","text":"b","source":null,"source":"c"}',
        b'{"id":"a","text":"b","source":5}',
        b'{"id":"a"}',
        b'{"text":"b"}',
        b'{"id":1,"text":"b"}',
        b"{}",
        b"",
        b"null",
        b'{"id":"a","text":"b","x":' + b"[" * 100 + b"]" * 100 + b"}",
    ],
)
def test_what_the_scan_leaves_to_the_slow_path(line: bytes) -> None:
    good = b'{"id":"g","text":"good"}'
    found = scan(good, line, good)
    assert found.documents.tolist() == [0, 2]
    assert [value(found.text, k) for k in (0, 1)] == ["good", "good"]


@pytest.mark.parametrize("number", ["1e-05", "-0.5E+10", "0e0", "1e99", "12.5e-300", "-0", "1" * 200])
def test_numbers(number: str) -> None:
    line = f'{{"id":"a","text":"b","x":{number}}}'.encode()
    assert scan(line).documents.tolist() == [0]
    assert orjson.loads(line)["x"] == float(number)


def test_offsets_do_not_keep_the_bytes_of_refused_lines() -> None:
    found = scan(b'{"id":"a","text":"lost","x":}', b'{"id":"b","text":"kept"}')
    assert found.text.offsets.tolist() == [0, 4] and value(found.text, 0) == "kept"
    assert found.lines.tolist() == [0, 30, 55]
