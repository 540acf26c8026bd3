"""Manifests and templates with anything anywhere: every checker answers with findings, none with an exception."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.manifests import check, lines, policy, policy_cloud, references
from jobs.manifests.lines import Document, Location
from jobs.submission import resources

HERE = Path(__file__).parent
MANIFESTS = [*sorted((HERE / "manifests").glob("*.yaml")), HERE / "policy" / "closed.yaml"]
OBJECTS = [one for path in MANIFESTS for one in lines.read(path)[0]]
TEMPLATE = lines.read(HERE / "policy" / "template.yaml", intrinsics=True)[0][0]
ANYTHING: list[Any] = [None, [], {}, 0, -1, 1.5, True, "x", "", [None], {"a": None}, [[1]], {"x": {"y": [1]}}, 2**70]


def places(value: Any, at: Location = ()) -> Iterator[Location]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def mutated(document: Document, generator: random.Random) -> Document:
    value = copy.deepcopy(document.value)
    for _ in range(generator.randint(1, 3)):
        *parents, last = generator.choice(list(places(value)))
        holder = value
        for part in parents:
            holder = holder[part]
        holder[last] = generator.choice(ANYTHING)
    return Document(document.file, value, document.lines)


@pytest.mark.parametrize("seed", range(4))
def test_no_checker_falls_over(seed: int) -> None:
    generator = random.Random(seed)
    pool = resources.Pool("gpu", "p5.48xlarge", resources.MACHINES["p5.48xlarge"], 2)
    found = 0
    for _ in range(50):
        one = mutated(generator.choice(OBJECTS), generator)
        found += bool(check.of_documents([one]))
        policy.of_documents([one])
        references.findings([one, *OBJECTS])
        resources.findings(one, OBJECTS, {"gpu": pool})
        list(policy_cloud.mistakes(mutated(TEMPLATE, generator)))
    assert found > 25
