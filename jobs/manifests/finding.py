"""One mistake found before anything is sent: file, line, sentence."""

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Finding:
    """`line` counts from 1; 0 where the mistake is of the whole file, or of what is no file (a root, a target)."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"
