"""fastText scoring over Arrow buffers: plain supervised `.bin` models without subwords, softmax, word n-grams up to 2.

`.bin` file, UTF-8 buffers -> probability of each label. The same float32 sums in the same order as the library.
Everything else (quantised `.ftz`, subwords, longer n-grams, other losses) is `Unsupported`: the library serves those.

Source: facebookresearch/fastText `src/{dictionary,fasttext,model,loss}.cc` (format version 12).
Oddities kept on purpose: FNV-1a sign-extends bytes, bigram hashes sign-extend int32, unseen bigrams still add their
row, a word `</s>` ends the line, words that begin with the label prefix are skipped and leave no bigram, the
probability is exp(log(p + 1e-5)).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from dataplane.kernels import masks
from dataplane.kernels.fasttext_words import split_words
from dataplane.kernels.words import up_to_8
from triplane.errors import Corrupt, TriplaneError

MAGIC = 793712314
FORMAT_VERSION = 12
SOFTMAX_LOSS = 3
SUPERVISED_MODEL = 3
PREFETCH_ROWS = 24
EOS_BYTES = 4
CACHE_LINE_FLOATS = 16


class Unsupported(TriplaneError):
    """A valid fastText file that this kernel does not cover; the message says which feature."""


@dataclass(frozen=True)
class FasttextModel:
    """The arrays the kernel reads. V words, L labels, D dimensions, B buckets.

    input_VBD: float32, words first, then buckets. output_LD: float32. table: int64 [slots, 4], an open-addressing hash
    table of dictionary entries; a slot is half a cache line: hash and entry (-1 empty), length, the word's first 16
    bytes; longer words are compared in entry_bytes.
    """

    labels: tuple[str, ...]
    input_VBD: np.ndarray
    output_LD: np.ndarray
    entry_offsets: np.ndarray
    entry_bytes: np.ndarray
    table: np.ndarray
    num_words: int
    num_buckets: int
    word_ngrams: int


def load(path: Path) -> FasttextModel:
    """Memory-maps a `.bin` file. Raises Corrupt for another format or a short file, Unsupported for a feature left to the library."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    header = _read_arguments(data, path)
    position = 4 + 4 + 12 * 4 + 8
    num_entries, num_words, num_labels = data[position : position + 12].view("<i4").tolist()
    prune_size = int(data[position + 20 : position + 28].view("<i8")[0])
    if prune_size >= 0:
        raise Unsupported(f"{path} is a pruned fastText model; score it with the library")
    offsets, entry_bytes, position = _read_entries(data, position + 28, num_entries, path)
    if data[position]:
        raise Unsupported(f"{path} is a quantised fastText model; score it with the library")
    input_matrix, position = _read_matrix(data, position + 1, path)
    output_matrix, position = _read_matrix(data, position + 1, path)
    labels = tuple(bytes(entry_bytes[offsets[i] : offsets[i + 1]]).decode() for i in range(num_words, num_entries))
    if len(labels) != num_labels or output_matrix.shape[0] != num_labels:
        raise Corrupt(f"{path} says {num_labels} labels and holds {len(labels)}; fetch the file again")
    return FasttextModel(
        labels=labels,
        input_VBD=input_matrix,
        output_LD=output_matrix,
        entry_offsets=offsets,
        entry_bytes=entry_bytes,
        table=_hash_table(offsets, entry_bytes),
        num_words=num_words,
        num_buckets=header["buckets"],
        word_ngrams=header["word_ngrams"],
    )


