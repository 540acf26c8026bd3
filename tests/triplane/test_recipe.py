"""Recipes: what is right is typed and frozen, what is wrong names its file, line and the nearest valid key."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from triplane import recipe
from triplane.errors import UsageError
from triplane.recipe import Bytes, Seconds, Strict, Tokens


class Adam(Strict):
    kind: Literal["adam"]
    learning_rate: float
    betas: tuple[float, float] = (0.9, 0.95)


class Sgd(Strict):
    kind: Literal["sgd"]
    momentum: float


class Source(Strict):
    name: str
    share: float
    path: Path | None = None


class Run(Strict):
    total: Tokens
    cache: Bytes = 1 << 20
    patience: Seconds = 60
    optimizer: Annotated[Adam | Sgd, pydantic.Field(discriminator="kind")]
    sources: tuple[Source, ...] = ()
    thresholds: dict[str, Source] = pydantic.Field(default_factory=dict)
    compile: bool = False

    @pydantic.model_validator(mode="after")
    def shares_add_up(self) -> "Run":
        if self.sources and abs(sum(source.share for source in self.sources) - 1) > 1e-9:
            raise ValueError("the shares of sources must add up to 1")
        return self


GOOD = """\
# a comment
total: 2B tokens
cache: 4 MiB
optimizer:
  kind: adam
  learning_rate: 3e-4
sources:
  - {name: web, share: 0.75}
  - name: no   # Norway's web, not false
    share: 0.25
    path: data/no
