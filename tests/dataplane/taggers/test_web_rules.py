"""C4, FineWeb and RefinedWeb statistics equal slow Python on real and on awkward text, and decide as datatrove and DCLM do."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane import documents, tagger
from dataplane.kernels import code_points
from dataplane.taggers.table import TAGGERS

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}


def sentences(text: str, language: str = "") -> list[str]:
    """As `kernels/c4.py` defines them; datatrove is given this in place of spaCy."""
    ends = [match.end() for match in re.finditer(r"[.?!][\"')\]”’]*(?=[ \t]|$)", text)]
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [piece for piece in pieces if piece.strip(" \t")]


def c4_line(line: str) -> tuple[str, int]:
    """(the count a line goes to, its sentences if it stays)."""
    line, words = line.strip(), line.split()
    if any(len(word) > 1000 for word in words):
        return "long_word_lines", 0
    line = CITATION.sub("", line)
    if not line.endswith((".", "?", "!", '"', "'")) or line.endswith("..."):
        return "no_terminal_lines", 0
    if len(words) < 3:
        return "short_lines", 0
    for name, is_hit in (
        ("lorem_ipsum", "lorem ipsum" in line.lower()),
        ("javascript_lines", "javascript" in line.lower()),
        ("curly_bracket", "{" in line),
        ("policy_lines", any(policy in line.lower() for policy in POLICIES)),
    ):
        if is_hit:
            return name, 0
    return "kept_lines", len(sentences(line))


def c4(text: str) -> dict[str, float]:
    values = dict.fromkeys(TAGGERS["c4"].columns(None).names, 0)
    for line in text.splitlines():
        name, kept = c4_line(line)
        if name in ("lorem_ipsum", "curly_bracket"):
            values[f"c4_{name}"] += not (values["c4_lorem_ipsum"] or values["c4_curly_bracket"])
        else:
            values[f"c4_{name}"] += 1
        values["c4_lines"] += 1
        values["c4_kept_sentences"] += kept
    return values


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def fineweb(text: str) -> dict[str, float]:
    from datatrove.utils.text import TERMINAL_PUNCTUATION

    lines = [line for line in text.split("\n") if line.strip()]
    return {
        "fineweb_lines": len(lines),
        "fineweb_punctuated_lines": ratio(
            sum(line.endswith(tuple(TERMINAL_PUNCTUATION)) for line in lines), len(lines)
        ),
        "fineweb_short_lines": ratio(sum(len(line) <= 30 for line in lines), len(lines)),
        "fineweb_duplicate_characters": ratio(
            sum(map(len, lines)) - sum(map(len, set(lines))), len(text.replace("\n", ""))
        ),
        "fineweb_newlines": ratio(text.count("\n"), len(text.split())),
    }


def counted(text: str) -> int:
    return sum(word[0].isalnum() for word in text.split())


def without_phrase(text: str, phrase: str, anchor: str) -> str:
    """DCLM's substring_line_modifier(max_length=10, remove_substring_only=True)."""
    pattern = {"any": rf"\s?(?:{phrase})", "suffix": rf"\s?(?:{phrase})$", "prefix": rf"^(?:{phrase})\s?"}[anchor]
    kept = []
    for line in text.split("\n"):
        edited = re.sub(pattern, "", line, flags=re.I) if len(line.split()) <= 10 else line
        if line == edited or not (line and (not edited or edited.isspace())):
            kept.append(edited)
    return "\n".join(kept).strip()


def dclm_edited(text: str) -> str:
    """DCLM's line modifiers one after another, each over the whole text."""
    counter = re.compile(
        r"^\W*\d(?:,|\.|\d)*(?:K|k|M|m|B|b)?\s+(?:likes|shares|comments|retweets|reposts|quotes|bookmarks|upvotes|downvotes|downloads|views|followers)\W*$"
    )
    keeps: list[Callable[[str], bool]] = [
        lambda line: not line or sum(c.isupper() for c in line) / len(line) <= 0.5,
        lambda line: not line or sum(c.isdigit() for c in line) / len(line) <= 0.999999,
        lambda line: not counter.search(line.lower()),
    ]
    for keep in keeps:
        text = "\n".join(line for line in text.split("\n") if keep(line)).strip()
    text = "\n".join(line for line in text.split("\n") if len(line.split()) >= 2 or not line)
    for phrase, anchor in (("items in cart", "any"), ("read more...", "suffix"), ("sign-in", "prefix")):
        text = without_phrase(text, phrase, anchor)
    return text