def _read_arguments(data: np.ndarray, path: Path) -> dict[str, int]:
    if len(data) < 64:
        raise Corrupt(f"{path} has {len(data)} bytes, too few for a fastText model; fetch the file again")
    magic, version = data[:8].view("<i4").tolist()
    if magic != MAGIC or version != FORMAT_VERSION:
        raise Corrupt(f"{path} is not a fastText version {FORMAT_VERSION} model (magic {magic}, version {version})")
    names = (
        "dim", "ws", "epoch", "min_count", "neg", "word_ngrams", "loss", "model", "buckets", "minn", "maxn", "lr_update_rate",
    )  # fmt: skip
    arguments = dict(zip(names, data[8:56].view("<i4").tolist(), strict=True))
    wanted = {"loss": SOFTMAX_LOSS, "model": SUPERVISED_MODEL, "maxn": 0}
    for name, value in wanted.items():
        if arguments[name] != value:
            raise Unsupported(
                f"{path} has fastText {name}={arguments[name]}, the kernel covers {value}; score it with the library"
            )
    if arguments["word_ngrams"] > 2:
        raise Unsupported(
            f"{path} has wordNgrams={arguments['word_ngrams']}, the kernel covers 1 and 2; score it with the library"
        )
    return arguments


def _read_entries(data: np.ndarray, position: int, num_entries: int, path: Path) -> tuple[np.ndarray, np.ndarray, int]:
    """Dictionary entries are `word NUL count:int64 type:int8`."""
    offsets, entry_bytes, end = _split_entries(np.asarray(data), position, num_entries)
    if end < 0:
        raise Corrupt(f"{path} ends inside its dictionary; fetch the file again")
    return offsets, entry_bytes, end


@numba.njit(cache=True)
def _split_entries(data, position, num_entries):  # type: ignore[no-untyped-def]
    offsets = np.zeros(num_entries + 1, np.int64)
    scan = position
    for i in range(num_entries):
        length = 0
        while scan + length < len(data) and data[scan + length] != 0:
            length += 1
        offsets[i + 1] = offsets[i] + length
        scan += length + 1 + 9
        if scan > len(data):
            return offsets, np.zeros(0, np.uint8), -1
    out = np.empty(offsets[num_entries], np.uint8)
    scan = position
    for i in range(num_entries):
        length = offsets[i + 1] - offsets[i]
        out[offsets[i] : offsets[i + 1]] = data[scan : scan + length]
        scan += length + 1 + 9
    return offsets, out, scan


def _read_matrix(data: np.ndarray, position: int, path: Path) -> tuple[np.ndarray, int]:
    rows, columns = data[position : position + 16].view("<i8").tolist()
    start, end = position + 16, position + 16 + rows * columns * 4
    if end > len(data):
        raise Corrupt(f"{path} has {len(data)} bytes and its matrix ends at {end}; fetch the file again")
    # A copy, because the file's floats are unaligned and random reads want huge pages: 36 against 27 MB/s.
    return np.array(np.frombuffer(data, "<f4", count=rows * columns, offset=start)).reshape(rows, columns), end


@numba.njit(cache=True)
def _hash_table(offsets, entry_bytes):  # type: ignore[no-untyped-def]
    size = 1
    while size < 2 * len(offsets):
        size *= 2
    table = np.zeros((size, 4), np.int64)
    table[:, 0] = -1
    for i in range(len(offsets) - 1):
        start, end = offsets[i], offsets[i + 1]
        h = np.uint32(2166136261)
        for k in range(start, end):
            h = np.uint32((h ^ np.uint32(np.int32(np.int8(entry_bytes[k])))) * np.uint32(16777619))
        slot = np.int64(h) & (size - 1)
        while table[slot, 0] >= 0:
            slot = (slot + 1) & (size - 1)
        table[slot, 0] = np.int64(i) << 32 | np.int64(h)
        table[slot, 1] = end - start
        table[slot, 2] = _packed(entry_bytes, start, min(end, start + 8))
        table[slot, 3] = _packed(entry_bytes, start + 8, min(end, start + 16))
    return table


@numba.njit(cache=True)
def _packed(data, start, end):  # type: ignore[no-untyped-def]
    """Up to eight bytes as one integer, where there may be none behind them."""
    value = np.int64(0)
    for k in range(start, end):
        value |= np.int64(data[k]) << 8 * (k - start)
    return value


