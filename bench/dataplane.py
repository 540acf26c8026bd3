"""How fast is a core from raw documents to attributes, and to token shards? Ours, datatrove and dolma on the same documents, in one run.

`tag`: Gopher quality and repetition, repeated n-grams, exact hash, MinHash 14x8 and token counts, JSONL.zst to Parquet. `build`: the same,
then selection with exact and near duplicates removed, then token shards, all of it by Spark with one worker; `all_kept`: a build with
Gopher's taggers alone that drops nothing and tokenizes every document. Peers: datatrove's own blocks as shipped (spaCy's words) and with
words split at white space; its local executor with filters, MinHash and `DocumentTokenizer`; dolma's `gopher_v2` tagger, and that and its
`tokens` beside `all_kept`, for they drop nothing either. Peers run on a prefix that takes them about 15 s (5 s in `--quick`), ours on more
(the corpus and edited copies of it).

MB of UTF-8 text per second of CPU time on one core, in two protocols. `all_in`: all CPU time of the commands from the start of the process,
ours with Spark's JVM, imports and the loading of kernels and tokenizer, theirs likewise: what a run costs, and how issue 10 measured dolma.
`ratio`, `ratio_dolma`, `ratio_tag`, `ratio_tag_whitespace`, `ratio_tag_dolma` and `tag_mb_per_s` are all_in. `marginal`: start-up left out
on all sides. Ours and dolma's less the same command on one document (100 for ours), datatrove's by its own clock behind its imports and the
loading of spaCy. The same names end in `_marginal`. `ratio_tag_dolma` is `tag` with all its rules over dolma's `gopher_v2`;
`ratio_tag_dolma_same_rules` ours with Gopher's quality and repetition alone, as `gopher_v2` has them. `*_block`: one of datatrove's blocks
alone on every document, as the issue measured them, where its build hands on only what the filters before kept; `ratio_blocks_alone`: our
build over those blocks one behind the other, its tokenizer left out.

Output compared: on what datatrove was given, its reasons to drop (whitespace words) and its token counts with ours; dolma's token ids with
ours of the text without the white space at its ends, which dolma drops. A document may differ where datatrove joins the words of an n-gram
without a space ("ab" "c" is "a" "bc"): those are counted, not hidden. The last line is one JSON object.

    python bench/dataplane.py [--quick]      # --quick: datatrove only
"""

import argparse
import csv
import gzip
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring

RULES = ("gopher_quality", "gopher_repetition")
SHARD_BYTES = 32 << 20
WORDS_PER_EDIT = 4  # copies that are no near duplicates: else ours would leave out most of the work, and the peer's prefix holds none
EOS, PAD = 100257, 100277
TRIES = 3  # another process may compile at the same time
BLOCKS = ("quality", "repetition", "minhash")
NGRAM_REASONS = ("top_", "duplicated_")


def our_tag(documents: Path, output: Path, names: Sequence[str] = measuring.TAGGERS) -> dict[str, Any]:
    """Tags every shard as the `tag` verb does, into a Parquet file each."""
    from dataplane import documents as reading
    from dataplane import spark_worker, tagging
    from dataplane.taggers.table import TAGGERS as KNOWN

    start = time.process_time()
    values: dict[str, Any] = {"ngram_repetition": {"tokenizer": str(measuring.TOKENIZER)}, "minhash": measuring.MINHASH}
    taggers = [(KNOWN[name], KNOWN[name].params.model_validate(values.get(name, {}))) for name in names]
    schema, size = tagging.attributes_schema(taggers), 0
    for shard in reading.shards(str(documents)):
        with spark_worker.parquet_writer(output / shard.name.replace(".jsonl.zst", ".parquet"), schema) as writer:
            tables = (tagging.batch_table(b, taggers, schema, "bench", shard.name) for b in reading.read(shard))
            for table in tagging.row_groups(tables):
                writer.write_table(table, row_group_size=spark_worker.ROW_GROUP_ROWS)
                size += int(table.column("text_bytes").to_numpy().sum())
    return {"bytes": size, "cpu": time.process_time() - start}


