"""The offline checker: a valid job and CronJob pass; each planted mistake gives exactly its finding on its line."""

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.manifests import check, schemas
from jobs.manifests.finding import Finding

SHARED = Path(__file__).parents[4] / "shared" / "data" / "k8s" / "crd-schemas.json.xz"
HERE = Path(__file__).parent / "manifests"
MISTAKES = yaml.safe_load((HERE.parent / "mistakes.yaml").read_text())
KINDS = {kind for kinds in schemas.GROUPS.values() for kind in kinds}


def found(text: str, tmp_path: Path, whole: bool = False) -> list[tuple[int, str]]:
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    return [(one.line, one.message) for one in check.findings([path], whole)]


def changed(name: str, old: str, new: str) -> tuple[str, int]:
    """A manifest with one text replaced, and the line of the replacement."""
    text = (HERE / name).read_text()
    assert text.count(old) == 1, old
    return text.replace(old, new), text[: text.index(old)].count("\n") + 1


def test_good_manifests_have_no_findings() -> None:
    assert check.findings([HERE], whole=True) == []


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one["new"])
def test_a_mistake_is_one_finding_on_its_line(mistake: dict[str, Any], tmp_path: Path) -> None:
    name, says = mistake["file"], mistake["says"]
    for other in HERE.glob("*.yaml"):
        (tmp_path / other.name).write_text(other.read_text())
    text, line = changed(name, mistake["old"], mistake["new"])
    (tmp_path / name).write_text(text)
    findings = check.findings([tmp_path], whole=True)
    assert len(findings) == 1, findings
    assert findings[0].message.startswith(says)
    assert findings[0].file == str(tmp_path / name)
    assert findings[0].line == mistake.get("line", line)


def test_combinations_that_operators_refuse(tmp_path: Path) -> None:
    head = "apiVersion: ray.io/v1\nkind: RayJob\nmetadata:\n  name: a\n  labels: {LABEL: x}\nspec:\n  entrypoint: x\n"
    queued, plain = head.replace("LABEL", "kueue.x-k8s.io/queue-name"), head.replace("LABEL", "a")
    selector = "  clusterSelector: {ray.io/cluster: x}\n"
    assert found(plain + selector, tmp_path) == []
    assert [line for line, _ in found(queued + selector, tmp_path)] == [8]
    assert "brings its own cluster" in found(queued + selector, tmp_path)[0][1]
    assert (
        "needs shutdownAfterJobFinishes: true"
        in found(plain + selector + "  ttlSecondsAfterFinished: 9\n", tmp_path)[0][1]
    )
    assert "a retry makes a new cluster" in found(plain + selector + "  backoffLimit: 2\n", tmp_path)[0][1]
    assert "no rayClusterSpec and no clusterSelector" in found(plain, tmp_path)[0][1]
    spark = (HERE / "spark.yaml").read_text().split("---")[0]
    elastic = spark.replace("spec:\n  type", "spec:\n  dynamicAllocation: {enabled: true}\n  type")
    assert found(elastic, tmp_path) == []
    labelled = elastic.replace("namespace: triplane\n", "labels: {kueue.x-k8s.io/queue-name: x}\n", 1)
    assert [line for line, _ in found(labelled, tmp_path)] == [7]


def test_a_misspelled_key_hides_no_mistake_below_it(tmp_path: Path) -> None:
    text, line = changed("ray_job.yaml", "workerGroupSpecs:", "workerGroupSpec:")
    text = text.replace("maxReplicas: 2", "maxReplicas: two")
    messages = found(text, tmp_path)
    assert [at for at, _ in messages] == [line, line + 4]
    assert "did you mean 'workerGroupSpecs'?" in messages[0][1]
    assert 'maxReplicas is "two": write an integer' in messages[1][1]


def test_only_the_schemas_of_the_kinds_in_use_are_read() -> None:
    program = """if True:
        import sys
        opened = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        from pathlib import Path
        from jobs.manifests import check
        assert check.findings([Path(sys.argv[1])]) == []
        print(*sorted(Path(name).name for name in opened if "schema" in name and ".json" in name))
    """
    opened = {}
    for name in ("ray_job.yaml", "spark.yaml", "queues.yaml"):
        command = [sys.executable, "-c", program, str(HERE / name)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3])
        opened[name] = [one for one in done.stdout.split() if one.endswith(".xz")]
    assert opened == {
        "ray_job.yaml": ["RayJob.json.xz"],
        "spark.yaml": ["SparkApplication.json.xz"],
        "queues.yaml": ["ClusterQueue.json.xz", "LocalQueue.json.xz", "ResourceFlavor.json.xz"],
    }


def test_the_shipped_schemas_are_the_published_ones() -> None:
    if not SHARED.exists():
        pytest.skip("the folder with the original schemas is not here")
    originals = json.loads(lzma.decompress(SHARED.read_bytes()))
    folder = Path(schemas.__file__).parent / "schemas"
    assert set(originals) == KINDS == {path.name.removesuffix(".json.xz") for path in folder.iterdir()}
    for kind, content in originals.items():
        text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        assert lzma.decompress((folder / f"{kind}.json.xz").read_bytes()) == text
        assert content["group"] == next(group for group, kinds in schemas.GROUPS.items() if kind in kinds)


def test_an_object_that_is_there_twice(tmp_path: Path) -> None:
    one = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n"
    assert found(f"{one}---\n{one}", tmp_path) == [
        (9, f"ConfigMap a: is given twice (first at {tmp_path / 'manifest.yaml'}:4): rename one")
    ]


def test_what_is_no_manifest(tmp_path: Path) -> None:
    assert found("[1, 2]", tmp_path) == [(1, "is no object: write apiVersion, kind, metadata and the rest")]
    assert found("kind: Pod\n", tmp_path) == [(1, "Pod: key 'apiVersion' is missing or no string: add it")]
    assert check.findings([tmp_path / "absent.yaml"]) == [
        Finding(str(tmp_path / "absent.yaml"), 0, "does not exist: check the path")
    ]
    (tmp_path / "manifest.yaml").unlink()
    assert "holds no manifests" in check.findings([tmp_path])[0].message


def test_kinds_without_a_schema_of_ours_are_checked_for_identity_only(tmp_path: Path) -> None:
    monitor = "apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nmetadata: {name: a}\nspec: {anything: 1}\n"
    assert found(monitor, tmp_path) == []
    assert found(monitor.replace("name: a", "nam: a"), tmp_path) == [
        (3, "PodMonitor: metadata.name is missing: add it")
    ]
