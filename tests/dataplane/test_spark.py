"""Spark schedules shards and moves narrow rows: packing, the map over shards, tables in and out, and errors as one sentence."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import spark, spark_worker
from triplane import artifact
from triplane.errors import Refused, TriplaneError
from triplane.progress import Bar


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=60), st.integers(1, 12))
def test_pack_puts_every_shard_once_in_bins_of_nearly_equal_weight(weights: list[int], num_bins: int) -> None:
    bins = spark.pack(weights, num_bins)
    assert sorted(index for members in bins for index in members) == list(range(len(weights)))
    assert len(bins) == min(num_bins, len(weights)) and all(bins)
    loads = [sum(max(1, weights[index]) for index in members) for members in bins]
    assert max(loads) <= min(loads) + max(1, *weights)  # Graham: no bin could give its last shard to another


def test_map_returns_results_in_task_order(session: Any) -> None:
    def double(task: dict[str, Any]) -> dict[str, Any]:
        return {"doubled": 2 * task["n"]}

    tasks = [{"n": n} for n in range(40)]
    assert spark.map_shards(session, double, tasks, [n % 7 for n in range(40)]) == [
        {"doubled": 2 * n} for n in range(40)
    ]
    assert spark.map_shards(session, double, [], []) == []


def test_an_error_of_ours_keeps_its_class_and_sentence_and_the_other_tasks_finish(session: Any, tmp_path: Path) -> None:
    def work(task: dict[str, Any]) -> dict[str, Any]:
        if task["n"] == 3:
            raise Refused("shard 3 changed: restore it")
        (Path(task["folder"]) / str(task["n"])).touch()
        return {}

    with pytest.raises(Refused, match=r"^shard 3 changed: restore it$"):
        spark.map_shards(session, work, [{"n": n, "folder": str(tmp_path)} for n in range(8)], [1] * 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "4", "5", "6", "7"]


def test_an_exchange_brings_the_pieces_of_a_part_together(session: Any) -> None:
    """Numbers to their remainder, those to their quotient, and back as sums; parts without pieces give nothing."""

    def emit(task: dict[str, Any]) -> list[tuple[int, bytes]]:
        return [(n % 3, bytes([n])) for n in task["numbers"]]

    def halved(part: int, pieces: list[bytes]) -> list[tuple[int, bytes]]:
        assert all(piece[0] % 3 == part for piece in pieces)
        return [(piece[0] // 50, piece) for piece in pieces]

    def finish(part: int, pieces: list[bytes]) -> dict[str, Any]:
        return {"part": part, "sum": sum(piece[0] for piece in pieces)}

    tasks, bar = [{"numbers": list(range(k, 100, 7))} for k in range(7)], Bar("x", None, "bytes", lambda _: None)
    found = spark.exchange(session, tasks, [1] * 7, emit, [(3, halved)], (4, finish), bar)
    assert found == [{"part": 0, "sum": sum(range(50))}, {"part": 1, "sum": sum(range(50, 100))}]
    assert bar.cpu_seconds > 0
    assert spark.exchange(session, [], [], emit, [], (4, finish)) == []

    def refuse(part: int, pieces: list[bytes]) -> dict[str, Any]:
        raise Refused("part 1 is not what it was: restore it")

    with pytest.raises(Refused, match=r"^part 1 is not what it was: restore it$"):
        spark.exchange(session, tasks, [1] * 7, emit, [], (4, refuse))


def test_a_full_disk_is_one_sentence(session: Any) -> None:
    def work(task: dict[str, Any]) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/part-0")

    with pytest.raises(
        TriplaneError, match=r"^No space left on device \(/scratch/part-0\): free or mend it, then run again$"
    ):
        spark.map_shards(session, work, [{}], [1])


def test_a_defect_in_a_worker_is_named_without_the_stack(session: Any) -> None:
    def work(task: dict[str, Any]) -> dict[str, Any]:
        return {"x": 1 // task["zero"]}

    with pytest.raises(TriplaneError) as raised:
        spark.map_shards(session, work, [{"zero": 0}], [1])
    assert str(raised.value) == "a Spark job failed: ZeroDivisionError: integer division or modulo by zero"


def make_table(root: str, shards: list[dict[str, list[Any]]]) -> artifact.Manifest:
    draft = artifact.begin(root, "attributes", "t", inputs={}, recipe={}, stage_versions={})
    folder = Path(root) / "work"
    folder.mkdir(parents=True)
    for number, columns in enumerate(shards):
        table = pa.table(
            {
                "row": pa.array(columns["row"], pa.int64()),
                "key": pa.array(columns["key"], pa.uint64()),
                "x": columns["x"],
            }
        )
        spark_worker.write_parquet(table, folder / "file")
        draft.record(f"part-{number:05d}", [draft.put_file(folder / "file", f"part-{number:05d}", ".parquet")], {})
    return draft.commit({})


def test_tables_are_read_and_written_shard_by_shard_in_row_order(session: Any, tmp_path: Path) -> None:
    top = 2**64 - 1
    shards = [
        {"row": [0, 1, 2], "key": [top, 1, 2], "x": [0.5, 1.5, None]},
        {"row": [0], "key": [7], "x": [9.0]},
    ]
    manifest = make_table(str(tmp_path), shards)

    def doubled(table: pa.Table) -> pa.Table:
        return table.append_column("xx", pa.array(np.nan_to_num(table.column("x").to_numpy()) * 2))

    frame = spark.read_table(
        session, str(tmp_path), manifest, {"row": "bigint", "key": "bigint", "x": "double", "xx": "double"}, 5, doubled
    )
    rows = sorted((row.shard, row.row, row.key, row.x, row.xx) for row in frame.collect())
    assert rows == [(5, 0, -1, 0.5, 1.0), (5, 1, 1, 1.5, 3.0), (5, 2, 2, None, 0.0), (6, 0, 7, 9.0, 18.0)]

    def write(shard: int, table: pa.Table) -> dict[str, Any]:
        return {"shard": shard, "rows": table.column("row").to_pylist()}

    shuffled = frame.selectExpr("shard - 5 AS shard", "row").repartition(3)
    assert spark.write_by_shard(shuffled, write, 2, 4) == [{"shard": 0, "rows": [0, 1, 2]}, {"shard": 1, "rows": [0]}]


def test_equal_tables_give_equal_bytes_however_they_are_chunked(tmp_path: Path) -> None:
    table = pa.table({"row": list(range(25_000))})
    spark_worker.write_parquet(table, tmp_path / "whole")
    spark_worker.write_parquet(pa.concat_tables([table.slice(0, 3), table.slice(3)]), tmp_path / "pieces")
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_scratch_of_killed_processes_is_removed_after_a_day(tmp_path: Path) -> None:
    names = {"triplane-ab12_xyz", "triplane-spark-ab12_xyz.log", "triplane-numba-0", "tmpabcd1234", "triplane-fresh123"}
    for name in names:
        if name.endswith(".log"):
            (tmp_path / name).touch()
        else:
            (tmp_path / name / "inside").mkdir(parents=True)
        if name != "triplane-fresh123":
            os.utime(tmp_path / name, (1, 1))
    spark_worker.remove_stale_scratch(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"triplane-numba-0", "tmpabcd1234", "triplane-fresh123"}


def test_without_java_there_is_one_clear_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(
        TriplaneError, match=r"^Spark needs Java 17 or newer and none was found: install one or set JAVA_HOME$"
    ):
        spark._require_java()


def test_workers_get_credentials_with_their_tasks_and_never_on_a_command_line(
    session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-this-test")
    assert spark.session() is session

    def look(task: dict[str, Any]) -> dict[str, Any]:
        import os

        return {name: os.environ.get(name) for name in ("AWS_SECRET_ACCESS_KEY", "OMP_NUM_THREADS")}

    assert spark.map_shards(session, look, [{}], [1]) == [
        {"AWS_SECRET_ACCESS_KEY": "of-this-test", "OMP_NUM_THREADS": "1"}
    ]
    assert all("of-this-test" not in value for _, value in session.sparkContext.getConf().getAll())