def refinedweb(text: str) -> dict[str, float]:
    words, lines = text.split(), [stripped for line in text.split("\n") if (stripped := line.strip())]
    symbols = sum(text.count(symbol) for symbol in ("#", "...", ". . .", "…"))
    return {
        "refinedweb_words": counted(text),
        "refinedweb_mean_word_length": ratio(sum(map(len, words)), len(words)),
        "refinedweb_symbol_ratio": ratio(symbols, len(words)),
        "refinedweb_bullet_lines": ratio(sum(line.startswith(("●", "•", "*", "-")) for line in lines), len(lines)),
        "refinedweb_ellipsis_lines": ratio(sum(line.endswith(("...", ". . .", "…")) for line in lines), len(lines)),
        "refinedweb_non_alphabetic_words": ratio(sum(not any(map(str.isalpha, w)) for w in words), len(words)),
        "refinedweb_stop_words": sum(word.lower() in STOP_WORDS for word in words),
        "refinedweb_removed_words": ratio(counted(text) - counted(dclm_edited(text)), counted(text)),
    }


REFERENCES = {"c4": c4, "fineweb": fineweb, "refinedweb": refinedweb}
WORDS = (
    "the Be foo x BAR 12 3.5k 7, likes views, Comments Javascript javascript lorem Lorem ipsum { use uses of terms cookies "
    "coo\u212aies cookie policy privacy items in cart read more... Read more Sign-in [12] [] [edit] [٣] [1 citation needed] "
    "[citation . ? ! ' \" ” ’ ) ... … . . . # - • ● * é É 中文 😀 １ ② _ \x00"
).split(" ")
PHRASES = (
    "3 likes",
    "(4k views)",
    "xitems in carty",
    "Read more...",
    "READ MORE",
    "sign-in",
    "Sign-in ",
    "use of cookies.",
)
PIECES = st.sampled_from(
    [*WORDS, *PHRASES, *"          ", *"\n\n\n\n\r\t\x1c\x85\xa0\u2028\u3000", "\n\n", "\r\n", "y" * 1001, "é" * 600]
)
TEXTS = st.lists(PIECES, max_size=80).map("".join) | st.lists(PIECES, max_size=80).map(" ".join) | st.text(max_size=60)


def tagged(name: str, texts: list[str]) -> list[dict[str, float]]:
    one = TAGGERS[name]
    params = one.params()
    columns = one.tag(documents.make_batch(range(len(texts)), ["x"] * len(texts), texts), params)
    assert columns.schema == one.columns(params) and columns.num_rows == len(texts)
    assert all(column.null_count == 0 for column in columns.columns)
    return columns.to_pylist()


@pytest.mark.parametrize("name", REFERENCES)
@given(texts=st.lists(TEXTS, max_size=4))
def test_equal_to_the_reference_on_awkward_text(name: str, texts: list[str]) -> None:
    assert tagged(name, texts) == [REFERENCES[name](text) for text in texts]


@pytest.mark.parametrize("name", REFERENCES)
def test_equal_to_the_reference_on_the_corpus(name: str, shared: Path) -> None:
    for source in ("code", "web", "web_noisy", "qa", "academic"):
        [batch] = documents.read(documents.shards(str(shared / "data/corpus" / source / "part-00001.jsonl.zst"))[0])
        texts = batch.text.slice(0, 80).to_pylist()
        assert tagged(name, texts) == [REFERENCES[name](text) for text in texts]


def test_lines_that_refinedweb_would_remove() -> None:
    body = "one two three four five six\n"
    lines = [
        "SHOUTING LINE ALL OVER",
        "12345",
        "3,100 likes",
        "single",
        "7 items in cart",
        "Go on Read more...",
        "Sign-in here",
    ]
    [values] = tagged("refinedweb", [body * 3 + "\n".join(lines)])
    assert values["refinedweb_words"] == 18 + 4 + 1 + 2 + 1 + 4 + 4 + 2
    assert values["refinedweb_removed_words"] == (4 + 1 + 2 + 1 + 3 + 2 + 1) / 36
    assert tagger.first_match(TAGGERS["refinedweb"].rules[-1:], values) == "refinedweb_removed_words"
    [values] = tagged("refinedweb", [body * 3])
    assert values["refinedweb_removed_words"] == 0


