"""fastText's supervised training, repeatable.

Lines `__label__x words` -> a `.bin` model, the same bytes for the same lines and settings. Source: facebookresearch/fastText 0.9.2
(`fasttext-numpy2-wheel`), `src/{fasttext,densematrix}.cc`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triplane.errors import TriplaneError, UsageError

PROGRAM = """
import json, sys, fasttext
fasttext.train_supervised(**json.loads(sys.argv[1])).save_model(sys.argv[2])
"""
# The library adds to an output matrix that it never cleared: on a used heap training meets NaN, or differs from run to run. A fresh
# process whose allocator fills what it hands out with (255 ^ 255) = 0, and keeps no uncleared cache, trains from zeros. (glibc only; elsewhere the
# library's own check for NaN remains.)
CLEARED_MEMORY = {"MALLOC_PERTURB_": "255", "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0"}


def train(lines: Iterable[str], settings: dict[str, Any], folder: Path) -> Path:
    """Trains on `__label__x words` lines in a process of its own, on one thread -> `folder`/model.bin.

    settings: the library's own names (dim, wordNgrams, bucket, epoch, lr, minCount, ...). Raises UsageError without the library,
    TriplaneError when training fails.
    """
    text, path = folder / "lines.txt", folder / "model.bin"
    with text.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(lines)
    arguments = {**settings, "input": str(text), "thread": 1, "verbose": 0}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(arguments), str(path)],
        env=os.environ | CLEARED_MEMORY,
        capture_output=True,
        text=True,
    )
    last = (done.stderr.strip().splitlines() or [""])[-1]
    if "No module named 'fasttext'" in last:
        raise UsageError("fastText is not installed: install triplane[data]")
    if done.returncode:
        hint = "lower the learning rate" if "NaN" in last else "check the training settings and the memory there is"
        raise TriplaneError(f"fastText's training ended with {done.returncode} ({last}): {hint}")
    return path
