"""Any `tokenizer.json`: Arrow strings -> uint32 ids and int64 offsets, no Python object per document; ids -> text.

The engine is gigatoken, which is trusted with nothing. It gets plain text only (`added_tokens` cuts it). It is reloaded
after a fixed number of bytes, or sooner when memory grew, because its cache never shrinks. It never touches its thread pool:
one core a process, and a forked Spark worker would wait for threads that the fork left behind. A small part of what it
returns is encoded again with `tokenizers`, whose `encode_special_tokens=True` defines the right ids: text that spells a
special token is ordinary text.

Source: gigatoken 0.10.0 (issue 36 of marcelroed/gigatoken: the cache), tokenizers 0.23.
"""

import hashlib
import os
import random
import re
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import awkward as ak
import gigatoken
import numpy as np
import orjson
import pyarrow as pa
import tokenizers

from triplane import added_tokens, tokenizer_source
from triplane.errors import Corrupt, UsageError
from triplane.vocabulary import train

__all__ = ["Tokenizer", "train"]

MiB = 2**20
RELOAD_AFTER_BYTES = 512 * MiB
# Growth of the process: a new word costs 32 to 100 bytes of cache, and some text is all new words.
RELOAD_AFTER_GROWTH_BYTES = 512 * MiB
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
CHECK_EVERY_BYTES = 32 * MiB
SAMPLE_BYTES = 8 * 1024
SLICE_BYTES = 16 * MiB  # of text given to the engine at once: what a reload can be late by
MAX_LOADED = 4
EOS_SPELLINGS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>")
# Where every byte-level pattern cuts, so that the ids before do not depend on the text after: before the space between two
# letters, and after a line break.
_SAFE_CUT = re.compile(rb"[a-z](?= [a-z])|\n(?=\S)")

_LOADED: dict[bytes, "Tokenizer"] = {}
_LOADING = threading.Lock()


