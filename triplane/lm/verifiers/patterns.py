"""An answer of a known shape, found in a chain of thought: BIG-Bench Hard's.

In: text as generated and the regular expression of an answer. Out: the answer. As olmes (b532dd5, `bbh.py`): the last `So the answer is X`,
else `answer is X`, `answer: ... X`, `answer ... X`, else the last X of the text, first as written and then whatever its case. olmes's last
resort for choices, a capital letter alone, is written with backspaces for word boundaries and never matches; it is left out here.
"""

import re
import string

CHOICE = r"\([A-Z]\)"  # the shape of (A)
_PLACES = (
    r"(?i)So the answer is (%s)\.?",
    "(?i)answer is (%s)",
    "(?i)answer:.*?(%s)",
    r"(?i)answer\b.*?(%s)",
    "(%s)",
    "(?i)(%s)",
)
_AROUND = (
    ("$", "$"),
    (r"\(", r"\)"),
    ("(", ")"),
    ("**", "**"),
    ("***", "***"),
    (r"\[", r"\]"),
    ("'", "'"),
    ("`", "`"),
    ('"', '"'),
)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def extract(text: str, pattern: str) -> str:
    """The answer of shape `pattern`, without what is set around it; empty where there is none."""
    found = next((places[-1] for place in _PLACES if (places := re.findall(place.replace("%s", pattern), text))), "")
    for left, right in _AROUND:
        if not re.match(pattern, left):  # what closes a Dyck word is the answer
            found = re.sub(f"^{re.escape(left)}(.*){re.escape(right)}$", r"\1", found).strip()
    return f"({found})" if pattern == CHOICE and len(found) == 1 else found


def is_same(text: str, expected: str, keep_punctuation: bool) -> bool:
    """Equality but for case, and for punctuation unless it is the answer."""
    one, other = text.lower(), expected.lower()
    return one == other if keep_punctuation else one.translate(_PUNCTUATION) == other.translate(_PUNCTUATION)
