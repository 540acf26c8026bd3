"""The last number of a text, and whether it is the expected one: GSM8K's answer.

In: text as generated. Out: the number as a string. As olmes (b532dd5, `gsm8k.py`, and Hugging Face evaluate's exact_match with its four
ignored patterns): a comma between digits goes first, a sign counts only before a decimal fraction, and where there is no number the text
itself is compared. So -5 and 5 are equal here as there.
"""

import re

_COMMA = re.compile(r"(\d),(\d)")
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")
_FULL_STOP = re.compile(r"\.$")


def last_number(text: str) -> str:
    """`... So she has $1,234.` -> `1234`; without a number, the text itself."""
    joined = _COMMA.sub(r"\1\2", text)
    numbers = _NUMBER.findall(joined)
    return str(numbers[-1]) if numbers else joined


def is_same_number(text: str, expected: str) -> bool:
    """Whether two extracted numbers are written alike: commas, dollars, `#### ` and a final stop aside."""
    return _bare(text) == _bare(expected)


def _bare(text: str) -> str:
    """Lower case, without commas, dollars, all up to the last `#### ` (as olmes's expression its time grows with the square) and a final stop."""
    answer = text.replace(",", "").replace("$", "").rpartition("#### ")[2]
    return _FULL_STOP.sub("", answer).lower()