class Tokenizer:
    """Encodes and decodes with one `tokenizer.json`. Make it with `load`."""

    def __init__(self, json_bytes: bytes, where: str, reload_after_bytes: int = RELOAD_AFTER_BYTES) -> None:
        """json_bytes: a `tokenizer.json`, `where` names it in errors. Raises UsageError if it cannot be encoded exactly."""
        self.json_bytes = json_bytes
        self.where = where
        self.sha256 = hashlib.sha256(json_bytes).hexdigest()
        self.reloads = 0
        self._reload_after_bytes = reload_after_bytes
        self._bytes_seen = 0
        self._next_check = 0
        self._lock = threading.Lock()
        try:
            config = orjson.loads(json_bytes)
            self._reference = _reference(json_bytes)
            self._engine_json = _without_added_tokens(config)
            self._load_engine()
        except Exception as error:  # both libraries raise plain Exception
            raise UsageError(f"{where} cannot be loaded as a tokenizer.json: {error}") from error
        self._added = config.get("added_tokens") or []
        self._trie = _trie(self._added)
        self._probe()

    @classmethod
    def load(cls, path_or_hub_id: str | Path) -> "Tokenizer":
        """The tokenizer of a `tokenizer.json`, a folder or artifact holding one, an s3:// or gs:// URL, or a Hub id.

        One object a process and content. Raises UsageError that says where it looked and what to do.
        """
        return _of_bytes(tokenizer_source.read(str(path_or_hub_id)), str(path_or_hub_id))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, added tokens included: what a model's embedding must hold at least."""
        return 1 + max(self._reference.get_vocab(with_added_tokens=True).values())

    @cached_property
    def eos_id(self) -> int:
        """The id that ends a document. Raises UsageError if none of `EOS_SPELLINGS` is in the vocabulary."""
        for spelling in EOS_SPELLINGS:
            token = self._reference.token_to_id(spelling)
            if token is not None:
                return int(token)
        raise UsageError(f"{self.where} has no end-of-document token: add one of {', '.join(EOS_SPELLINGS)}")

    def encode(self, texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
        """Ids of documents, no EOS appended: uint32 [n], and int64 [docs + 1] offsets into them.

        Raises UsageError for nulls and other types, Corrupt for text that is not UTF-8 (lone surrogates) and when the sample
        encoded again with `tokenizers` differs.
        """
        data, offsets = _buffers(texts)
        parts = [self._encode_slice(data, part) for part in _slices(offsets)]
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(part_offsets[-1] for _, part_offsets in parts)])
        joined = [part_offsets[:-1] + start for (_, part_offsets), start in zip(parts, starts, strict=False)]
        return (
            np.concatenate([np.empty(0, np.uint32), *(ids for ids, _ in parts)]),
            np.concatenate([*joined, starts[-1:]]).astype(np.int64),
        )

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of ids, special tokens spelled out. Bytes that are not UTF-8 become U+FFFD. Raises UsageError for others."""
        array = np.asarray(ids, np.int64)
        if array.size and not (array.min() >= 0 and array.max() < self.vocab_size):
            raise UsageError(
                f"ids must be in [0, {self.vocab_size}) of {self.where}, got {array.min()} to {array.max()}"
            )
        return str(self._reference.decode(array.tolist(), skip_special_tokens=False))

    def check_sample(
        self, texts: Sequence[str] | pa.Array, ids: np.ndarray, offsets: np.ndarray, documents: Sequence[int] = (0,)
    ) -> int:
        """Encodes some documents again with `tokenizers` and compares; returns how many documents were compared.

        A document over `SAMPLE_BYTES` is compared up to a safe cut, and not at all if it has none. Raises Corrupt.
        """
        data, text_offsets = _buffers(texts)
        return sum(self._check_document(data, text_offsets, ids, offsets, document) for document in documents)

    def _encode_slice(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids, id_offsets = self._encode_pieces(data, offsets)
        if self._bytes_seen >= self._next_check:
            # Spread over documents by a fixed rule, so that the same build checks the same ones.
            document = random.Random(self._bytes_seen).randrange(len(offsets) - 1)
            if self._check_document(data, offsets, ids, id_offsets, document):
                self._next_check = self._bytes_seen + CHECK_EVERY_BYTES
        return ids, id_offsets

    def _encode_pieces(self, data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pieces = added_tokens.cut(self._trie, data, offsets)
        if pieces is None:
            return self._engine_encode(data, offsets)
        return added_tokens.put_back(pieces, *self._engine_encode(data, pieces.bounds))

    def _engine_encode(self, data: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = int(bounds[-1] - bounds[0])
        with self._lock:
            self._reload_if_due(size)
            self._bytes_since_reload += size
            self._bytes_seen += size
            layout = self._engine.encode_batch(_awkward(data, bounds), parallel=False).layout
        return layout.content.data, layout.offsets.data

    def _reload_if_due(self, size: int) -> None:
        if not self._bytes_since_reload:
            return
        grown = _resident_bytes() - self._resident_after_load
        if self._bytes_since_reload + size > self._reload_after_bytes or grown > RELOAD_AFTER_GROWTH_BYTES:
            self._reload()

    def reload(self) -> None:
        """Drops what the engine has cached, by loading it again; from any thread."""
        with self._lock:
            self._reload()

    def _reload(self) -> None:
        del self._engine  # first, so that two caches never stand side by side
        self._load_engine()
        self.reloads += 1

    def _load_engine(self) -> None:
        self._engine = gigatoken.Tokenizer.from_json(self._engine_json)
        self._bytes_since_reload = 0
        self._resident_after_load = _resident_bytes()

    def _check_document(
        self, data: np.ndarray, text_offsets: np.ndarray, ids: np.ndarray, offsets: np.ndarray, document: int
    ) -> bool:
        raw = data[text_offsets[document] : text_offsets[document + 1]]
        got = ids[offsets[document] : offsets[document + 1]]
        if len(raw) <= SAMPLE_BYTES:
            self._compare(raw.tobytes(), got, f"document {document}")
            return True
        head = raw[:SAMPLE_BYTES].tobytes()
        cuts = [match.end() for match in _SAFE_CUT.finditer(head)]
        if not cuts:
            return False
        expected = self._reference_ids(head[: cuts[-1]])
        if not np.array_equal(got[: len(expected)], expected):
            # Not proof for every pattern (or an added token across the cut): the whole document decides.
            self._compare(raw.tobytes(), got, f"document {document}")
        return True

    def _compare(self, text: bytes, got: np.ndarray, what: str) -> None:
        expected = self._reference_ids(text)
        if np.array_equal(got, expected):
            return
        length = min(len(got), len(expected))
        differs = np.flatnonzero(got[:length] != expected[:length])
        at = int(differs[0]) if len(differs) else length
        raise Corrupt(
            f"{what} encoded with {self.where} differs from `tokenizers` at token {at} (got {got[at : at + 3].tolist()}, expected "
            f"{expected[at : at + 3].tolist()}): do not use these ids, install gigatoken and tokenizers as constraints.txt has them"
        )

    def _reference_ids(self, text: bytes) -> np.ndarray:
        return np.array(self._reference.encode(text.decode(), add_special_tokens=False).ids, np.uint32)

    def _probe(self) -> None:
        """Encodes a text with every added token in every surrounding; a tokenizer whose rules differ from ours is refused."""
        spellings = [token["content"] for token in self._added]
        text = "Straße 12345 naïve\r\n\n  \t日本語 🙂e\u0301 don't" + "".join(f" {s}x{s}{s}  {s}\n" for s in spellings)
        data, offsets = _buffers([text])
        ids, _ = self._encode_pieces(data, offsets)
        try:
            self._compare(text.encode(), ids, "a probe")
        except Corrupt as error:
            raise UsageError(f"{self.where} has rules that cannot be encoded exactly: {error}") from error


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc is not there, which leaves the fixed number of bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return 0


def _reference(json_bytes: bytes) -> tokenizers.Tokenizer:
    reference = tokenizers.Tokenizer.from_str(json_bytes.decode())
    reference.encode_special_tokens = True
    reference.no_truncation()
    reference.no_padding()
    return reference


def _without_added_tokens(config: dict[str, Any]) -> str:
    plain: dict[str, Any] = {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return orjson.dumps(config | plain).decode()


def _trie(added: Sequence[dict[str, Any]]) -> added_tokens.Automaton:
    ids = [added_tokens.STAYS_TEXT if token["special"] else int(token["id"]) for token in added]
    return added_tokens.automaton([token["content"].encode() for token in added], ids)


def _of_bytes(json_bytes: bytes, where: str) -> Tokenizer:
    """The one object of this process with that content, wherever it was found first; the last `MAX_LOADED` used are kept."""
    with _LOADING:
        found = _LOADED.pop(json_bytes, None) or Tokenizer(json_bytes, where)
        _LOADED[json_bytes] = found
        if len(_LOADED) > MAX_LOADED:
            del _LOADED[next(iter(_LOADED))]
    return found


def _awkward(data: np.ndarray, bounds: np.ndarray) -> ak.Array:
    """Text buffers as the awkward string array that the engine reads without a copy."""
    characters = ak.contents.NumpyArray(data, parameters={"__array__": "char"})
    return ak.Array(
        ak.contents.ListOffsetArray(ak.index.Index64(bounds), characters, parameters={"__array__": "string"})
    )


def _slices(offsets: np.ndarray) -> Iterator[np.ndarray]:
    """Runs of documents of at most `SLICE_BYTES`, or of one larger document, as their offsets."""
    start, last = 0, len(offsets) - 1
    while start < last:
        end = int(np.searchsorted(offsets, offsets[start] + SLICE_BYTES, side="right")) - 1
        end = min(max(end, start + 1), last)
        yield offsets[start : end + 1]
        start = end


def _buffers(texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 bytes, int64 [docs + 1] offsets into them) of strings, without a copy where they are Arrow strings."""
    array = _large_strings(texts)
    if array.null_count:
        first = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise UsageError(f"text {first} is null: drop it, or give an empty string, before encoding")
    try:
        array.validate(full=True)
    except pa.ArrowInvalid as error:
        raise Corrupt(f"texts are not valid UTF-8 ({error}): quarantine or clean them before encoding") from error
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = array.buffers()
    return (
        np.frombuffer(data or b"", np.uint8),
        np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1],
    )


def _large_strings(texts: Sequence[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        return _from_python(texts)
    if (
        len(texts)
        and not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type))
        and not (pa.types.is_string_view(texts.type) or pa.types.is_dictionary(texts.type))
    ):
        raise UsageError(f"texts are an Arrow array of {texts.type}: encode takes strings")
    array = texts.cast(pa.large_string())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _from_python(texts: Sequence[str]) -> pa.Array:
    if isinstance(texts, str):
        raise UsageError("encode takes a sequence of texts, not one text: give [text]")
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError as error:
        index = next(i for i, text in enumerate(texts) if text is error.object or text == error.object)
        raise Corrupt(
            f"text {index} holds a lone surrogate at character {error.start}, which is not UTF-8: quarantine or clean it before "
            "encoding"
        ) from error
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise UsageError(f"encode takes texts: {error}") from error
