"""The build recipe: which sources, how each is tagged and selected, and the mixes made of them.

YAML through `triplane.recipe.load` -> `BuildRecipe`; `checked` says what no field can say alone. Fields follow the paper's vocabulary
(section 3.1 and table 13); each carries its unit in its name.
"""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from dataplane.published import Published
from dataplane.tagger import Rule
from dataplane.taggers.table import TAGGERS
from triplane.errors import UsageError
from triplane.recipe import Strict, Tokens

TOKEN_COUNT, TEXT_HASH, BANDS = "token_count", "text_hash_high", "minhash_bands"
EDITED = "edited"
HELD_OUT, EXACT_DUPLICATE, NEAR_DUPLICATE, EMPTY = "held_out", "exact_duplicate", "near_duplicate", "empty"
RESERVED_REASONS = frozenset({HELD_OUT, EXACT_DUPLICATE, NEAR_DUPLICATE, EMPTY})
UNPINNED = "unpinned"  # in the place of documents: no public location is known; of a model or its hash: not known here
DEFAULT_MAX_REPETITIONS = 4.0  # Muennighoff et al. 2023: up to four epochs cost little
NAME = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")


class TaggerRecipe(Strict):
    """A tagger with parameters; a tagger without is written as its name alone.

    `where` makes it a pass of its own behind those declared before it, which are then not run again when it changes: it reads the documents that
    none of these rules drops (a reason, or a tagger's name for its own rules; `[]`: all documents), and writes null for the others.
    """

    name: str
    params: dict[str, Any]
    where: tuple[str, ...] | None = None


class RuleRecipe(Strict):
    """Drops the documents for which `column op value` holds, with this reason."""

    reason: str = NAME
    column: str
    op: Literal["<", "<=", ">", ">=", "="]
    value: int | float


class Columns(Strict):
    """Which columns of a Parquet file are a document's; `id: null`: the row's number is its id."""

    id: str | None
    text: str


class QuantileRecipe(Strict):
    """Keeps the top share of the documents that passed the rules before it, by a column; the others are dropped with this reason.

    The threshold is the highest value t for which the documents with `column >= t` hold at least `keep_top` of the weight: ties at t are kept.
    """

    reason: str = NAME
    column: str
    keep_top: float = Field(gt=0.0, le=1.0)
    weight: Literal["tokens", "documents"]

    @property
    def name(self) -> str:
        """The reason, as `Rule` calls it."""
        return self.reason


class NearDedupRecipe(Strict):
    """Of documents that share a MinHash band, or are linked by others that do, one stays, among all sources with the same `within`."""

    within: str = NAME
    prefer: str | None = (
        None  # the column whose highest value stays; of equals, the first by source as declared, shard, row
    )


class FilterRecipe(Strict):
    """Taggers and rules that come behind a source's own."""

    taggers: tuple[str | TaggerRecipe, ...]
    rules: tuple[str | RuleRecipe | QuantileRecipe, ...]


class SourceRecipe(Strict):
    """One source. `rules` are tried in order, the first that holds is the reason; a tagger's name stands for its own rules."""

    name: str = NAME
    documents: str  # a folder, an object or a glob, on any store
    format: Literal[
        "dolma", "text_tree"
    ]  # dolma: JSON lines, one document a line; text_tree: a folder, one document a file
    licence: str
    taggers: tuple[str | TaggerRecipe, ...]
    rules: tuple[str | RuleRecipe | QuantileRecipe, ...]
    exact_dedup: bool  # of equal texts in all sources with this set, the first stays: by source as declared, shard, row
    near_dedup: NearDedupRecipe | None = None
    suffixes: tuple[str, ...] = ()  # of a text_tree: the files to take, [.md, .txt]; none: all
    columns: Columns | None = None  # of Parquet files; none: id and text
    label_mask: Literal["ngram_regions"] | None = None  # the column of the token regions that labels leave out
    published: Published | None = None
    published_filters: FilterRecipe | None = None  # what the publisher applied, for documents in the place of its own


class MixRecipe(Strict):
    """Of each source, a share of `tokens` (they sum to 1), or a percent of what it has, repeated above 100: scaled to `tokens`, or all of it.

    A source is repeated at most `max_repetitions` times. `whole_files`: percents below 100 take whole token shards, drawn by the seed.
    """

    name: str = NAME
    tokens: Tokens | None = None
    shares: dict[str, float] | None = None
    source_percent: dict[str, float] | None = None
    whole_files: Literal[True] | None = None
    max_repetitions: float = DEFAULT_MAX_REPETITIONS

    @property
    def sources(self) -> list[str]:
        """Their names, as declared."""
        return list(self.shares or self.source_percent or {})


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
    stand_ins: dict[str, str] = Field({})  # source name -> other documents in the place of its own: see catalogue.py
    models: dict[str, dict[str, Any] | Literal["none"]] = Field({})  # tagger name -> its params in published_filters


