"""YAML with lines: values as Kubernetes reads them, every text mistake found, nothing built that a text asks for."""

from jobs.manifests import lines


def values(text: str, **options: bool) -> list[object]:
    documents, findings = lines.parse(text, "a.yaml", **options)
    assert findings == []
    return [one.value for one in documents]


def problems(text: str) -> list[str]:
    return [str(one) for one in lines.parse(text, "a.yaml")[1]]


def test_scalars_are_those_of_kubernetes() -> None:
    text = "[1, 0400, 0o17, 0x1f, 1_000, 1.5, 1e3, yes, off, null, ~, 2026-11-25, 12:30, '1', =, a]"
    assert values(text) == [
        [1, 256, 15, 31, 1000, 1.5, 1000.0, True, False, None, None, "2026-11-25", "12:30", "1", "=", "a"]
    ]


def test_each_location_knows_its_line() -> None:
    text = "a: 1\n---\nb:\n  - c: |\n      x\n    d: {e: f}\n# comment\n  - g\n"
    first, second = lines.parse(text, "a.yaml", first_line=11)[0]
    assert first.lines == {(): 11, ("a",): 11}
    assert {place: line - 10 for place, line in second.lines.items()} == {
        (): 3,
        ("b",): 3,
        ("b", 0): 4,
        ("b", 0, "c"): 4,
        ("b", 0, "d"): 6,
        ("b", 0, "d", "e"): 6,
        ("b", 1): 8,
    }
    assert second.place(("b", 0, "c", "not", "there")) == ("a.yaml", 14)
    assert lines.dotted(("b", 0, "d", "e")) == "b[0].d.e"


def test_a_syntax_error_hides_no_other_document() -> None:
    documents, findings = lines.parse("a: [1\n---\nb: 2\n---\nc: }\n---\nd: 4\n", "a.yaml")
    assert [one.value for one in documents] == [{"b": 2}, {"d": 4}]
    assert [(one.line, one.message[:8]) for one in findings] == [(2, "not YAML"), (5, "not YAML")]


def test_text_mistakes_are_all_found() -> None:
    assert problems("a: 1\nb: 2\na: 3\nb: 4\n") == [
        "a.yaml:3: key 'a' is given twice (first on line 1): remove one",
        "a.yaml:4: key 'b' is given twice (first on line 2): remove one",
    ]
    assert problems("a: !!python/object/apply:os.system [ls]") == [
        "a.yaml:1: the tag tag:yaml.org,2002:python/object/apply:os.system is not allowed: write a plain value"
    ]
    assert problems("a: !Ref b") == ["a.yaml:1: the tag !Ref is not allowed: write a plain value"]
    assert problems("? [a]\n: b\n") == ["a.yaml:1: a key must be a word: write `key: value`"]
    assert "is no number that can be read" in problems("a: " + "9" * 5000)[0]


def test_aliases_are_followed_and_bounded() -> None:
    assert values("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}\n") == [{"a": {"b": 1, "c": 2}, "d": {"b": 1, "c": 3}}]
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9))
    assert "beyond reason" in problems(bomb)[0]
    assert "beyond reason" in problems("a: &a [*a]")[0]
    assert "beyond reason" in problems("[" * 100_000)[0]


def test_intrinsics_of_cloudformation_take_their_long_form() -> None:
    text = "a: !Ref b\nc: !GetAtt d.e.f\ng: !Sub\n  - ${h}\n  - {h: !Ref i}\n"
    assert values(text, intrinsics=True) == [
        {"a": {"Ref": "b"}, "c": {"Fn::GetAtt": ["d", "e.f"]}, "g": {"Fn::Sub": ["${h}", {"h": {"Ref": "i"}}]}}
    ]