def our_gopher(documents: Path, output: Path) -> dict[str, Any]:
    """`tag` with the rules of dolma's `gopher_v2` alone."""
    return our_tag(documents, output, RULES)


def our_build(documents: Path, output: Path, rules: bool = True) -> dict[str, Any]:
    """A whole build with one Spark worker."""
    from dataplane import build
    from dataplane.recipe import BuildRecipe
    from triplane.progress import Progress
    from triplane.recipe import parse

    result = build.run(
        parse(measuring.recipe(documents, "local[1]", rules), BuildRecipe, "bench"), str(output), Progress()
    )
    counts: dict[str, int] = {}
    for row in result.funnel:
        counts[row.fate] = counts.get(row.fate, 0) + row.documents
    return {"funnel": counts, "stages": [stage.to_json() for stage in result.stages]}


def our_all_kept(documents: Path, output: Path) -> dict[str, Any]:
    """What dolma's `tag` and `tokens` do: nothing is dropped."""
    return our_build(documents, output, rules=False)


def our_decisions(folder: Path) -> Iterator[list[Any]]:
    """(id, quality's reason, repetition's reason, tokens) of the documents in order, from the attributes."""
    import pyarrow.parquet as pq

    from dataplane.tagger import first_match
    from dataplane.taggers.table import TAGGERS as KNOWN

    for path in sorted(folder.glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            reasons = [first_match(KNOWN[name].rules, row) for name in RULES]
            yield [row["id"], *reasons, row["token_count"]]


def compare_decisions(attributes: Path, found: Path) -> dict[str, int]:
    """Ours and datatrove's on the same documents: compared, differing, and differing by an n-gram rule alone."""
    theirs = json.loads(found.read_text())
    differing = joined = 0
    for ours, their in zip(our_decisions(attributes), theirs, strict=False):
        if ours[0] != their[0]:
            raise SystemExit(f"documents are not in one order: {ours[0]} and {their[0]}")
        # Of an empty text datatrove says "empty"; our ratios are 0 there and quality's rule drops it.
        if ours == their or (their[2] == "empty" and ours[:2] == their[:2]):
            continue
        differing += 1
        reasons = [reason or NGRAM_REASONS[0] for reason in (ours[2], their[2])]
        joined += [ours[1], ours[3]] == [their[1], their[3]] and all(r.startswith(NGRAM_REASONS) for r in reasons)
    return {"documents_compared": len(theirs), "documents_differing": differing, "differing_by_joined_ngrams": joined}


@dataclass(frozen=True)
class Rates:
    """MB/s of CPU time in both protocols, and what the command said and wrote."""

    all_in: float
    marginal: float
    said: dict[str, Any]
    output: Path


def datatrove(job: str, splitter: str, seconds: float, documents: Path, folder: Path) -> Rates:
    output = folder / f"datatrove-{job}-{splitter}"
    command = [measuring.DATATROVE, measuring.ROOT / "bench/datatrove_peer.py", job, documents, output]
    options = ["--tokenizer", measuring.TOKENIZER, "--seconds", str(seconds), "--splitter", splitter]
    said = measuring.child([*command, *options], folder)
    megabytes = said["bytes"] / 1e6
    rate = measuring.note(f"datatrove {job} ({splitter})", megabytes, said["tree_cpu"])
    return Rates(rate, megabytes / said["cpu"], said, output / "found.json")


def ours(job: str, sizes: dict[Path, int], folder: Path) -> Rates:
    """On the small documents and on the large ones."""
    spent, said, output = list[float](), dict[str, Any](), folder
    for documents, size in sizes.items():
        said, output = _our_run(job, documents, folder, repeated=not spent)
        measuring.note(f"ours {job}", size / 1e6, said["tree_cpu"])
        spent.append(said["tree_cpu"])
    small, large = sizes.values()
    return Rates(large / 1e6 / spent[1], (large - small) / 1e6 / (spent[1] - spent[0]), said, output)


def _our_run(job: str, documents: Path, folder: Path, repeated: bool) -> tuple[dict[str, Any], Path]:
    """What the command said, and its output; `repeated`: again when it compiled what was not in numba's cache."""
    said: dict[str, Any] = {}
    for _ in range(TRIES):
        compiled, output = _num_compiled(), folder / f"ours-{job}-{time.monotonic_ns()}"
        output.mkdir()
        said = measuring.child([sys.executable, __file__, "--child", job, documents, output], folder)
        if not repeated or _num_compiled() == compiled:
            break
    return said, output


def _num_compiled() -> int:
    return sum(1 for _ in Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbc"))


def dolma(job: str, seconds: float, folder: Path) -> Rates:
    """`gopher_v2` or `tokens`, on about as many bytes as take it the time."""
    spent, sizes, path = [], [], folder
    for name, limit in (("one", 0.0), ("prefix", seconds * {"tag": 0.8, "tokens": 2.0}[job] * 1e6)):
        path = folder / "dolma" / f"{job}-{name}" / "documents" / "part-0.jsonl.gz"
        sizes.append(_write_prefix(measuring.corpus(), limit, path))
        spent.append(measuring.run(_dolma_command(job, path), folder)[0]["cpu"])
    rate = measuring.note(f"dolma {job}", sizes[1] / 1e6, spent[1])
    return Rates(rate, (sizes[1] - sizes[0]) / 1e6 / (spent[1] - spent[0]), {}, path.parents[1] / "tokens")


def _write_prefix(documents: list[measuring.Document], limit: float, path: Path) -> int:
    path.parent.mkdir(parents=True)
    size = 0
    with gzip.open(path, "wt", compresslevel=1) as file:
        for document in documents:
            file.write(json.dumps(document | {"source": "bench"}) + "\n")
            size += len(document["text"].encode())
            if size >= limit:
                return size
    return size


def _dolma_command(job: str, path: Path) -> list[str | Path]:
    if job == "tag":
        where: list[str | Path] = ["--documents", path, "--experiment", "bench"]
        return [measuring.DOLMA, "tag", *where, "--taggers", "gopher_v2", "--processes", "1"]
    tokenizer: list[str | Path] = [
        "--tokenizer.name_or_path",
        measuring.TOKENIZER,
        "--tokenizer.eos_token_id",
        str(EOS),
    ]
    output: list[str | Path] = [
        "--destination",
        path.parents[1] / "tokens",
        "--tokenizer.pad_token_id",
        str(PAD),
        "--dtype",
        "uint32",
    ]
    return [measuring.DOLMA, "tokens", "--documents", path, *tokenizer, *output, "--processes", "1"]


def _compare_ids(documents: list[measuring.Document], folder: Path) -> dict[str, int]:
    import numpy as np

    from triplane.tokenizer import Tokenizer

    ids = np.fromfile(folder / "part-0-00000.npy", np.uint32)
    with gzip.open(folder / "part-0-00000.csv.gz", "rt") as file:
        where = {row[2]: (int(row[0]), int(row[1])) for row in csv.reader(file)}
    chosen = [document for document in documents if document["id"] in where]
    encoded, offsets = Tokenizer.load(measuring.TOKENIZER).encode([document["text"].strip() for document in chosen])
    differing = 0
    for document, (a, b) in zip(chosen, itertools.pairwise(offsets.tolist()), strict=True):
        start, end = where[document["id"]]
        differing += not np.array_equal(ids[start:end], np.append(encoded[a:b], EOS))
    return {"dolma_documents_compared": len(chosen), "dolma_documents_differing": differing}


def ratios(name: str, ours: Rates, peer: Rates | tuple[Rates, ...]) -> dict[str, float]:
    """Ours over the peer's in both protocols; several commands of a peer are run one behind the other."""
    peers = peer if isinstance(peer, tuple) else (peer,)
    found = {}
    for ending, protocol in (("", "all_in"), ("_marginal", "marginal")):
        together = 1 / sum(1 / getattr(one, protocol) for one in peers)
        found[f"{name}{ending}"] = round(getattr(ours, protocol) / together, 1)
    return found


def rates(name: str, of: Rates) -> dict[str, float]:
    return {name: round(of.all_in, 3), f"{name}_marginal": round(of.marginal, 3)}


def measured(quick: bool, folder: Path) -> dict[str, Any]:
    """Every run, in turn -> the figures of the last line."""
    seconds, copies = (5.0, 2) if quick else (15.0, 10)
    documents, few = folder / "documents", folder / "few"
    mixed = measuring.corpus()
    sizes = {few: measuring.write_shards(mixed[:100], few, SHARD_BYTES)}
    sizes[documents] = measuring.write_shards(measuring.grown(mixed, copies, WORDS_PER_EDIT), documents, SHARD_BYTES)
    tags, built = (ours(job, sizes, folder) for job in ("tag", "build"))
    shipped, split = (datatrove("tag", splitter, seconds, documents, folder) for splitter in ("shipped", "whitespace"))
    whole = datatrove("build", "shipped", seconds, documents, folder)
    compared = compare_decisions(tags.output, split.output)
    figures = {
        **rates("ours", built),
        **rates("peer", whole),
        **ratios("ratio", built, whole),
        "same_output": compared["documents_differing"] == compared["differing_by_joined_ngrams"],
        **rates("tag_mb_per_s", tags),
        **rates("datatrove_tag", shipped),
        **rates("datatrove_tag_whitespace", split),
        **ratios("ratio_tag", tags, shipped),
        **ratios("ratio_tag_whitespace", tags, split),
        **compared,
        "megabytes": round(sizes[documents] / 1e6, 1),
        "funnel_documents": built.said["funnel"],
        "stages": built.said["stages"],
    }
    if not quick:
        figures |= _more(seconds, sizes, folder, tags, built)
        figures["same_output"] &= figures["dolma_documents_differing"] == 0
    return figures


def _more(seconds: float, sizes: dict[Path, int], folder: Path, tags: Rates, built: Rates) -> dict[str, Any]:
    """dolma, and datatrove's blocks alone."""
    kept, gopher = (ours(job, sizes, folder) for job in ("all_kept", "gopher"))
    tag, tokens = (dolma(job, seconds, folder) for job in ("tag", "tokens"))
    figures: dict[str, Any] = {
        **rates("ours_all_kept", kept),
        **rates("ours_gopher_tag", gopher),
        **rates("dolma_tag", tag),
        **rates("dolma_tokens", tokens),
        **ratios("ratio_dolma", kept, (tag, tokens)),
        **ratios("ratio_dolma_all_rules", built, (tag, tokens)),
        **ratios("ratio_tag_dolma", tags, tag),
        **ratios("ratio_tag_dolma_same_rules", gopher, tag),
        **_compare_ids(measuring.corpus(), tokens.output),
    }
    blocks = [datatrove(block, "shipped", seconds / 3, [*sizes][1], folder) for block in BLOCKS]
    for name, block in zip(BLOCKS, blocks, strict=True):
        figures |= rates(f"datatrove_{name}_block", block)
    return figures | ratios("ratio_blocks_alone", built, tuple(blocks))


def main(quick: bool) -> None:
    measuring.require(measuring.DATATROVE, *([] if quick else [measuring.DOLMA]))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        figures = measured(quick, Path(name))
    report = {"bench": "dataplane", "unit": "MB/s per core", "peer_name": "datatrove local executor", **figures}
    versions = measuring.versions("pyspark", "numba", "gigatoken", "pyarrow")
    versions |= measuring.versions("datatrove", "spacy", "tokenizers", python=measuring.DATATROVE)
    if not quick:
        versions |= measuring.versions("dolma", python=measuring.DOLMA.with_name("python"))
    print(json.dumps(report | {"quick": quick, "versions": versions}))


if __name__ == "__main__":
    os.environ.setdefault("NUMBA_CACHE_DIR", str(measuring.ROOT / ".numba_cache"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", nargs=3, metavar=("JOB", "DOCUMENTS", "OUTPUT"))
    arguments = parser.parse_args()
    if arguments.child:
        jobs = {"tag": our_tag, "gopher": our_gopher, "build": our_build, "all_kept": our_all_kept}
        run_job = jobs[arguments.child[0]]
        print(json.dumps(run_job(Path(arguments.child[1]), Path(arguments.child[2]))))
    else:
        main(arguments.quick)