def checked(recipe: BuildRecipe) -> BuildRecipe:
    """The recipe. UsageError when a name is used twice or unknown, a column is written by no tagger, or shares do not sum to 1."""
    _unique("source", [source.name for source in recipe.sources])
    _unique("mix", [mix.name for mix in recipe.mixes])
    for source in recipe.sources:
        _check_source(source)
    _check_near_dedup(recipe.sources)
    for mix in recipe.mixes:
        for name in mix.sources:
            known(f"mix {mix.name}: share of source", name, [source.name for source in recipe.sources])
        _check_mix(mix)
    return recipe


def taggers(source: SourceRecipe) -> dict[str, dict[str, Any]]:
    """Tagger name -> its parameters as the recipe gives them, in declared order."""
    entries = [(t, {}) if isinstance(t, str) else (t.name, t.params) for t in source.taggers]
    return dict(entries)


def all_taggers(source: SourceRecipe) -> dict[str, dict[str, Any]]:
    """As `taggers`, and those inside `edited`, whose rules may be named too."""
    found = taggers(source)
    inside = found.get(EDITED, {}).get("taggers", [])
    return found | {
        t if isinstance(t, str) else t["name"]: {} if isinstance(t, str) else t.get("params", {}) for t in inside
    }


@dataclass(frozen=True)
class Pass:
    """Taggers (name -> parameters) that read a source's documents together; only those that none of the rules `where` drops."""

    taggers: dict[str, dict[str, Any]]
    where: tuple[Rule, ...] = ()


def passes(source: SourceRecipe) -> list[Pass]:
    """First the taggers that read every document, then each tagger with a `where`, in declared order. UsageError for a rule that is unknown."""
    found = taggers(source)
    later = {one.name: one for one in source.taggers if isinstance(one, TaggerRecipe) and one.where is not None}
    first = Pass({name: values for name, values in found.items() if name not in later})
    return [first, *(Pass({name: found[name]}, _where(source, one)) for name, one in later.items())]


def _where(source: SourceRecipe, tagger: TaggerRecipe) -> tuple[Rule, ...]:
    named: dict[str, list[Rule]] = {}
    for rule in source.rules:
        expanded = rules(source.model_copy(update={"rules": (rule,)}))
        own = [one for one in expanded if isinstance(one, Rule)]
        named.setdefault(rule if isinstance(rule, str) else rule.reason, []).extend(own)
        for one in own if isinstance(rule, str) else []:
            named.setdefault(one.name, []).append(one)
    for name in tagger.where or ():
        known(f"source {source.name}: tagger {tagger.name}: where: rule", name, named)
        if not named[name]:
            raise UsageError(
                f"source {source.name}: tagger {tagger.name}: where: {name} is a share, known when all is tagged: name a rule with a value"
            )
    return tuple(rule for name in tagger.where or () for rule in named[name])


def rules(source: SourceRecipe) -> list[Rule | QuantileRecipe]:
    """The rules in declared order, a tagger's name expanded to that tagger's own rules."""
    expanded: list[Rule | QuantileRecipe] = []
    for rule in source.rules:
        if isinstance(rule, str):
            expanded.extend(TAGGERS[rule].rules)
        elif isinstance(rule, QuantileRecipe):
            expanded.append(rule)
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


