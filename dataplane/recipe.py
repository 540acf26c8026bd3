"""The build recipe: which sources, how each is tagged and selected, and the mixes made of them.

YAML through `triplane.recipe.load` -> `BuildRecipe`; `checked` says what no field can say alone. Fields follow the paper's vocabulary
(section 3.1 and table 13); each carries its unit in its name.
"""

import difflib
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, ValidationError

from dataplane.tagger import Rule
from dataplane.taggers.table import TAGGERS
from triplane.errors import UsageError
from triplane.recipe import Strict, Tokens

TOKEN_COUNT, TEXT_HASH = "token_count", "text_hash_high"
HELD_OUT, EXACT_DUPLICATE, EMPTY = "held_out", "exact_duplicate", "empty"
RESERVED_REASONS = frozenset({HELD_OUT, EXACT_DUPLICATE, EMPTY})
DEFAULT_MAX_REPETITIONS = 4.0  # Muennighoff et al. 2023: up to four epochs cost little
NAME = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")


class TaggerRecipe(Strict):
    """A tagger with parameters; a tagger without is written as its name alone."""

    name: str
    params: dict[str, Any]


class RuleRecipe(Strict):
    """Drops the documents for which `column op value` holds, with this reason."""

    reason: str = NAME
    column: str
    op: Literal["<", "<=", ">", ">=", "="]
    value: int | float


class SourceRecipe(Strict):
    """One source. `rules` are tried in order, the first that holds is the reason; a tagger's name stands for its own rules."""

    name: str = NAME
    documents: str  # a folder, an object or a glob, on any store
    format: Literal[
        "dolma", "text_tree"
    ]  # dolma: JSON lines, one document a line; text_tree: a folder, one document a file
    licence: str
    taggers: tuple[str | TaggerRecipe, ...]
    rules: tuple[str | RuleRecipe, ...]
    exact_dedup: bool  # of equal texts in all sources with this set, the first stays: by source as declared, shard, row
    suffixes: tuple[str, ...] = ()  # of a text_tree: the files to take, [.md, .txt]; none: all


class MixRecipe(Strict):
    """`shares` of `tokens` by source; they sum to 1. A source is repeated at most `max_repetitions` times."""

    name: str = NAME
    tokens: Tokens
    shares: dict[str, float]
    max_repetitions: float = DEFAULT_MAX_REPETITIONS


class BuildRecipe(Strict):
    """From document shards to mixes."""

    name: str = NAME
    seed: int
    tokenizer: str  # a tokenizer.json, a folder or artifact that holds it, or a Hugging Face Hub id
    sequence_length_tokens: Tokens
    shard_tokens: Tokens  # aimed at; a small source is one shard
    held_out_fraction: float = Field(ge=0.0, lt=1.0)
    sources: tuple[SourceRecipe, ...] = Field(min_length=1)
    mixes: tuple[MixRecipe, ...]
    spark_master: str | None = None  # else TRIPLANE_SPARK_MASTER, else this machine's cores


def checked(recipe: BuildRecipe) -> BuildRecipe:
    """The recipe. UsageError when a name is used twice or unknown, a column is written by no tagger, or shares do not sum to 1."""
    _unique("source", [source.name for source in recipe.sources])
    _unique("mix", [mix.name for mix in recipe.mixes])
    for source in recipe.sources:
        _check_source(source)
    for mix in recipe.mixes:
        for name in mix.shares:
            _known(f"mix {mix.name}: share of source", name, [source.name for source in recipe.sources])
        if abs(sum(mix.shares.values()) - 1.0) > 1e-6:
            raise UsageError(f"mix {mix.name}: shares sum to {sum(mix.shares.values()):.6g}: make them sum to 1")
    return recipe


def taggers(source: SourceRecipe) -> dict[str, dict[str, Any]]:
    """Tagger name -> its parameters as the recipe gives them, in declared order."""
    entries = [(t, {}) if isinstance(t, str) else (t.name, t.params) for t in source.taggers]
    return dict(entries)


def rules(source: SourceRecipe) -> list[Rule]:
    """The rules in declared order, a tagger's name expanded to that tagger's own rules."""
    expanded: list[Rule] = []
    for rule in source.rules:
        if isinstance(rule, str):
            expanded.extend(TAGGERS[rule].rules)
        else:
            expanded.append(Rule(rule.reason, rule.column, rule.op, rule.value))
    return expanded


def tagger_params(name: str, values: dict[str, Any], tokenizer: str) -> Strict:
    """The tagger's parameters, `tokenizer` filled in where it takes one and the recipe gives none. UsageError when they are wrong."""
    tagger = TAGGERS[name]
    if "tokenizer" in tagger.params.model_fields:
        values = {"tokenizer": tokenizer, **values}
    try:
        return tagger.params.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(
            f"tagger {name}: {'.'.join(map(str, first['loc']))}: {first['msg']}: correct its params"
        ) from error


def _check_source(source: SourceRecipe) -> None:
    _unique(f"source {source.name}: tagger", [t if isinstance(t, str) else t.name for t in source.taggers])
    if source.suffixes and source.format != "text_tree":
        raise UsageError(f"source {source.name}: suffixes are for a text_tree: leave them out, or choose by a glob")
    columns = ["text_bytes"]
    for name, values in taggers(source).items():
        _known(f"source {source.name}: tagger", name, TAGGERS)
        columns += TAGGERS[name].columns(tagger_params(name, values, "")).names
    for rule in source.rules:
        if isinstance(rule, str):
            _known(f"source {source.name}: rules of tagger", rule, taggers(source))
    for expanded in rules(source):
        _known(f"source {source.name}: rule {expanded.name}: column", expanded.column, columns)
        if expanded.name in RESERVED_REASONS:
            raise UsageError(f"source {source.name}: the reason {expanded.name} is the build's own: rename the rule")
    for column, tagger, need in ((TOKEN_COUNT, "ngram_repetition", True), (TEXT_HASH, "text_hash", source.exact_dedup)):
        if need and column not in columns:
            raise UsageError(f"source {source.name}: nothing writes {column}: add {tagger} to its taggers")


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} {name} is named {names.count(name)} times: give each its own name")


def _known(what: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"
        raise UsageError(f"{what} {name} is unknown: {hint}")
