"""The recipes of OLMo 2's data: every one can be read, says what the paper says, and where paper and release differ, how."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dataplane import catalogue, planning, recipe
from dataplane.tagger import Rule
from dataplane.taggers import fasttext
from jobs import train
from jobs.cli import app
from triplane.errors import UsageError
from triplane.recipe import load

RECIPES = Path(train.__file__).parent / "recipes"
SOURCES = sorted(path.stem for path in (RECIPES / "sources").glob("*.yaml"))
MIXES = sorted((RECIPES / "mixes").glob("*.yaml"))
NEVER_RELEASED = {"persona_math_v2", "tinygsm_inline"}
MATH = (
    "tulu_math", "dolmino_synth_math", "tinygsm_mind_problem_solving", "tinygsm_mind_two_students", "mathcoder2_books",
    "metamath_owm", "codesearchnet_owm", "gsm8k_train",
)  # fmt: skip
# arXiv 2501.00656, table 13: what the paper prints as percent of the mix.
PRINTED = {
    "50b": {"dclm_high_quality": 47.2, "flan": 16.6, "stack_exchange": 2.45, "pes2o": 5.85, "wikipedia_wikibooks": 7.11, "math": 20.8},
    "100b": {"dclm_high_quality": 50.2, "flan": 16.7, "stack_exchange": 2.47, "pes2o": 9.52, "wikipedia_wikibooks": 3.57, "math": 17.5},
    "300b": {"dclm_high_quality": 51.9, "flan": 11.3, "stack_exchange": 1.68, "pes2o": 19.4, "wikipedia_wikibooks": 4.86, "math": 10.8},
}  # fmt: skip
# allenai/OLMo configs/official-1124: the sums of the `#SOURCE: ... (n BT)` comments, in billions of tokens.
LISTED = {
    "50b": {"dclm_high_quality": 24.31, "flan": 8.54, "stack_exchange": 1.26, "pes2o": 3.01, "wikipedia_wikibooks": 3.66, "math": 10.69},
    "100b": {"dclm_high_quality": 51.47, "flan": 17.08, "stack_exchange": 2.52, "pes2o": 9.76, "wikipedia_wikibooks": 7.32, "math": 24.79},
    "300b": {"dclm_high_quality": 156.26, "flan": 34.16, "stack_exchange": 5.04, "pes2o": 58.55, "wikipedia_wikibooks": 14.64, "math": 42.77},
}  # fmt: skip


def build(name: str) -> recipe.BuildRecipe:
    return catalogue.load(RECIPES / "mixes" / f"{name}.yaml")


def published_tokens(made: recipe.BuildRecipe) -> dict[str, float]:
    return {source.name: source.published.tokens for source in made.sources if source.published}


def by_row(mix: str) -> dict[str, float]:
    """Billions of tokens by row of table 13, where the mathematics is one row."""
    made = build("dolmino_mix_1124")
    tokens = planning.mixed_tokens(made, mix, published_tokens(made))
    rows = {source: count / 1e9 for source, count in tokens.items() if source not in MATH}
    return rows | {"math": sum(count for source, count in tokens.items() if source in MATH) / 1e9}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_can_be_read_and_says_where_it_comes_from(name: str) -> None:
    source = catalogue.source(name, RECIPES / "sources")
    assert source.name == name and source.published is not None and source.licence
    if name in NEVER_RELEASED:
        assert source.documents == recipe.UNPINNED and source.published.unpinned
        return
    repository, _, path = source.documents.removeprefix("hf://datasets/allenai/").partition("/data/")
    corpus, _, revision = repository.partition("@")
    assert corpus in ("olmo-mix-1124", "dolmino-mix-1124") and len(revision) == 40 and path


@pytest.mark.parametrize("path", MIXES, ids=lambda path: path.stem)
def test_every_mix_can_be_built_of_sources_that_exist(path: Path) -> None:
    made = build(path.stem)
    stand_ins = [f"stand_ins.{source.name}=somewhere" for source in made.sources]
    checked = recipe.checked(catalogue.load(path, stand_ins + without_models(made)))
    assert {source.documents for source in checked.sources} == {"somewhere"}
    used = {source for mix in checked.mixes for source in mix.sources}
    assert used == {source.name for source in checked.sources} <= set(SOURCES)


def without_models(made: recipe.BuildRecipe) -> list[str]:
    """Overrides that leave out every tagger whose model is not pinned."""
    filters = [source.published_filters for source in made.sources if source.published_filters is not None]
    entries = [one for each in filters for one in each.taggers if isinstance(one, recipe.TaggerRecipe)]
    return [f"models.{one.name}=none" for one in entries if recipe.UNPINNED in one.params.values()]


GIVEN = "{model: here.bin, sha256: %s, label: hq}" % ("ab" * 32)
EDU = "{sha256: %s}" % ("cd" * 32)


def standing_in(name: str, *overrides: str) -> recipe.SourceRecipe:
    path = RECIPES / "mixes" / ("olmo2_mix_1124.yaml" if name in ("starcoder", "dclm_baseline") else "dolmino_mix_1124.yaml")  # fmt: skip
    made = catalogue.load(path, [f"stand_ins.{name}=here", *overrides])
    only = tuple(one for one in made.sources if one.name == name)
    return recipe.checked(made.model_copy(update={"sources": only, "mixes": ()})).sources[0]


def test_stand_ins_pass_the_publishers_filters() -> None:
    """Thresholds of arXiv 2501.00656, sections 2.4.1 and 4.3; the published documents have passed them and are not filtered again."""
    code = standing_in("starcoder")
    assert recipe.taggers(code)["code_rules"] == {"words": "whitespace"}
    rules = [(one.column, one.op, one.threshold) for one in recipe.rules(code) if isinstance(one, Rule)]
    assert rules[1:] == [("code_stars", "<", 2), ("code_top_word", ">", 0.3), ("code_top_two_words", ">", 0.5)]
    web = standing_in("dclm_high_quality", f"models.fasttext_quality={GIVEN}", f"models.fineweb_edu={EDU}")
    quality, edu = recipe.rules(web)[-2:]
    assert (quality.column, quality.op, quality.threshold) == ("quality_score", "<", fasttext.DOLMINO)  # type: ignore[union-attr]
    assert (edu.column, edu.op, edu.threshold) == ("fineweb_edu_score", "<", 2.0)  # type: ignore[union-attr]
    later = [(list(one.taggers), [rule.name for rule in one.where]) for one in recipe.passes(web)[1:]]
    assert later == [
        (["fasttext_quality"], ["ngram_repeat"]),
        (["fineweb_edu"], ["ngram_repeat", "dclm_quality"]),
    ]
    assert recipe.taggers(web)["fineweb_edu"]["model"] == "HuggingFaceFW/fineweb-edu-classifier"
    published = {source.name: source for source in build("dolmino_mix_1124").sources}
    assert list(recipe.taggers(published["dclm_high_quality"])) == ["lengths", "ngram_repetition"]


def test_a_missing_model_is_refused_or_left_out() -> None:
    wanted = r"set models\.fasttext_quality=\{model: \.\.\., sha256: \.\.\., label: \.\.\.\}, or models\.fasttext_quality=none"
    with pytest.raises(UsageError, match=f"dclm_high_quality: tagger fasttext_quality has no model .*: {wanted}"):
        standing_in("dclm_high_quality")
    with pytest.raises(UsageError, match="tagger fineweb_edu has no model"):
        standing_in("dclm_high_quality", f"models.fasttext_quality={GIVEN}")
    web = standing_in("dclm_high_quality", "models.fasttext_quality=none", f"models.fineweb_edu={EDU}")
    assert list(recipe.taggers(web)) == ["lengths", "ngram_repetition", "fineweb_edu"]
    assert [rule.name for rule in recipe.passes(web)[1].where] == ["ngram_repeat"]
    assert [rule.name for rule in recipe.rules(web)] == ["ngram_repeat", "fineweb_edu"]
    with pytest.raises(UsageError, match="model of tagger fasttext_qualty is unknown: did you mean fasttext_quality"):
        standing_in("dclm_high_quality", "models.fasttext_qualty=none")
    everything = ("models.language_id=none", f"models.fasttext_quality={GIVEN}")
    assert [one.taggers for one in recipe.passes(standing_in("dclm_baseline", *everything))][1].keys() == {"fasttext_quality"}  # fmt: skip


def test_every_source_is_in_a_mix() -> None:
    assert set(SOURCES) == {source.name for path in MIXES for source in build(path.stem).sources}


def test_the_tables_add_up() -> None:
    stage1 = [source.published for source in build("olmo2_mix_1124").sources if source.published]
    assert sum(one.tokens for one in stage1) == pytest.approx(3.90e12, rel=1e-3)
    assert sum(one.text_bytes or 0 for one in stage1) == pytest.approx(22.38e12, rel=1e-3)
    assert sum(one.documents or 0 for one in stage1) == pytest.approx(3.08e9, rel=3e-3)
    assert sum(one.token_files or 0 for one in stage1) == 1122
    tokens = published_tokens(build("dolmino_mix_1124"))
    assert sum(tokens[name] for name in MATH) == pytest.approx(10.7e9, rel=2e-3)
    assert sum(count for name, count in tokens.items() if name not in MATH) == pytest.approx(832.6e9, rel=1e-3)
    assert tokens["dclm_high_quality"] / 3.71e12 == pytest.approx(0.203, abs=5e-4)  # FineWeb-Edu >= 2


def test_published_thresholds() -> None:
    def applied(name: str) -> set[tuple[str, object]]:
        published = catalogue.source(name, RECIPES / "sources").published
        assert published is not None
        return {(one.op, one.value) for one in published.applied}

    assert {(">=", 0.018112), (">=", 0.65), ("<", 32)} <= applied("dclm_baseline")
    assert {(">=", 0.03311014), (">=", 2)} <= applied("dclm_high_quality")
    assert {(">=", 2), ("<=", 0.3), ("<=", 0.5)} <= applied("starcoder")
    assert {(">=", 3), (">=", 5)} <= applied("stack_exchange")
    assert applied("flan") == {("<", 0.1)}


@pytest.mark.parametrize("size", PRINTED)
def test_table_13_is_source_percent_times_pool(size: str) -> None:
    """But for the mathematics of 100B and 300B: see the next test. Printed numbers are rounded from sums that are not printed."""
    rows = by_row(f"dolmino-mix-1124-{size}-paper-table13")
    assert sum(rows.values()) == pytest.approx(float(size[:-1]))
    rest = sum(count for row, count in rows.items() if row != "math")
    printed_rest = 100 - PRINTED[size]["math"]
    for row in PRINTED[size].keys() - {"math"}:
        assert 100 * rows[row] / rest == pytest.approx(100 * PRINTED[size][row] / printed_rest, rel=0.021), row


def test_where_table_13_contradicts_itself_and_the_release() -> None:
    printed = {size: rows["math"] for size, rows in PRINTED.items()}
    computed = {}
    for size in PRINTED:
        rows = by_row(f"dolmino-mix-1124-{size}-paper-table13")
        computed[size] = round(100 * rows["math"] / sum(rows.values()), 1)
    assert computed == {"50b": 20.8, "100b": 20.2, "300b": 13.7} != printed  # 17.5 and 10.8 are printed
    paper, released = (by_row(f"dolmino-mix-1124-100b-{kind}") for kind in ("paper-table13", "released-yaml"))
    of_pool = {row: released[row] / paper[row] for row in released}
    assert of_pool["wikipedia_wikibooks"] / of_pool["flan"] == pytest.approx(2.0)  # the YAML lists it twice
    mixes = {mix.name: mix.source_percent for mix in build("dolmino_mix_1124").mixes}
    thrice = mixes["dolmino-mix-1124-100b-released-yaml"] or {}
    assert thrice["tinygsm_mind_two_students"] == 300 and thrice["tinygsm_mind_problem_solving"] == 200
    assert "codesearchnet_owm" in (mixes["dolmino-mix-1124-50b-paper-table13"] or {})
    assert all("codesearchnet_owm" not in (percents or {}) for name, percents in mixes.items() if "released" in name)


@pytest.mark.parametrize("size", LISTED)
def test_the_released_mixes_list_what_was_released(size: str) -> None:
    """Within 1.3 %: the paper's pools are rounded to two or three digits."""
    rows = by_row(f"dolmino-mix-1124-{size}-released-yaml")
    assert rows == pytest.approx(LISTED[size], rel=0.013)
    assert sum(rows.values()) == pytest.approx({"50b": 51.47, "100b": 112.94, "300b": 311.42}[size], rel=2e-3)