def _check_mix(mix: MixRecipe) -> None:
    percents = mix.source_percent or {}
    wrong = {
        "give either shares or source_percent": (mix.shares is None) == (mix.source_percent is None),
        "shares need tokens: say how many": mix.shares is not None and mix.tokens is None,
        "whole_files needs source_percent": mix.whole_files is not None and mix.source_percent is None,
        "make each of source_percent more than 0": any(percent <= 0 for percent in percents.values()),
        "whole files are repeated whole: make a source_percent above 100 a multiple of 100": mix.whole_files is not None
        and any(percent > 100 and percent % 100 for percent in percents.values()),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UsageError(f"mix {mix.name}: {message}")
    total = sum((mix.shares or {}).values())
    if mix.shares is not None and abs(total - 1.0) > 1e-6:
        raise UsageError(f"mix {mix.name}: shares sum to {total:.6g}: make them sum to 1")


def _check_source(source: SourceRecipe) -> None:
    if source.documents == UNPINNED:
        reason = source.published.unpinned if source.published else "none is known"
        raise UsageError(f"source {source.name} has no public location ({reason}): set stand_ins.{source.name}=FOLDER")
    _unique(f"source {source.name}: tagger", [t if isinstance(t, str) else t.name for t in source.taggers])
    if source.suffixes and source.format != "text_tree":
        raise UsageError(f"source {source.name}: suffixes are for a text_tree: leave them out, or choose by a glob")
    check_names(source)
    columns = ["text_bytes"]
    for name, values in taggers(source).items():
        _check_pinned(source, name, values)
        columns += TAGGERS[name].columns(tagger_params(name, values, "")).names
    _unique(f"source {source.name}: column", columns)  # a tagger of edits brings those of others
    for expanded in rules(source):
        known(f"source {source.name}: rule {expanded.name}: column", expanded.column, columns)
        if expanded.name in RESERVED_REASONS:
            raise UsageError(f"source {source.name}: the reason {expanded.name} is the build's own: rename the rule")
    _check_passes(source)
    if source.label_mask is not None:
        known(f"source {source.name}: label_mask: column", source.label_mask, _token_columns(source))
    near = source.near_dedup
    if near is not None and near.prefer is not None:
        known(f"source {source.name}: near_dedup: prefer: column", near.prefer, columns)
    needs = (
        (TOKEN_COUNT, "ngram_repetition", True),
        (TEXT_HASH, "text_hash", source.exact_dedup),
        (BANDS, "minhash", near is not None),
    )
    for column, tagger, need in needs:
        if need and column not in columns:
            raise UsageError(f"source {source.name}: nothing writes {column}: add {tagger} to its taggers")


def check_names(source: SourceRecipe) -> None:
    """UsageError when a tagger is unknown, or a rule names a tagger that is not the source's."""
    for name, values in taggers(source).items():
        known(f"source {source.name}: tagger", name, TAGGERS)
        if name == EDITED:
            tagger_params(name, values, "")  # it names taggers itself
    for rule in source.rules:
        if isinstance(rule, str):
            known(f"source {source.name}: rules of tagger", rule, all_taggers(source))


def _check_pinned(source: SourceRecipe, tagger: str, values: dict[str, Any]) -> None:
    if UNPINNED in values.values():
        fields = TAGGERS[tagger].params.model_fields
        wanted = ", ".join(f"{name}: ..." for name, field in fields.items() if field.is_required())
        raise UsageError(
            f"source {source.name}: tagger {tagger} has no model that is known by its hash here: set models.{tagger}={{{wanted}}}, "
            f"or models.{tagger}=none to go without"
        )


def _token_columns(source: SourceRecipe) -> list[str]:
    """The columns of taggers that read the tokens which `tokenize` writes: where there are edits, those that read the edited text."""
    found = taggers(source)
    found = {EDITED: found[EDITED]} if EDITED in found else found
    return [column for name in found for column in TAGGERS[name].columns(tagger_params(name, found[name], "")).names]


def _check_passes(source: SourceRecipe) -> None:
    """A rule on what a later pass wrote comes behind those of its `where`, so that no document is judged by a null."""
    order = rules(source)
    earlier = {"text_bytes"}
    for number, one in enumerate(passes(source)):
        name = next(iter(one.taggers), "")
        for rule in one.where:
            if rule.column not in earlier:
                raise UsageError(
                    f"source {source.name}: tagger {name}: where: {rule.name} reads {rule.column}, not written before: declare its tagger earlier"
                )
        written = {c for t, v in one.taggers.items() for c in TAGGERS[t].columns(tagger_params(t, v, "")).names}
        if number and TOKEN_COUNT in written:
            raise UsageError(
                f"source {source.name}: tagger {name} counts the tokens of every document: leave its where out"
            )
        first = min((index for index, rule in enumerate(order) if rule.column in written), default=len(order))
        late = [rule.name for rule in one.where if rule not in order[:first]]
        if late:
            raise UsageError(
                f"source {source.name}: rule {order[first].name} reads {name}, which only sees what passes {late[0]}: put it behind {late[0]}"
            )
        earlier |= written


def _check_near_dedup(sources: Iterable[SourceRecipe]) -> None:
    """Bands of different parameters never meet, and preferences by different columns do not compare."""
    first: dict[str, SourceRecipe] = {}
    for source in sources:
        if source.near_dedup is None:
            continue
        if "minhash" not in taggers(source):
            raise UsageError(
                f"source {source.name}: near duplicates are found among texts as they are: name minhash outside {EDITED}"
            )
        other = first.setdefault(source.near_dedup.within, source)
        if (taggers(source)["minhash"], source.near_dedup) != (taggers(other)["minhash"], other.near_dedup):
            raise UsageError(
                f"source {source.name}: near_dedup within {source.near_dedup.within} differs from source {other.name}: "
                "give both the same minhash params and the same prefer"
            )


def _unique(what: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what} {name} is named {names.count(name)} times: give each its own name")


def known(what: str, name: str, names: Iterable[str]) -> None:
    """Raises UsageError with the nearest of `names` when `name` is none of them."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1, 0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names) or 'none'}"
        raise UsageError(f"{what} {name} is unknown: {hint}")
