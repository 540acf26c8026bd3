"""What each stage of a build read and took: bytes, CPU seconds of its tasks, MB/s per core, core-hours.

Bars of a build's `Progress` -> one `Stage` each. Bytes are those that the stage reads: stored documents (ingest, tag, tokenize), attributes
(select), scattered tokens (shuffle); only of the shards that this run did. CPU seconds are measured in the tasks, in the workers' Python
processes; the driver and Spark's JVM are not in them. They are reported and logged, and in no artifact.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from triplane.progress import Bar, amount


@dataclass(frozen=True)
class Stage:
    """One stage that ran; a stage that was committed before has none. seconds: wall time."""

    name: str
    bytes: int
    cpu_seconds: float
    seconds: float

    @property
    def mb_per_s_per_core(self) -> float:
        """MB of 10^6 bytes; 0 when it took no time that was measured."""
        return self.bytes / 1e6 / self.cpu_seconds if self.cpu_seconds > 0 else 0.0

    @property
    def core_hours(self) -> float:
        return self.cpu_seconds / 3600

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.bytes,
            "cpu_seconds": round(self.cpu_seconds, 3),
            "seconds": round(self.seconds, 3),
            "mb_per_s_per_core": round(self.mb_per_s_per_core, 2),
            "core_hours": round(self.core_hours, 6),
        }


def of_bars(bars: Iterable[Bar]) -> tuple[Stage, ...]:
    """The bars that count bytes, in the order in which they ended."""
    return tuple(Stage(bar.name, int(bar.done), bar.cpu_seconds, bar.seconds) for bar in bars if bar.unit == "bytes")


def table(stages: Sequence[Stage]) -> str:
    """As aligned text; "" when nothing ran."""
    if not stages:
        return ""
    total = sum(stage.cpu_seconds for stage in stages)
    lines = [("stage", "read", "CPU s", "MB/s a core", "core-hours")]
    lines += [
        (
            stage.name,
            f"{amount(stage.bytes)}B",
            f"{stage.cpu_seconds:.1f}",
            f"{stage.mb_per_s_per_core:.1f}",
            f"{stage.core_hours:.4f}",
        )
        for stage in stages
    ]
    lines.append(("all", "", f"{total:.1f}", "", f"{total / 3600:.4f}"))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
