"""`triplane cluster`: a Spark, a Ray and an S3 server on this machine, to run the same commands on as on a real one.

A folder -> processes that stay until `down`; what to export on stdout. Source: `jobs.local_cluster.cluster`.
"""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli.common import emit_json, reports_errors

if TYPE_CHECKING:
    from jobs.local_cluster.record import Record

app = typer.Typer(help="A cluster on this machine: Spark, Ray and S3 on loopback.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option(help="Of the cluster: its record, secrets and logs.")]
Json = Annotated[bool, typer.Option("--json", help="Report as one JSON document on stdout.")]
HERE = Path("cluster")


@app.command()
@reports_errors
def up(
    workers: Annotated[int, typer.Option(help="Of Spark, and as many of Ray; they share the machine's cores.")] = 2,
    folder: Folder = HERE,
    s3: Annotated[str | None, typer.Option(help="URL of an S3 server to use, instead of one of our own.")] = None,
    json: Json = False,
) -> None:
    """Starts a Spark master and workers, a Ray head and workers, and an S3 server; returns when all are ready."""
    from jobs.local_cluster import cluster

    standing, was_up = cluster.up(folder, workers, s3)
    if json:
        emit_json(_described(folder, standing, []))
        return
    print("it is up" if was_up else "up", *_lines(folder, standing, []), sep="\n")


@app.command()
@reports_errors
def down(folder: Folder = HERE) -> None:
    """Ends every process of the cluster, and no other. Logs stay; what was stored in its S3 server is gone."""
    from jobs.local_cluster import cluster

    ended = cluster.down(folder)
    print(f"no cluster in {folder}" if ended is None else f"down: {ended} processes ended; logs stay in {folder}/logs")


@app.command()
@reports_errors
def status(folder: Folder = HERE, json: Json = False) -> None:
    """Says what runs and where it listens; exits with 1 if the cluster is not whole."""
    from jobs.local_cluster import cluster

    standing = _require(folder)
    dead = cluster.dead(standing)
    if json:
        emit_json(_described(folder, standing, dead))
    else:
        print(standing.state, *_lines(folder, standing, dead), sep="\n")
    if dead or standing.state != "up":
        raise typer.Exit(1)


@app.command()
@reports_errors
def env(folder: Folder = HERE) -> None:
    """Prints what a shell exports to use the cluster: `eval "$(triplane cluster env)"`. Paths to its secrets, never the secrets."""
    from jobs.local_cluster import services

    standing = _require(folder)
    for name, value in sorted(standing.environment.items()):
        print(f"export {name}={shlex.quote(value)}")
    if any(process.name == "s3" for process in standing.processes):
        for name, value in services.ANY_KEYS.items():
            print(f'export {name}="${{{name}:-{value}}}"')


def _require(folder: Path) -> "Record":
    from jobs.local_cluster import record
    from triplane.errors import NotFound

    standing = record.read(folder)
    if standing is None:
        raise NotFound(f"no cluster in {folder}: `triplane cluster up` starts one, --folder names another")
    return standing


def _described(folder: Path, standing: "Record", dead: list[str]) -> dict[str, Any]:
    from jobs.local_cluster import services

    return {
        "folder": str(folder.absolute()),
        "state": standing.state,
        "spark": standing.spark,
        "spark_page": standing.spark_page,
        "ray": standing.ray,
        "s3": standing.s3,
        "root": f"s3://{services.BUCKET}/root" if any(p.name == "s3" for p in standing.processes) else None,
        "workers": standing.workers,
        "cores_per_worker": standing.cores_per_worker,
        "processes": [
            {"name": p.name, "pid": p.pid, "running": p.name not in dead, "log": p.log} for p in standing.processes
        ],
        "environment": standing.environment,
    }


def _lines(folder: Path, standing: "Record", dead: list[str]) -> list[str]:
    said = _described(folder, standing, dead)
    stored = f"  root {said['root']}, in memory: gone with `down`" if said["root"] else "  not ours"
    size = f"{_number(standing.workers, 'worker')} of {_number(standing.cores_per_worker, 'core')}"
    return [
        f"  spark  {standing.spark}  {size}, page {standing.spark_page}",
        f"  ray    {standing.ray}  {size}, token in {standing.environment['RAY_AUTH_TOKEN_PATH']}",
        f"  s3     {standing.s3}{stored}",
        *(
            f"  {p['name']:<16} pid {p['pid']:<8} {'runs' if p['running'] else 'ENDED'}  {p['log']}"
            for p in said["processes"]
        ),
        f'to use it: eval "$(triplane cluster env --folder {shlex.quote(str(folder))})"',
    ]


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
