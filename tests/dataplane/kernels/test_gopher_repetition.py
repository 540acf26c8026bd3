"""Spans are told apart by bytes: what would fool a hash of packed bytes does not."""

import pyarrow as pa
import pytest

from dataplane import documents
from dataplane.kernels import gopher_repetition, words


def counts(text: str) -> dict[str, int]:
    offsets, data = documents.string_buffers(pa.array([text], pa.large_string()))
    [row] = gopher_repetition.count(offsets, data, words.split(offsets, data))
    return dict(zip(gopher_repetition.COUNTS, row.tolist(), strict=True))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("a", "a\0"),  # packed into eight bytes they are equal
        ("12345678", "12345678\0"),
        ("a" * 8, "a" * 9),
        ("a" * 16, "a" * 17),
        ("x" * 15 + "y", "x" * 15 + "z"),
        ("-" * 40, "-" * 48),
        ("é", "e"),
    ],
)
def test_lines_that_look_alike(first: str, second: str) -> None:
    assert counts(f"{first}\n{second}\n{first}\n{second}\n.")["duplicate_lines"] == 2
    assert counts(f"{first}\n{second}\n.")["duplicate_lines"] == 0
    gram = f"{first} {second} {first} {first} {second} "
    assert counts(gram + "| " + gram)["duplicate_5gram_characters"] == len(gram.replace(" ", ""))
    assert counts(gram + "| " + gram.replace(second, "other"))["duplicate_5gram_characters"] == 0


def test_the_end_of_the_buffer_is_not_read_past() -> None:
    for length in range(1, 40):
        assert counts("b" * length + "\n" + "b" * length)["duplicate_line_characters"] == length


def test_levels_of_a_run() -> None:
    found = counts("a " * 30)
    assert found["top_2gram_characters"] == 29 * 3 and found["top_4gram_characters"] == 27 * 7
    assert [found[f"duplicate_{n}gram_characters"] for n in (5, 10)] == [25, 20]
    assert counts("")["characters"] == counts("a")["top_2gram_characters"] == 0
    assert counts("a b")["top_2gram_characters"] == 3
