"""What tests of the verbs share: one Spark session, a small tokenizer, two small sources, and a recipe over them."""

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dataplane import build, spark
from dataplane.recipe import BuildRecipe
from triplane import vocabulary
from triplane.progress import Progress
from triplane.recipe import parse

WORDS = "water stone river light under the old bridge they found a map of every island and sailed on until morning came".split()


@pytest.fixture(scope="session")
def session() -> Iterator[Any]:
    """A real Spark session on two cores, for every test that asks."""
    yield spark.session("local[2]")
    spark.stop()


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(vocabulary.train([" ".join(WORDS) + f" {number}" for number in range(50)], 320))
    return path


def sentence(number: int, words: int) -> str:
    """Text that no other number gives."""
    return f"Entry {number}: " + " ".join(WORDS[(number * 7 + k * (number % 5 + 1)) % len(WORDS)] for k in range(words))


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """`write_sources` in a folder of the test's own."""
    return write_sources(tmp_path / "sources")


def write_sources(folder: Path) -> Path:
    """`prose`: 3 shards, 120 documents. `notes`: 2 shards, 43 records: 3 are not documents, 1 is empty, 1 repeats, 2 are copies of prose."""
    prose = [{"id": f"p{n}", "text": sentence(n, 30 + n % 17)} for n in range(120)]
    notes: list[Any] = [{"id": f"n{n}", "text": sentence(1000 + n, 8 + n % 5)} for n in range(37)]
    notes[3] = "{not json"
    notes[20] = {"id": "no-text"}
    notes[21] = ""
    notes += [{"id": "empty", "text": ""}, {"id": "loop", "text": "again " * 400}]
    notes += [{"id": "copy-1", "text": prose[5]["text"]}, {"id": "copy-2", "text": prose[100]["text"]}]
    notes += [{"id": "twin-a", "text": "twins are equal"}, {"id": "twin-b", "text": "twins are equal"}]
    for number in range(3):
        write_shard(folder / "prose" / f"part-{number:05d}.jsonl", prose[number * 40 : number * 40 + 40])
    for number in range(2):
        write_shard(folder / "notes" / f"part-{number:05d}.jsonl", notes[number * 22 : number * 22 + 22])
    return folder


def write_shard(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines))


RECIPE = """
name: tiny
seed: 11
tokenizer: {tokenizer}
sequence_length_tokens: 16
shard_tokens: 3000
held_out_fraction: 0.1
sources:
  - name: prose
    documents: {sources}/prose
    format: dolma
    licence: CC0-1.0
    taggers: [lengths, text_hash, ngram_repetition]
    rules: []
    exact_dedup: true
  - name: notes
    documents: {sources}/notes
    format: dolma
    licence: CC0-1.0
    taggers: [lengths, text_hash, ngram_repetition]
    rules: [ngram_repetition, {{reason: too_short, column: words, op: "<", value: 11}}]
    exact_dedup: true
mixes:
  - name: tiny-mix
    tokens: 1600
    shares: {{prose: 0.75, notes: 0.25}}
"""


@pytest.fixture
def make_recipe(sources: Path, tokenizer_json: Path) -> Callable[..., BuildRecipe]:
    """The recipe over `sources`, with overrides: make_recipe("seed=12")."""
    return functools.partial(recipe_over, sources, tokenizer_json)


def recipe_over(sources: Path, tokenizer_json: Path, *overrides: str) -> BuildRecipe:
    return parse(RECIPE.format(tokenizer=tokenizer_json, sources=sources), BuildRecipe, "tiny.yaml", overrides)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """12 files of which 10 are taken; one of those is not UTF-8."""
    folder = tmp_path / "tree"
    for number in range(9):
        path = folder / f"{number % 3}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'Page {number}: "the old bridge"\nover river {number}')
    (folder / "latin.md").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "skip.py").write_text("x = 1")
    (folder / "skip.txt.bak").write_text("old")
    return folder


@pytest.fixture
def over_tree(make_recipe: Callable[..., BuildRecipe], tree: Path) -> Callable[..., BuildRecipe]:
    """The recipe with `prose` read from the tree, beside `notes` in dolma's format."""
    fixed = [f"sources.0.documents={tree}", "sources.0.format=text_tree", "sources.0.suffixes=[.txt, .md]"]
    return lambda *overrides: make_recipe(*fixed, "mixes=[]", *overrides)


@dataclass(frozen=True)
class Standing:
    """A finished build: look, copy the root before you change it."""

    root: Path
    sources: Path
    make: Callable[..., BuildRecipe]
    result: build.BuildResult


@pytest.fixture(scope="session")
def standing(session: Any, tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Standing:
    """The recipe built once."""
    folder = tmp_path_factory.mktemp("standing")
    make = functools.partial(recipe_over, write_sources(folder / "sources"), tokenizer_json)
    return Standing(folder / "root", folder / "sources", make, build.run(make(), str(folder / "root"), Progress()))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Replaces the map over shards by a loop, where a test is about what a task does. Returns what stands for a started session."""

    def map_here(_: Any, function: Any, tasks: Any, weights: Any, bar: Any = None) -> list[dict[str, Any]]:
        return [function(task) for task in tasks]

    monkeypatch.setattr(spark, "map_shards", map_here)
    return lambda: None