def test_micro_anneals_have_the_published_ratios() -> None:
    made = build("micro_anneals")
    tokens = {mix.name: planning.mixed_tokens(made, mix.name, published_tokens(made)) for mix in made.mixes}
    other = {
        name.removeprefix("micro-anneal-"): 1 - one["dclm_high_quality"] / sum(one.values())
        for name, one in tokens.items()
    }
    assert other == pytest.approx(
        {"math-35-65": 0.355, "math-10-90": 0.118, "math-x2": 0.505, "math-x4": 0.512, "tinygsm-inline": 0.52,
         "tinygsm-mind": 0.478, "tinygsm-mind-x2": 0.486}, abs=0.003
    )  # fmt: skip


def test_names_and_stand_ins(tmp_path: Path) -> None:
    path = RECIPES / "mixes" / "olmo2_mix_1124.yaml"
    made = catalogue.load(path, ["stand_ins.arxiv=here", "sources.1.licence=MIT", "seed=7"])
    changed = {source.name: source for source in made.sources}
    assert (changed["arxiv"].documents, changed["arxiv"].published, changed["arxiv"].format) == ("here", None, "dolma")
    assert (changed["starcoder"].licence, made.seed) == ("MIT", 7)
    assert [source.name for source in catalogue.load(path, ["sources=[pes2o, flan]"]).sources] == ["pes2o", "flan"]
    with pytest.raises(UsageError, match="stand-in for source arxv is unknown: did you mean arxiv"):
        catalogue.load(path, ["stand_ins.arxv=here"])
    with pytest.raises(UsageError, match=r"sources/flam\.yaml does not exist: did you mean .*flan\.yaml"):
        catalogue.load(path, ["sources=[flam]"])
    with pytest.raises(
        UsageError, match=r"tinygsm_inline has no public location .*set stand_ins\.tinygsm_inline=FOLDER"
    ):
        recipe.checked(catalogue.load(RECIPES / "mixes/micro_anneals.yaml", ["stand_ins.persona_math_v2=here"]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("mixes.0.shares={arxiv: 1.0}", "give either shares or source_percent"),
        ("mixes.0={name: m, shares: {arxiv: 1.0}}", "shares need tokens"),
        ("mixes.0={name: m, tokens: 1B, shares: {arxiv: 1.0}, whole_files: true}", "whole_files needs source_percent"),
        ("mixes.0={name: m, source_percent: {arxiv: 0}}", "more than 0"),
        ("mixes.0={name: m, whole_files: true, source_percent: {arxiv: 150}}", "a multiple of 100"),
        ("mixes.0={name: m, source_percent: {arxif: 100}}", "did you mean arxiv"),
    ],
)
def test_mixes_that_make_no_sense(changed: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.checked(catalogue.load(RECIPES / "mixes" / "olmo2_mix_1124.yaml", [changed]))


def planned(*arguments: str) -> dict:
    result = CliRunner().invoke(app, ["data", "plan", str(RECIPES / "mixes" / "olmo2_mix_1124.yaml"), *arguments])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_the_full_recipe_is_planned_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a plan needs no network"))
    value = planned("--json")
    total, stages = value["total"], value["stages"]
    assert total["text_bytes"] == pytest.approx(22.38e12, rel=1e-3) and total["token_shards"] == 3902
    assert stages["shuffle"]["bytes_read"] == pytest.approx(4 * 3.90e12, rel=0.02)
    assert (
        stages["select"]["bytes_shuffled"] == 0
    )  # text is never shuffled, hashes only where duplicates are looked for
    rates = load(RECIPES / "rates.yaml", planning.Rates)
    assert stages["tag"]["core_hours"] == pytest.approx(
        total["text_bytes"] / 1e6 / (rates.tag.mb_per_s_per_core or 0) / 3600
    )
    assert "dollars" not in total
    prices = tmp_path / "prices.yaml"
    prices.write_text(
        "dollars_per_core_hour: 0.04\ndollars_per_tb_read: 0\ndollars_per_tb_written: 5\nsource: made up\n"
    )
    priced = planned("--json", "--prices", str(prices))["total"]
    assert priced["dollars"] == pytest.approx(0.04 * total["core_hours"] + 5 * total["bytes_written"] / 1e12)


def test_a_source_without_numbers_is_listed_or_refused(shared: Path) -> None:
    corpus = shared / "data/corpus"
    every = [f"stand_ins.{name}={corpus}/web" for name in published_tokens(build("olmo2_mix_1124"))]
    value = planned(*every, "--json")
    assert value["sources"]["arxiv"]["text_bytes"] == pytest.approx(7_436_655, rel=0.2)
    assert value["sources"]["arxiv"]["estimated"] == ["text_bytes", "documents", "tokens"]
    path = str(RECIPES / "mixes" / "olmo2_mix_1124.yaml")
    result = CliRunner().invoke(app, ["data", "plan", path, "stand_ins.arxiv=hf://datasets/a/b/data"])
    assert result.exit_code == 2 and "arxiv at hf://datasets/a/b/data has no published numbers" in result.output


def test_hashes_are_shuffled_where_duplicates_are_looked_for() -> None:
    base = ["sources=[flan, pes2o]", "mixes=[]", "--json"]
    bands = "{name: minhash, params: {bands: 14, rows: 8, shingle_words: 5, seed: 1}}"
    near = [f"sources.0.taggers=[lengths, ngram_repetition, {bands}]", "sources.0.near_dedup={within: all}"]
    documents = planned(*base)["sources"]["flan"]["documents"]
    for changes, per_document in (([], 0), (["sources.0.exact_dedup=true"], 24), (near, 14 * 32)):
        assert planned(*base, *changes)["stages"]["select"]["bytes_shuffled"] == documents * per_document


def test_a_plan_of_a_tagger_that_is_not_there_is_refused() -> None:
    path = str(RECIPES / "mixes" / "olmo2_mix_1124.yaml")
    for change in ("sources.1.taggers=[lenghts]", "sources.1.rules=[lenghts]"):
        result = CliRunner().invoke(app, ["data", "plan", path, change])
        assert result.exit_code == 2 and "tagger lenghts is unknown: did you mean lengths" in result.output


def test_the_plan_as_text() -> None:
    result = CliRunner().invoke(app, ["data", "plan", str(RECIPES / "mixes" / "dolmino_mix_1124.yaml")])
    assert (
        result.exit_code == 0
        and "dolmino-mix-1124-50b-paper-table13: 50.00B tokens: dclm_high_quality 47.2 %" in result.output
    )
    assert "tinygsm_mind_two_students*" in result.output and "dollars" not in result.output
