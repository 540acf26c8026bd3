"""Label masks: exactly the tokens of planted repeats are left out, wherever the shuffle put them; other sources keep their identity."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from olmo_core.data.utils import find_periodic_sequences

from dataplane import gathering, label_masks, mixing, recipe, spark_worker, text_columns
from dataplane.recipe import BuildRecipe
from tests.dataplane.conftest import sentence, write_shard
from tests.dataplane.test_tokenization import Stage
from trainplane.batches import Batches
from triplane import artifact, tokens
from triplane.errors import Refused, UsageError

Make = Callable[..., BuildRecipe]
TAGGERS = "sources.1.taggers=[lengths, text_hash, ngram_repetition, ngram_regions]"
MASKED = (TAGGERS, "sources.1.label_mask=ngram_regions", "sequence_length_tokens=16")


@pytest.fixture
def planted(sources: Path) -> Path:
    """`notes` with repeats at the start, in the middle and at the end of some documents, and 31 repeats in one."""
    loops = {4: "again " * 40, 9: "ab ab, " * 32, 13: "x" * 500, 26: "morning " * 31, 30: "no no no yes " * 50}
    texts = [sentence(n, 8 + n % 5) for n in range(43)]
    for number, loop in loops.items():
        cut = {4: 0, 9: 20, 13: 30, 26: 10, 30: len(texts[number])}[number]
        texts[number] = f"{texts[number][:cut]} {loop} {texts[number][cut:]}"
    for shard in range(2):
        lines = [{"id": f"n{n}", "text": texts[n]} for n in range(43)][shard * 22 : shard * 22 + 22]
        write_shard(sources / "notes" / f"part-{shard:05d}.jsonl", lines)
    return sources


def expected_mask(ids: np.ndarray) -> np.ndarray:
    """OLMo-core's search, over one document and its end-of-text token."""
    mask = np.ones(len(ids), np.bool_)
    for found in find_periodic_sequences(ids[:-1].astype(np.int64), max_period=13):
        if found.times >= 32:
            mask[found.start : found.end] = False
    return mask


