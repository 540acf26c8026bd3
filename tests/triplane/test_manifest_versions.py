"""Artifacts that earlier releases wrote are read by this one, byte for byte: one golden artifact a schema version, never rewritten."""

import json
import shutil
from pathlib import Path

import pytest

from triplane import artifact, artifact_format
from triplane.errors import Refused

GOLDEN = Path(__file__).parents[1] / "golden" / "artifacts"


def test_every_schema_version_so_far_has_its_golden_artifact() -> None:
    """Whoever raises the version keeps those before it."""
    assert sorted(path.name for path in GOLDEN.iterdir()) == [
        f"v{number}" for number in range(1, artifact_format.SCHEMA_VERSION + 1)
    ]


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.name)
def test_an_old_artifact_is_read_whole(path: Path) -> None:
    [manifest] = [artifact.load(str(path), reference) for reference in artifact.references(str(path), "tokens")]
    assert manifest.reference == "tokens/code@9d0887e40848" and manifest.parents == (
        "documents/code@v1",
        "selection/s@v1",
    )
    assert manifest.metadata == {"num_tokens": 3, "source": "code"} and manifest.stage_versions == {"tokenize": 1}
    assert manifest.records[0].counts == {"tokens": 3, "by_reason": {"short": 1}}
    url = artifact.artifact_url(str(path), manifest.reference)
    assert artifact.verify(url) == [] and artifact.read(url, manifest.files[0]) == b"one two three"


def test_what_is_written_today_is_the_newest_of_them(tmp_path: Path) -> None:
    root = GOLDEN / f"v{artifact_format.SCHEMA_VERSION}"
    write(str(tmp_path))
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    golden = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    assert sorted(made) == sorted(golden)
    for name, data in golden.items():
        if name.name == "manifest.json":  # names the release that wrote it
            before, now = (json.loads(one) | {"code_version": ""} for one in (data, made[name]))
            assert before == now
        else:
            assert data == made[name]


def test_a_newer_manifest_is_refused_by_an_older_release(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "v1", tmp_path / "root")
    (manifest,) = (tmp_path / "root").glob("*/*/manifest.json")
    newer = {**json.loads(manifest.read_text()), "schema_version": artifact_format.SCHEMA_VERSION + 1, "unheard_of": []}
    manifest.chmod(0o644)
    manifest.write_text(json.dumps(newer))
    with pytest.raises(Refused, match="this release reads"):
        artifact.load(str(tmp_path / "root"), "tokens/code")


def write(root: str) -> None:
    """The golden artifact."""
    draft = artifact.begin(
        root,
        "tokens",
        "code",
        inputs={"documents": "ab" * 32},
        parents=["documents/code@v1", "selection/s@v1"],
        recipe={"seed": 1, "threshold": 0.5},
        stage_versions={"tokenize": 1},
    )
    entry = draft.put_bytes(b"one two three", "part-00000", ".txt", rows=1, tokens=3)
    draft.record("part-00000", [entry], {"tokens": 3, "by_reason": {"short": 1}})
    draft.commit({"source": "code", "num_tokens": 3})
