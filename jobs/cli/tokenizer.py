"""`triplane tokenizer train`: documents -> a `tokenizer.json` with dolma2's pattern and special tokens."""

import hashlib
import re
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from dataplane import documents
from jobs.cli.common import emit_json, reports_errors
from triplane import decompression, progress, storage
from triplane.errors import Corrupt, LostRace, UsageError

app = typer.Typer(no_args_is_help=True, help="Tokenizers of your own.")
TEXT_SUFFIX = re.compile(r"\.(txt|md)(\.gz|\.zst)?$")


@app.callback()
def _group() -> None:
    """Keeps `train` a subcommand while it is the only one."""


@app.command()
@reports_errors
def train(
    input: Annotated[
        list[str], typer.Option(help="Dolma JSON lines (file, folder or glob) or a text file; repeatable.")
    ],
    vocab_size: Annotated[int, typer.Option(help="Ids at most, the 22 added tokens included.")],
    output: Annotated[str, typer.Option(help="The tokenizer.json to write: a path or URL.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be read and written, and stop.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Report as JSON on stdout.")] = False,
) -> None:
    """Train a byte-level BPE vocabulary. The same documents in the same order give the same bytes."""
    from triplane import vocabulary

    vocabulary.check_size(vocab_size)
    shards = [shard for url in input for shard in _shards(url)]
    report: dict[str, object] = {
        "files": len(shards),
        "stored_bytes": sum(shard.bytes for shard in shards),
        "output": output,
        "vocab_size": vocab_size,
    }
    if dry_run:
        _show(report | {"dry_run": True, "inputs": [shard.url for shard in shards]}, json)
        return
    with progress.bar("tokenizer train", sum(shard.bytes for shard in shards), "B") as bar:
        data = vocabulary.train(_texts(shards, bar), vocab_size)
    _write_once(output, data)
    _show(report | {"vocab_size": vocabulary.size(data), "sha256": hashlib.sha256(data).hexdigest()}, json)


def _shards(url: str) -> list[documents.DocumentShard]:
    if not TEXT_SUFFIX.search(url):
        return documents.shards(url)
    if not storage.exists(url):
        raise UsageError(f"{url} does not exist: check --input")
    return [documents.DocumentShard(url.rsplit("/", 1)[-1], url, storage.size(url))]


def _texts(shards: list[documents.DocumentShard], bar: progress.Bar) -> Iterator[str]:
    for shard in shards:
        yield from _plain_text(shard) if TEXT_SUFFIX.search(shard.url) else _document_texts(shard)
        bar.advance(shard.bytes)


def _document_texts(shard: documents.DocumentShard) -> Iterator[str]:
    refused = 0
    for batch in documents.read(shard):
        refused += len(batch.quarantined)
        yield from batch.text.to_pylist()
    if refused:
        print(f"{shard.url}: {refused} records are not documents and were passed over", file=sys.stderr)


def _plain_text(shard: documents.DocumentShard) -> Iterator[str]:
    """A text file is one document."""
    with storage.open_stream(shard.url) as stream:
        try:
            yield b"".join(decompression.chunks(stream, shard.name)).decode()
        except (UnicodeDecodeError, decompression.Damaged) as error:
            raise Corrupt(f"{shard.url} is not whole UTF-8 text ({error}): repair it or leave it out") from error


def _write_once(url: str, data: bytes) -> None:
    if not storage.put_if_absent(url, data) and storage.read(url) != data:
        raise LostRace(f"{url} exists and holds another tokenizer: choose another --output, or delete it")


def _show(report: dict[str, object], as_json: bool) -> None:
    if as_json:
        emit_json(report)
    else:
        print("\n".join(f"{name}: {value}" for name, value in report.items()))