"""


def parsed(text: str, *overrides: str) -> Run:
    return recipe.parse(text, Run, "run.yaml", overrides)


def mistake(text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        parsed(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_typed_and_frozen() -> None:
    run = parsed(GOOD)
    assert (run.total, run.cache, run.patience) == (2 * 10**9, 4 << 20, 60)
    assert run.optimizer == Adam(kind="adam", learning_rate=0.0003, betas=(0.9, 0.95))
    assert run.sources[1] == Source(name="no", share=0.25, path=Path("data/no"))
    with pytest.raises(pydantic.ValidationError):
        run.total = 3  # type: ignore[misc]


def test_what_was_resolved_says_everything_and_reads_back() -> None:
    values = recipe.resolved(parsed(GOOD, "compile=true"))
    assert (values["compile"], values["patience"], values["sources"][1]["path"]) == (True, 60, "data/no")
    assert parsed(yaml.safe_dump(values)) == parsed(GOOD, "compile=true")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("total:", "totl:", "run.yaml:2: unknown key 'totl': did you mean 'total'? (1 more)"),
        ("total: 2B tokens\n", "", "run.yaml:2: key 'total' is missing: add it"),
        (
            "  learning_rate",
            "  learning_rte",
            "run.yaml:6: unknown key 'optimizer.learning_rte': did you mean 'learning_rate'? (1 more)",
        ),
        ("    path:", "    pth:", "run.yaml:11: unknown key 'sources.1.pth': did you mean 'path'?"),
        ("    path:", "    zzz:", "run.yaml:11: unknown key 'sources.1.zzz': valid keys here are name, path, share"),
        ("kind: adam", "kind: adan", "run.yaml:4: 'optimizer' is"),
        ("share: 0.25", "share: lots", "run.yaml:10: 'sources.1.share' is \"lots\": input should be a valid number"),
        ("share: 0.25", "share: '0.25'", "run.yaml:10: 'sources.1.share' is \"0.25\": input should be a valid number"),
        ("share: 0.25", "share: 0.5", "run.yaml:2: the recipe: the shares of sources must add up to 1"),
        ("    share: 0.25\n", "", "run.yaml:9: key 'sources.1.share' is missing: add it"),
        (
            "2B tokens",
            "4 MiB",
            "run.yaml:2: total: '4 MiB' is no number of tokens: write an integer, or a number with one of",
        ),
        ("2B tokens", "true", "run.yaml:2: 'total' is true: input should be a valid integer"),
        ("2B tokens", "1.5", "run.yaml:2: 'total' is 1.5: input should be a valid integer"),
        ("4 MiB", "4 s", "run.yaml:3: cache: '4 s' is no number of bytes"),
        ("4 MiB", "0.3 B", "run.yaml:3: cache: '0.3 B' is not a whole number of bytes"),
        ("cache: 4 MiB", "compile: yes", "run.yaml:3: 'compile' is \"yes\": input should be a valid boolean"),
        ("3e-4", ".inf", "run.yaml:6: 'optimizer.learning_rate'"),
        ("cache: 4 MiB", "total: 3", "run.yaml:3: key 'total' is given twice (first at run.yaml:2): remove one"),
        ("  - {name: web, share: 0.75}", "  - {name: web", "run.yaml:9: not YAML"),
        (
            "4 MiB",
            "!!python/object/apply:os.system [ls]",
            "run.yaml:3: the tag tag:yaml.org,2002:python/object/apply:os.system is not",
        ),
        ("4 MiB", "&a [*a]", "run.yaml:3: nested or repeated beyond reason"),
        ("cache: 4 MiB", "? [a, b]\n: c", "run.yaml:3: a key must be a word"),
    ],
)
def test_a_mistake_names_its_line_and_the_nearest_key(old: str, new: str, message: str) -> None:
    assert old in GOOD
    assert mistake(GOOD.replace(old, new)).startswith(message)


def test_documents_that_are_no_recipe() -> None:
    assert mistake("- 3").startswith("run.yaml:1: 'the recipe' is [3]: input should be an object")
    assert mistake("").startswith("run.yaml: key 'total' is missing")
    assert "another document" in mistake("total: 1\n---\ntotal: 2\n")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
        for before, name in zip("abcdefg", "bcdefgh", strict=True)
    )
    assert "beyond reason" in mistake(bomb)


def test_overrides_are_yaml_at_a_dotted_place() -> None:
    run = parsed(
        GOOD,
        "total=1_000",
        "sources.0.name=deep",
        "optimizer={kind: sgd, momentum: 0}",
        "thresholds.a={name: x, share: 1}",
    )
    assert (run.total, run.sources[0].name, run.optimizer) == (1000, "deep", Sgd(kind="sgd", momentum=0.0))
    assert run.thresholds["a"].share == 1.0
    assert parsed(GOOD, "sources.1.path=null").sources[1].path is None
    assert parsed("", "total=1", "optimizer.kind=sgd", "optimizer.momentum=0.5").optimizer == Sgd(
        kind="sgd", momentum=0.5
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.learning_rte=1",
            "override optimizer.learning_rte=1: unknown key 'optimizer.learning_rte': did you mean 'learning_rate'?",
        ),
        ("sources.7.name=x", "override sources.7.name=x: '7' is not in a list of 2: correct the path"),
        ("total.x=1", "override total.x=1: 'x' is not in '2B tokens': correct the path"),
        ("total", "override 'total' is not KEY=VALUE: write for instance"),
        ("a..b=1", "override 'a..b=1' is not KEY=VALUE"),
        (
            "sources.0.share=much",
            "override sources.0.share=much: 'sources.0.share' is \"much\": input should be a valid number",
        ),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    assert mistake(GOOD, override).startswith(message)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 0.0003),
        ("1E3", 1000.0),
        (".5", 0.5),
        ("-2.", -2.0),
        ("1_000_000", 1000000),
        ("010", 10),
        ("-7", -7),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("'5'", "5"),
        ("2026-01-02", "2026-01-02"),
        ("1_", "1_"),
        ("e5", "e5"),
        (".", "."),
    ],
)
def test_scalars_are_those_of_the_core_schema(text: str, value: Any) -> None:
    class Any_(Strict):
        x: Any

    found = recipe.parse(f"x: {text}", Any_, "x").x
    assert found == value and type(found) is type(value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**15), 10**15)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("abc: #'\n1e-", max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(value=plain)
def test_any_json_value_is_read_as_json_reads_it(value: Any) -> None:
    """JSON is a subset of YAML 1.2, and recipes are read as that."""
    assert recipe.compose(json.dumps({"x": value}), "x").value == {"x": value}


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (Tokens, "4096", 4096),
        (Tokens, "1.5T", 1_500_000_000_000),
        (Tokens, "300K tokens", 300_000),
        (Tokens, "10 tokens", 10),
        (Bytes, "2 B", 2),
        (Bytes, "1.5 KiB", 1536),
        (Bytes, "3 GB", 3 * 10**9),
        (Seconds, "1.5 min", 90),
        (Seconds, "2h", 7200),
    ],
)
def test_units_scale_exactly(unit: Any, text: str, value: int) -> None:
    assert pydantic.TypeAdapter(unit).validate_python(text, strict=True) == value


def test_options_take_times_with_units() -> None:
    assert (recipe.seconds("24h"), recipe.seconds("90"), recipe.seconds("30 min")) == (86400, 90, 1800)
    with pytest.raises(UsageError, match="'soon' is no number of seconds"):
        recipe.seconds("soon")


def test_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(GOOD)
    assert recipe.load(tmp_path / "tiny.yaml", Run, ["total=5"]).total == 5
    with pytest.raises(UsageError, match=r"tny.yaml does not exist: did you mean .*tiny.yaml\?"):
        recipe.load(tmp_path / "tny.yaml", Run)
    (tmp_path / "latin.yaml").write_bytes(b"total: \xff")
    with pytest.raises(UsageError, match=r"latin.yaml cannot be read .*: name a YAML file in UTF-8"):
        recipe.load(tmp_path / "latin.yaml", Run)
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.load(tmp_path, Run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("total: " + "9" * 5000, r"run.yaml:1: a number of 5000 digits: write at most 1000"),
        ("total: " + "9" * 5000 + "B tokens", r"run.yaml:1: total: a number of 5000 digits"),
        ("sources: " + "[" * 5000 + "]" * 5000, r"run.yaml: nested beyond reason"),
        ("sources: " + "[" * 50 + "]" * 50, r"run.yaml:1: nested or repeated beyond reason"),
    ],
)
def test_what_has_no_end_is_wrong_use(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        recipe.parse(text, Run, "run.yaml")


def test_a_list_position_without_end_is_wrong_use() -> None:
    with pytest.raises(UsageError, match="is not in a list of 2"):
        recipe.parse(GOOD, Run, "run.yaml", [f"sources.{'1' * 5000}.name=web"])