def masks_of(stage: Stage, manifest: artifact.Manifest) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Document id -> (its tokens, its part of the label mask)."""
    found = {}
    for shard in tokens.shards(stage.root, manifest):
        reader = tokens.Reader(shard)
        for entry in tokens.provenance(shard):
            at = (entry.start, entry.end - entry.start)
            found[entry.id] = (reader.read(*at), reader.read_mask(*at))
    return found


@pytest.mark.parametrize("bucket_tokens", [gathering.BUCKET_TOKENS, 300])
def test_the_tokens_of_planted_repeats_are_masked_and_no_others(
    planted: Path,
    in_process: Any,
    make_recipe: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bucket_tokens: int,
) -> None:
    monkeypatch.setattr(gathering, "BUCKET_TOKENS", bucket_tokens)
    monkeypatch.setattr(spark_worker, "ROW_GROUP_ROWS", 5)
    stage = Stage(tmp_path / "root", make_recipe(*MASKED, "shard_tokens=1500"), in_process)
    made = stage.tokenize()
    found = masks_of(stage, made["notes"].tokens)
    assert len(made["notes"].tokens.records) > 1
    for ids, mask in found.values():
        np.testing.assert_array_equal(mask, expected_mask(ids))
        assert mask[-1]
    masked = {name: int((~mask).sum()) for name, (_, mask) in found.items() if not mask.all()}
    assert set(masked) == {"n4", "n9", "n13", "n30"} and min(masked.values()) >= 32
    assert artifact.verify(artifact.artifact_url(stage.root, made["notes"].tokens.reference)) == []
    assert all(shard.url_mask is None for shard in tokens.shards(stage.root, made["prose"].tokens))


def test_olmo_core_loads_the_masks(planted: Path, in_process: Any, make_recipe: Make, tmp_path: Path) -> None:
    numpy_dataset = pytest.importorskip("olmo_core.data.numpy_dataset")
    stage = Stage(tmp_path / "root", make_recipe(*MASKED), in_process)
    shards = tokens.shards(stage.root, stage.tokenize()["notes"].tokens)
    dataset = numpy_dataset.NumpyFSLDataset(
        *(shard.url_tokens for shard in shards),
        sequence_length=16,
        label_mask_paths=[shard.url_mask for shard in shards],
        pad_token_id=0,
        eos_token_id=stage.tokenizer.eos_id,
        vocab_size=stage.tokenizer.vocab_size,
        dtype=np.uint32,
    )
    dataset.prepare()
    mask = np.concatenate([dataset[index]["label_mask"].numpy() for index in range(len(dataset))])
    ours = np.concatenate([tokens.Reader(shard).read_mask(0, shard.num_tokens // 16 * 16) for shard in shards])
    np.testing.assert_array_equal(mask, ours)
    assert not mask.all()


def test_a_training_batch_leaves_the_planted_repeats_out(
    planted: Path, in_process: Any, make_recipe: Make, tmp_path: Path
) -> None:
    stage = Stage(tmp_path / "root", make_recipe(*MASKED, "shard_tokens=1500"), in_process)
    manifest = stage.tokenize()["notes"].tokens
    masks = [tokens.Reader(s).read_mask(0, s.num_tokens // 16 * 16) for s in tokens.shards(stage.root, manifest)]
    masks_NT = np.concatenate(masks).reshape(-1, 16)
    one = recipe.MixRecipe(name="all", tokens=len(masks_NT) * 16, shares={"notes": 1.0})
    mixed = mixing.mix(stage.root, stage.build, one, {"notes": manifest}, stage.tokenizer, stage.published.reference)
    batch = Batches(stage.root, mixed.lock, 7, len(masks_NT), instance_filter=False).at(0)
    targets, counts = np.unique(batch.is_target_BT, axis=0, return_counts=True)
    expected, expected_counts = np.unique(masks_NT, axis=0, return_counts=True)
    np.testing.assert_array_equal(targets, expected)
    np.testing.assert_array_equal(counts, expected_counts)
    assert 0 < (~batch.is_target_BT).sum() == (~masks_NT).sum()


def test_a_mask_changes_the_identity_of_its_source_alone(
    planted: Path, in_process: Any, make_recipe: Make, tmp_path: Path
) -> None:
    plain = Stage(tmp_path / "a", make_recipe(TAGGERS), in_process).tokenize()
    masked = Stage(tmp_path / "b", make_recipe(*MASKED), in_process).tokenize()
    assert plain["prose"].tokens.reference == masked["prose"].tokens.reference
    assert plain["notes"].tokens.reference != masked["notes"].tokens.reference
    of_plain, of_masked = (
        [entry.sha256 for record in made["notes"].tokens.records for entry in record.files[:2]]
        for made in (plain, masked)
    )
    assert of_plain == of_masked, "the tokens and where they are from stay"
    assert plain["notes"].heldout is not None and plain["notes"].heldout == masked["notes"].heldout


def test_a_mask_whose_column_nothing_writes_is_refused_before_anything_starts(make_recipe: Make) -> None:
    recipe.checked(make_recipe(*MASKED))
    with pytest.raises(UsageError, match="source notes: label_mask: column ngram_regions is unknown"):
        recipe.checked(make_recipe("sources.1.label_mask=ngram_regions"))


def test_attributes_of_other_documents_are_refused(
    planted: Path, in_process: Any, make_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tmp_path / "root", make_recipe(*MASKED), in_process)
    whole = text_columns.TextColumns.read

    def longer(self: text_columns.TextColumns, index: int, num_records: int) -> text_columns.ShardColumns:
        return text_columns.ShardColumns((), pa.array([[0, 1000]] * num_records, label_masks.REGIONS))

    monkeypatch.setattr(text_columns.TextColumns, "read", longer)
    with pytest.raises(
        Refused, match=r"part-0000\d.jsonl: the region \[0, 1000\) reaches beyond a document of \d+ tokens"
    ):
        stage.tokenize()
    monkeypatch.setattr(text_columns.TextColumns, "read", lambda self, index, num: whole(self, index, num + 1))
    with pytest.raises(Refused, match=r"has \d+ rows for \d+ records"):
        stage.tokenize()
    assert not [name for name in artifact.references(stage.root, "tokens") if name.startswith("tokens/notes@")]
