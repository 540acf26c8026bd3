"""What is known of a cluster while it stands: `cluster.json` in its folder, written before the first process starts and after each.

The folder -> `Record`, and back by a file that is whole or as it was. It holds no secret: those are in files of their own, mode 0600.
"""

import os
from pathlib import Path
from typing import Literal

import pydantic

from jobs.local_cluster.processes import Process
from triplane.errors import Refused
from triplane.recipe import Strict

NAME = "cluster.json"


class Record(Strict):
    """A cluster: who marks its processes, where it listens, what to export to use it. `alias` is a short path to the folder."""

    id: str
    boot: str  # of the machine: pids and start times mean nothing in the next one
    state: Literal["starting", "up"]
    starter: Process
    workers: int
    cores_per_worker: int
    alias: str
    spark: str
    spark_page: str
    ray: str
    ray_gcs: str
    s3: str
    environment: dict[str, str]
    processes: tuple[Process, ...] = ()


def boot() -> str:
    """What names this start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read(folder: Path) -> Record | None:
    """The folder's cluster; None if there is none. Raises Refused for a file that is no such record."""
    path = folder / NAME
    try:
        return Record.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise Refused(
            f"{path} is no record of a cluster ({where}: {first['msg']}): remove it if nothing of it runs"
        ) from None


def create(folder: Path, record: Record) -> bool:
    """Writes the first record; False if another stands there."""
    try:
        with (folder / NAME).open("x") as stream:
            stream.write(record.model_dump_json(indent=2))
    except FileExistsError:
        return False
    return True


def write(folder: Path, record: Record) -> None:
    """Puts a record in the place of the one before."""
    temporary = folder / f"{NAME}.{os.getpid()}"
    temporary.write_text(record.model_dump_json(indent=2))
    temporary.replace(folder / NAME)