def test_every_phrase_and_every_counter_is_seen_by_the_kernel() -> None:
    """A kernel that missed one would leave the line's words uncounted: the slow reference says otherwise."""
    names = (
        "likes shares comments retweets reposts quotes bookmarks upvotes downvotes downloads views followers".split()
    )
    texts = [
        f"words stay here\n{edge}{n} {name}{edge}\nand these too"
        for name in names
        for n in ("3", "1.5K", "٣")
        for edge in ("", "(", "* ")
    ]
    texts += [
        f"words stay here\n{line}\nand these"
        for line in ("READ more...", "x Read more at.", "2 Items In Cart", "sign-in")
    ]
    values = tagged("refinedweb", texts)
    assert values == [refinedweb(text) for text in texts]
    assert sum(row["refinedweb_removed_words"] > 0 for row in values) >= len(texts) - 1


def test_c4_options() -> None:
    one, text = TAGGERS["c4"], "No mark at the end\nUse JavaScript, it is fine.\nA line { here.\nTwo words.\n"
    batch = documents.make_batch([0], ["x"], [text])

    def count(**options: object) -> dict[str, int]:
        return one.tag(batch, one.params(**options)).to_pylist()[0]

    assert count()["c4_kept_lines"] == 0 and count()["c4_curly_bracket"] == 1
    every = dict.fromkeys(("filter_no_terminal_punct", "filter_javascript", "filter_curly_bracket"), False)
    assert count(**every, min_words_per_line=-1)["c4_kept_sentences"] == 4
    assert count(max_word_characters=5)["c4_long_word_lines"] == 2


def test_decisions_are_those_of_datatrove(shared: Path) -> None:
    """Keep or drop and the reason; datatrove is given whitespace words and the same sentences."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, c4_filters, fineweb_quality_filter

    c4_filters.split_into_sentences = sentences
    fineweb_quality_filter.split_into_words = lambda text, language: text.split()
    peers = {"c4": C4QualityFilter(), "fineweb": FineWebQualityFilter()}
    reasons = set()
    for source in ("code", "web", "web_noisy", "qa", "instruction", "math_web"):
        [batch] = documents.read(documents.shards(str(shared / "data/corpus" / source / "part-00002.jsonl.zst"))[0])
        texts = batch.text.slice(0, 120).to_pylist()
        for name, peer in peers.items():
            for text, values in zip(texts, tagged(name, texts), strict=True):
                verdict = peer.filter(Document(text=text, id="x"))
                expected = None if verdict is True else verdict[1].replace("empty", "fineweb_empty")
                assert tagger.first_match(TAGGERS[name].rules, values) == expected
                reasons.add(expected)
    assert reasons >= {
        None,
        "curly_bracket",
        "too_few_sentences",
        "line_punct_ratio",
        "short_line_ratio",
        "char_dup_ratio",
        "list_ratio",
    }


def test_a_document_does_not_see_its_neighbours() -> None:
    texts = ["a b. c", "", "c { d e.", " ", "a b\n", "the -", "3 likes\n", "foo bar baz."]
    for name in REFERENCES:
        assert tagged(name, texts) == [tagged(name, [text])[0] for text in texts]
        batch = documents.make_batch(range(8), ["x"] * 8, texts)
        middle = documents.Batch(batch.rows[2:7], batch.id[2:7], batch.text[2:7], batch.source[2:7], None, ())
        assert TAGGERS[name].tag(middle, TAGGERS[name].params()).to_pylist() == tagged(name, texts[2:7])


def test_classes_are_those_of_str() -> None:
    table = code_points.table()
    for character in "aZ7²٣éÉ中.!?。\u0301 ":
        kind = table[ord(character)]
        assert bool(kind & code_points.UPPERCASE) == character.isupper()
        assert bool(kind & code_points.ALPHANUMERIC) == character.isalnum()
        assert bool(kind & code_points.DECIMAL) == character.isdecimal()
        assert bool(kind & code_points.ALPHABETIC) == character.isalpha()
        assert bool(kind & code_points.TERMINAL) == (character in ".!?。")
