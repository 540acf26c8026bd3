"""`tokenize`: every kept document once, with one end-of-text token, in the order of u(seed, key); held-out documents as text."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from dataplane import build, gathering, ingestion, recipe, scattering, selection, spark_worker, tagging, tokenization
from dataplane.recipe import BuildRecipe
from triplane import artifact, block_writer, hashing, storage, tokens
from triplane.errors import Corrupt, NotFound, Refused
from triplane.progress import Progress
from triplane.tokenizer import Tokenizer

Make = Callable[..., BuildRecipe]


class Stage:
    """The verbs up to `tokenize`, in this process, with decisions made by a plain rule instead of Spark: every fifth document is held out."""

    def __init__(self, root: Path, build_recipe: BuildRecipe, start: Any) -> None:
        self.root, self.build, self.start = str(root), build_recipe, start
        self.tokenizer = Tokenizer.load(build_recipe.tokenizer)
        self.published = build.publish_tokenizer(self.root, build_recipe, self.tokenizer)
        self.ingested = ingestion.ingest(start, self.root, build_recipe, Progress())
        url = artifact.artifact_url(self.root, self.published.reference)
        self.attributes = tagging.tag(
            start, self.root, build_recipe, self.ingested, (url, self.tokenizer.sha256), Progress()
        )
        self.selected = self._select()

    def _select(self) -> selection.Selected:
        parents = tuple(manifest.reference for manifest in self.attributes.values())
        draft = artifact.begin(
            self.root, "selection", "by-hand", inputs={}, recipe={}, stage_versions={}, parents=parents
        )
        rows = []
        for source, manifest in self.attributes.items():
            for record in manifest.records:
                path = storage.local_path(
                    storage.join(artifact.artifact_url(self.root, manifest.reference), record.files[0].name)
                )
                table = decided(pq.read_table(path))
                folder = Path(self.root) / "work"
                folder.mkdir(exist_ok=True)
                spark_worker.write_parquet(table, folder / "decisions")
                name = f"{source}-{record.shard}"
                fates = selection.fates(source, table)
                rows += fates
                entry = draft.put_file(folder / "decisions", name, ".parquet")
                draft.record(name, [entry], {"source": source, "fates": []})
        return selection.Selected(draft.commit({"funnel": [vars(row) for row in rows]}))

    def tokenize(self) -> dict[str, tokenization.Tokenized]:
        return tokenization.tokenize(
            self.start, self.root, self.build, self.ingested, self.selected, self.published, Progress()
        )


def decided(attributes: pa.Table) -> pa.Table:
    rows = []
    for row in attributes.to_pylist():
        sizes = {"text_bytes": row["text_bytes"] or 0, "tokens": row["token_count"] or 0}
        if row["quarantine"]:
            rows.append({"row": row["row"], "decision": "quarantined", "reason": row["quarantine"], **sizes})
        elif row["row"] % 5 == 0:
            rows.append({"row": row["row"], "decision": "drop", "reason": recipe.HELD_OUT, **sizes})
        else:
            rows.append({"row": row["row"], "decision": "keep", "reason": None, **sizes})
    return pa.Table.from_pylist(rows, schema=selection.SCHEMA)


@pytest.fixture
def stage(in_process: Any, make_recipe: Make, tmp_path: Path) -> Stage:
    return Stage(tmp_path / "root", make_recipe(), in_process)


def texts_of(folder: Path) -> dict[tuple[str, int], tuple[str, str]]:
    """(shard, line) -> (id, text) of the documents of a folder."""
    found = {}
    for path in folder.iterdir():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if line.startswith("{") and "text" in (record := parsed(line)):
                found[path.name, number] = (record["id"], record["text"])
    return found


def parsed(line: str) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def read_back(stage: Stage, manifest: artifact.Manifest) -> list[tuple[tokens.Provenance, str, int]]:
    """(provenance, text, last token) of every document of a tokens artifact, in order, shard after shard."""
    found = []
    for shard in tokens.shards(stage.root, manifest):
        reader = tokens.Reader(shard)
        for entry in tokens.provenance(shard):
            ids = reader.read(entry.start, entry.end - entry.start)
            found.append((entry, stage.tokenizer.decode(ids[:-1]), int(ids[-1])))
    return found


def test_every_kept_document_once_with_its_text_its_line_and_one_end_of_text(stage: Stage, sources: Path) -> None:
    for source, tokenized in stage.tokenize().items():
        expected = {where: pair for where, pair in texts_of(sources / source).items() if (where[1] - 1) % 5 != 0}
        found = read_back(stage, tokenized.tokens)
        assert {(entry.src, entry.loc): (entry.id, text) for entry, text, _ in found} == expected
        assert len(found) == len(expected) == tokenized.tokens.metadata["num_documents"]
        assert {last for _, _, last in found} == {stage.tokenizer.eos_id}
        assert tokenized.tokens.metadata["num_tokens"] == sum(
            shard.num_tokens for shard in tokens.shards(stage.root, tokenized.tokens)
        )


def test_the_order_is_that_of_u_seed_key_over_all_shards(stage: Stage) -> None:
    prose = stage.tokenize()["prose"].tokens
    assert len(prose.records) > 1
    keys = [hashing.document_key("prose", entry.src, entry.loc - 1) % 2**64 for entry, _, _ in read_back(stage, prose)]
    draws = hashing.u64(stage.build.seed, np.array(keys, np.uint64))
    assert (draws[1:] > draws[:-1]).all()
    limits = np.arange(1, len(prose.records)) * (2.0**64 / len(prose.records))
    counts = np.diff(np.searchsorted(draws, [0, *limits.astype(np.uint64), 2**64 - 1]))
    assert counts.tolist() == [record.counts["documents"] for record in prose.records]


def test_held_out_documents_are_text_with_their_origin_and_in_no_shard(stage: Stage, sources: Path) -> None:
    tokenized = stage.tokenize()["notes"]
    assert tokenized.heldout is not None
    url = artifact.artifact_url(stage.root, tokenized.heldout.reference)
    lines = []
    for entry in tokenized.heldout.files:
        with zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(storage.read(storage.join(url, entry.name)))
        ) as stream:
            lines += [json.loads(line) for line in io.TextIOWrapper(stream, "utf-8")]
    expected = {where: pair for where, pair in texts_of(sources / "notes").items() if (where[1] - 1) % 5 == 0}
    assert {(one["metadata"]["shard"], one["metadata"]["line"]): (one["id"], one["text"]) for one in lines} == expected
    assert {one["source"] for one in lines} == {"notes"}
    assert tokenized.heldout.metadata["documents"] == len(lines) == len(expected)


def test_buckets_and_row_groups_of_any_size_give_the_same_bytes(
    in_process: Any, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Stage(tmp_path / "a", make_recipe(), in_process).tokenize()
    monkeypatch.setattr(gathering, "BUCKET_TOKENS", 200)
    monkeypatch.setattr(block_writer, "BUFFER_BYTES", block_writer.BLOCK_BYTES)
    monkeypatch.setattr(spark_worker, "ROW_GROUP_ROWS", 7)
    pieces = Stage(tmp_path / "b", make_recipe(), in_process).tokenize()
    for source in ("prose", "notes"):
        assert [file.sha256 for file in pieces[source].tokens.files] == [
            file.sha256 for file in whole[source].tokens.files
        ]


def test_the_first_pass_is_gone_and_the_artifacts_verify(stage: Stage) -> None:
    for tokenized in stage.tokenize().values():
        url = artifact.artifact_url(stage.root, tokenized.tokens.reference)
        assert [name for name in storage.list_names(url) if name.startswith(tokenization.SCATTER)] == []
        assert artifact.verify(url) == []
        storage.put(
            storage.join(url, tokenization.SCATTER, "records", "part-00000.json"),
            b"left by a build killed after its commit",
        )
    again = stage.tokenize()
    assert [
        name for one in again.values() for name in storage.list_names(stage_url(stage, one)) if "scatter" in name
    ] == []


@pytest.mark.parametrize(
    ("module", "step"),
    [(scattering, "scatter_shard"), (tokenization, "_gather_plan"), (gathering, "gather_shard")],
)
def test_another_build_that_finishes_first_and_removes_the_first_pass_is_joined(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, module: Any, step: str
) -> None:
    whole, other = getattr(module, step), []

    def overtaken(*arguments: Any) -> Any:
        if not other:
            other.append({})  # while the other build runs, it is not overtaken itself
            other[0] = stage.tokenize()
        return whole(*arguments)

    monkeypatch.setattr(module, step, overtaken)
    assert [stage.tokenize()] == other
    for tokenized in other[0].values():
        assert [name for name in storage.list_names(stage_url(stage, tokenized)) if "scatter" in name] == []
        assert artifact.verify(stage_url(stage, tokenized)) == []


def test_a_first_pass_that_vanishes_while_nothing_is_committed_is_an_error(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = gathering.gather_shard

    def without_scatter(plans: dict[str, gathering.GatherPlan], task: ingestion.Task) -> dict[str, Any]:
        for entry in plans[task["source"]].inputs:
            storage.delete(entry.tokens)
        return whole(plans, task)

    monkeypatch.setattr(gathering, "gather_shard", without_scatter)
    with pytest.raises(NotFound, match=r"scatter/part-00000-\w+\.bin"):
        stage.tokenize()


def stage_url(stage: Stage, tokenized: tokenization.Tokenized) -> str:
    return artifact.artifact_url(stage.root, tokenized.tokens.reference)


def test_a_source_of_which_nothing_is_kept_has_no_shards(
    in_process: Any, make_recipe: Make, sources: Path, tmp_path: Path
) -> None:
    for path in (sources / "notes").iterdir():
        path.write_text('{"id": "only", "text": "row 0 is held out"}\n')
    notes = Stage(tmp_path / "root", make_recipe(), in_process).tokenize()["notes"]
    assert notes.tokens.records == () and notes.tokens.metadata["num_tokens"] == 0
    assert notes.heldout is not None and notes.heldout.metadata["documents"] == 2


def test_a_document_shard_that_changed_after_it_was_tagged_is_refused(stage: Stage, sources: Path) -> None:
    shard = sources / "prose" / "part-00002.jsonl"
    shard.write_bytes(shard.read_bytes().replace(b"p81", b"p00"))
    with pytest.raises(Refused, match=r"part-00002.jsonl changed after it was ingested"):
        stage.tokenize()
    assert artifact.references(stage.root, "tokens") == []


def test_other_tokens_than_were_planned_are_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scattering.Decisions.read

    def off_by_one(self: scattering.Decisions, index: int) -> pa.Table:
        table = whole(self, index)
        values = table.column("tokens").to_pylist()
        return table.set_column(
            table.schema.get_field_index("tokens"),
            "tokens",
            pa.array([values[0], values[1] + 1, *values[2:]], pa.int64()),
        )

    monkeypatch.setattr(scattering.Decisions, "read", off_by_one)
    with pytest.raises(Refused, match=r"document shard part-00000.jsonl of prose: \d+ tokens, \d+ were planned"):
        stage.tokenize()
    monkeypatch.setattr(scattering.Decisions, "read", lambda *of: whole(*of).slice(0, 30))
    with pytest.raises(Refused, match=r"document shard part-00000.jsonl of prose: more than 30 records"):
        stage.tokenize()


def test_a_second_pass_that_loses_a_document_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gathering._Run.take

    def lossy(self: Any, low: int, high: int) -> tuple[pa.Table, np.ndarray]:
        table, ids = whole(self, low, high)
        last = table.column("tokens")[-1].as_py()
        return table.slice(0, table.num_rows - 1), ids[: len(ids) - last]

    monkeypatch.setattr(gathering._Run, "take", lossy)
    with pytest.raises(Refused, match=r"source prose: 96 documents and .* tokens were planned, "):
        stage.tokenize()
    assert artifact.references(stage.root, "tokens") == []


def test_a_bit_flipped_between_the_passes_is_found(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def flipped(params: tokenization.TokenizeParams, shard_tokens: int) -> gathering.GatherPlan:
        plan = whole(params, shard_tokens)
        path = storage.local_path(plan.inputs[0].tokens)
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(bytes(data))
        return plan

    whole = tokenization._gather_plan
    monkeypatch.setattr(tokenization, "_gather_plan", flipped)
    with pytest.raises(Corrupt, match=r"\.bin block 0"):
        stage.tokenize()
