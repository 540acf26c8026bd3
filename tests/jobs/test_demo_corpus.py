"""The corpus: bounded, deterministic, three sources that share no file, made of what is installed."""

import json
from pathlib import Path

import pytest

from jobs import demo_corpus
from jobs.demo_corpus import Budget, LocalFile, docstrings_of, documents

SMALL = Budget(
    library_code_bytes=300_000, package_code_bytes=200_000, docstring_bytes=60_000, text_bytes=60_000, math_documents=50
)


@pytest.fixture(scope="module")
def corpus() -> dict[str, list[demo_corpus.Document]]:
    return {source: list(documents(source, SMALL, seed=5)) for source in ("code", "prose", "math")}


def test_two_readings_give_the_same_documents(corpus: dict[str, list[demo_corpus.Document]]) -> None:
    again = {source: list(documents(source, SMALL, seed=5)) for source in corpus}
    assert json.dumps(again) == json.dumps(corpus)


def test_another_seed_takes_other_files(corpus: dict[str, list[demo_corpus.Document]]) -> None:
    other = {document["id"] for document in documents("code", SMALL, seed=6)}
    assert other != {document["id"] for document in corpus["code"]}


def test_every_source_stays_near_its_budget(corpus: dict[str, list[demo_corpus.Document]]) -> None:
    sizes = {source: sum(len(document["text"].encode()) for document in found) for source, found in corpus.items()}
    most = demo_corpus.MAX_FILE_BYTES  # a budget ends with the file that spends it
    assert 500_000 <= sizes["code"] <= 500_000 + 2 * most
    assert 120_000 <= sizes["prose"] <= 120_000 + 2 * most
    assert len(corpus["math"]) == 50


def test_ids_are_unique_and_name_files_not_places(corpus: dict[str, list[demo_corpus.Document]]) -> None:
    for source, found in corpus.items():
        ids = [document["id"] for document in found]
        assert len(set(ids)) == len(ids)
        assert all(not name.startswith("/") and ".." not in name for name in ids)
        assert all(document["source"] == source for document in found)


def test_no_file_is_read_by_both_code_and_prose(corpus: dict[str, list[demo_corpus.Document]]) -> None:
    code = {document["id"] for document in corpus["code"]}
    docstrings = {
        document["id"].removesuffix("#docstrings")
        for document in corpus["prose"]
        if document["id"].endswith("#docstrings")
    }
    assert code and docstrings and not code & docstrings


def test_code_is_the_file_as_it_lies_on_this_machine(corpus: dict[str, list[demo_corpus.Document]]) -> None:
    library = {file.name: file.path for file in demo_corpus.library_files()}
    from_library = [document for document in corpus["code"] if document["metadata"]["package"] == "python"]
    assert len(from_library) > 5
    assert all(document["text"] == library[document["id"]].read_text(encoding="utf-8") for document in from_library)


def test_one_package_cannot_take_the_whole_budget(tmp_path: Path) -> None:
    files = []
    for package, count in (("loud", 40), ("quiet", 2)):
        for number in range(count):
            path = tmp_path / f"{package}{number}.py"
            path.write_text("x = 1\n" * 100)
            files.append(LocalFile(f"{package}/{number}.py", package, path))
    found = list(demo_corpus.code_documents(files, budget_bytes=10**6, seed=0, package_bytes=3_000))
    taken = [document["metadata"]["package"] for document in found]
    assert taken.count("loud") == 5 and taken.count("quiet") <= 2


def test_docstrings_are_taken_from_every_level_and_cleaned() -> None:
    source = '"""Module."""\nclass A:\n    """Class.\n\n    More.\n    """\n    def f(self):\n        "Method."\n        return "not this"\n'
    assert docstrings_of(source) == "Module.\n\nClass.\n\nMore.\n\nMethod.\n\n"


@pytest.mark.parametrize("source", ["def broken(:", "print 'old'", "x = '\x00'"])
def test_a_file_that_does_not_parse_has_no_docstrings(source: str) -> None:
    assert docstrings_of(source) == ""


def test_a_file_that_is_not_utf8_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "latin.py"
    path.write_bytes(b"# caf\xe9\n" * 100)
    assert demo_corpus.read_text(path) is None and demo_corpus.read_text(tmp_path / "absent.py") is None
