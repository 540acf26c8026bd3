"""The watcher's composition root: `python -m jobs.watch RUN --suite S --root URL`, what `triplane eval watch` and a scheduled job both do.

A run on storage -> evaluations of its checkpoints and a report of them.
"""

import sys

if __name__ == "__main__":
    from jobs.cli import app

    app(["eval", "watch", *sys.argv[1:]])
