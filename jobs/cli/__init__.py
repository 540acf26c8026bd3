"""The `triplane` command: one module a plane, mounted here. Commands import their plane when they run, so `--help` is quick."""

import os
import tempfile
from pathlib import Path

import typer

from jobs.cli import artifacts, cluster, convert, data, demo, publish, submit, submitted_jobs, tokenizer, train
from jobs.cli import eval as evaluation

# Compiled kernels are kept beside the code, or in the home folder, or here: a read-only installation run by a user without one has no other place.
if not any(os.access(folder, os.W_OK) for folder in (Path(__file__).parent, Path.home())):
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"triplane-numba-{os.getuid()}"))

app = typer.Typer(
    name="triplane",
    help="From raw documents to a scored language model: data, train, eval.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(train.app, name="train")
app.add_typer(evaluation.app, name="eval")
app.add_typer(tokenizer.app, name="tokenizer")
app.add_typer(cluster.app, name="cluster")
app.add_typer(submitted_jobs.app, name="jobs")
app.command("submit")(submit.submit)
app.command("demo")(demo.demo)
app.command("publish")(publish.publish)
app.command("convert")(convert.convert)
app.command("verify")(artifacts.verify)
app.command("gc")(artifacts.gc)