@intrinsic
def _prefetch(typing_context, array, row):  # type: ignore[no-untyped-def]
    """Asks the cache for the lines of one row; the rows of a 2M-bucket matrix are random reads."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        view = context.make_array(array_type)(context, builder, arguments[0])
        columns = cgutils.unpack_tuple(builder, view.shape)[1]
        index = builder.mul(arguments[1], columns)
        pointer_type, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [pointer_type, int32, int32, int32]),
            "llvm.prefetch.p0",
        )
        with cgutils.for_range_slice(
            builder, ir.Constant(index.type, 0), columns, ir.Constant(index.type, CACHE_LINE_FLOATS), index.type
        ) as (column, _):
            pointer = builder.bitcast(builder.gep(view.data, [builder.add(index, column)]), pointer_type)
            builder.call(function, [pointer, int32(0), int32(1), int32(1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


@numba.njit(cache=True)
def _find_entry(data, start, end, h, entry_offsets, entry_bytes, table):  # type: ignore[no-untyped-def]
    length = end - start
    middle = min(end, start + 8)
    head = np.int64(up_to_8(data, start, middle))
    tail = np.int64(up_to_8(data, middle, min(end, start + 16)))
    slot = np.int64(h) & (len(table) - 1)
    while table[slot, 0] >= 0:
        if (
            table[slot, 0] & 0xFFFFFFFF == np.int64(h)
            and table[slot, 1] == length
            and table[slot, 2] == head
            and table[slot, 3] == tail
        ):
            entry = table[slot, 0] >> 32
            first = entry_offsets[entry]
            k = 16
            while k < length and entry_bytes[first + k] == data[start + k]:
                k += 1
            if k >= length:
                return entry
        slot = (slot + 1) & (len(table) - 1)
    return np.int64(-1)


@numba.njit(cache=True)
def _starts_with(data, start, end, prefix):  # type: ignore[no-untyped-def]
    if end - start < len(prefix):
        return False
    for k in range(len(prefix)):  # noqa: SIM110  (numba has no generators here)
        if data[start + k] != prefix[k]:
            return False
    return True


@numba.njit(cache=True)
def _document_rows(  # type: ignore[no-untyped-def]
    data, starts, ends, word_hashes, count, prefix, eos, entry_offsets, entry_bytes, table, num_words, rows, hashes
):
    """Writes the row of each known word into rows and the hash of each word into hashes -> (rows written, hashes written)."""
    num_rows, num_hashes = 0, 0
    for i in range(count):
        if i + PREFETCH_ROWS < count:
            _prefetch(table, np.int64(word_hashes[i + PREFETCH_ROWS]) & (len(table) - 1))  # type: ignore[call-arg]
        start, end, h = starts[i], ends[i], np.int64(word_hashes[i])
        entry = _find_entry(data, start, end, h, entry_offsets, entry_bytes, table)
        if entry >= num_words or (entry < 0 and _starts_with(data, start, end, prefix)):
            continue
        if entry >= 0:
            rows[num_rows] = entry
            num_rows += 1
        hashes[num_hashes] = np.int64(np.int32(h))
        num_hashes += 1
        if end - start == EOS_BYTES and _starts_with(data, start, end, eos[:EOS_BYTES]):
            return num_rows, num_hashes
    h = np.int64(2166136261)
    for byte in eos[:EOS_BYTES]:
        h = ((h ^ np.int64(byte)) * 16777619) & 0xFFFFFFFF
    entry = _find_entry(eos, 0, EOS_BYTES, h, entry_offsets, entry_bytes, table)
    if entry >= 0:
        rows[num_rows] = entry
        num_rows += 1
    hashes[num_hashes] = np.int64(np.int32(h))
    return num_rows, num_hashes + 1


@numba.njit(cache=True)
def _average_rows(input_VBD, rows, num_rows, hidden):  # type: ignore[no-untyped-def]
    dimensions = len(hidden)
    hidden[:] = np.float32(0.0)
    for i in range(min(PREFETCH_ROWS, num_rows)):
        _prefetch(input_VBD, rows[i])  # type: ignore[call-arg]
    for i in range(num_rows):
        if i + PREFETCH_ROWS < num_rows:
            _prefetch(input_VBD, rows[i + PREFETCH_ROWS])  # type: ignore[call-arg]
        row = rows[i]
        for d in range(dimensions):
            hidden[d] += input_VBD[row, d]
    scale = np.float32(1.0 / num_rows)
    for d in range(dimensions):
        hidden[d] *= scale


@numba.njit(cache=True)
def _softmax_labels(hidden, output_LD, out):  # type: ignore[no-untyped-def]
    num_labels = len(out)
    highest = np.float32(-np.inf)
    for label in range(num_labels):
        total = np.float32(0.0)
        for d in range(len(hidden)):
            total += output_LD[label, d] * hidden[d]
        out[label] = total
        highest = max(highest, total)
    z = np.float32(0.0)
    for label in range(num_labels):
        out[label] = np.float32(np.exp(np.float64(out[label] - highest)))
        z += out[label]
    for label in range(num_labels):
        out[label] = np.exp(np.float32(np.log(np.float64(out[label] / z) + 1e-5)))


@numba.njit(cache=True)
def _score(  # type: ignore[no-untyped-def]
    offsets,
    data,
    joins_lines,
    prefix,
    eos,
    entry_offsets,
    entry_bytes,
    table,
    num_words,
    num_buckets,
    word_ngrams,
    input_VBD,
    output_LD,
    out,
):
    room = 0
    hidden = np.empty(input_VBD.shape[1], np.float32)
    for document in range(len(offsets) - 1):
        start, end = offsets[document], offsets[document + 1]
        most = end - start + 3  # words and bigrams of single letters, and the end of the line
        if most > room:
            room = max(most, 1024)
            rows, hashes = np.empty(room, np.int64), np.empty(room, np.int64)
            edges, values = np.empty((2, room // 2 + 16), np.int64), np.empty((3, room // 2 + 16), np.uint64)
        count = split_words(data, start, end, joins_lines, edges, values)
        num_rows, num_hashes = _document_rows(
            data,
            edges[0],
            edges[1],
            values[2],
            count,
            prefix,
            eos,
            entry_offsets,
            entry_bytes,
            table,
            num_words,
            rows,
            hashes,
        )
        if word_ngrams == 2:
            for i in range(num_hashes - 1):
                h = np.uint64(hashes[i]) * np.uint64(116049371) + np.uint64(hashes[i + 1])
                rows[num_rows] = num_words + np.int64(h % np.uint64(num_buckets))
                num_rows += 1
        if num_rows == 0:
            out[document, :] = np.nan
            continue
        _average_rows(input_VBD, rows, num_rows, hidden)
        _softmax_labels(hidden, output_LD, out[document])


LABEL_PREFIX = np.frombuffer(b"__label__", np.uint8)
END_OF_LINE = np.frombuffer(b"</s>\0\0\0\0", np.uint8)


def score(model: FasttextModel, offsets: np.ndarray, data: np.ndarray, *, joins_lines: bool) -> np.ndarray:
    """Probability of every label -> float32 [documents, labels], columns in the order of `model.labels`.

    offsets int64 [documents + 1], data uint8. A document is one line. With `joins_lines`, the lines of a document are
    joined by a space first, as DCLM does: `" ".join(text.splitlines())`. (Its `.strip()` changes nothing here but for
    edge characters that fastText sees as part of a word: NBSP and the like; strip them first where they matter.)
    NaN where the line has no known word or n-gram: the library returns no label there.
    """
    out = np.empty((len(offsets) - 1, len(model.labels)), np.float32)
    _score(
        np.ascontiguousarray(offsets, np.int64), masks.at_least_64(data), joins_lines, LABEL_PREFIX, END_OF_LINE,
        model.entry_offsets, model.entry_bytes, model.table, model.num_words, max(model.num_buckets, 1),
        model.word_ngrams, model.input_VBD, model.output_LD, out,
    )  # fmt: skip
    return out
