"""The demo's corpus: the text that every Python machine has.

In: the running interpreter's standard library and installed packages, a seed. Out: documents as dicts in dolma's shape,
three sources of a bounded number of bytes: `code` (source files), `prose` (docstrings, READMEs, descriptions, licences)
and `math` (`demo_arithmetic`). One machine gives the same documents every time: files are sorted by name, put in a
seeded order and taken until the budget is spent; packages differ between machines, and so does the sample.
"""

import ast
import importlib.metadata
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from jobs.demo_arithmetic import training_problems

Document = dict[str, Any]

MAX_FILE_BYTES = 200_000  # larger files are tables and generated code
MIN_FILE_BYTES = 400
MAX_PACKAGE_BYTES = 400_000  # of one installed package and one kind: many small voices, not one loud one
SKIPPED_FOLDERS = frozenset({"test", "tests", "idlelib", "__pycache__", "site-packages", "dist-packages"})
OWN_PACKAGE = "triplane"  # its own source would make the corpus change with every edit
TEXT_SUFFIXES = frozenset({".md", ".rst", ".txt"})


@dataclass(frozen=True)
class Budget:
    """How much of each kind to take, in bytes of UTF-8; `math_documents` is a count."""

    library_code_bytes: int
    package_code_bytes: int
    docstring_bytes: int
    text_bytes: int
    math_documents: int


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine. `name` is the same on every machine that has the package: `numpy/numpy/linalg/linalg.py`."""

    name: str
    package: str
    path: Path

    def is_for_docstrings(self, seed: int) -> bool:
        """Whether prose reads this file. Code reads the others, so no text is in both and none leaks into a held-out set."""
        return xxhash.xxh3_64_intdigest(f"half:{seed}:{self.name}") % 2 == 0

    def rank(self, seed: int) -> int:
        return xxhash.xxh3_64_intdigest(f"rank:{seed}:{self.name}")


def documents(source: str, budget: Budget, seed: int) -> Iterator[Document]:
    """The documents of `source` (code, prose or math) in their seeded order."""
    if source == "math":
        yield from math_documents(budget.math_documents, seed)
    elif source == "code":
        yield from code_documents(library_files(), budget.library_code_bytes, seed, MAX_FILE_BYTES * 1000)
        yield from code_documents(package_files(), budget.package_code_bytes, seed, MAX_PACKAGE_BYTES)
    else:
        yield from docstring_documents([*library_files(), *package_files()], budget.docstring_bytes, seed)
        yield from text_documents(budget.text_bytes, seed)


def math_documents(count: int, seed: int) -> Iterator[Document]:
    for number, problem in enumerate(training_problems(count, seed)):
        text = problem.question + problem.answer + "\n"
        yield {"id": f"math/{number:06d}", "text": text, "source": "math", "metadata": {"seed": seed}}


def code_documents(files: Iterable[LocalFile], budget_bytes: int, seed: int, package_bytes: int) -> Iterator[Document]:
    """Source files as they are."""
    taken = _Allowance(budget_bytes, package_bytes)
    for file in sorted(files, key=lambda file: file.rank(seed)):
        if taken.is_full:
            return
        text = None if file.is_for_docstrings(seed) else read_text(file.path)
        if text is not None and taken.admits(file.package, text):
            yield _document("code", file.name, file.package, text)


def docstring_documents(files: Iterable[LocalFile], budget_bytes: int, seed: int) -> Iterator[Document]:
    """The docstrings of one file, joined, as one document."""
    taken = _Allowance(budget_bytes, MAX_PACKAGE_BYTES)
    for file in sorted(files, key=lambda file: file.rank(seed)):
        if taken.is_full:
            return
        source = read_text(file.path) if file.is_for_docstrings(seed) else None
        text = docstrings_of(source) if source is not None else ""
        if len(text) >= MIN_FILE_BYTES and taken.admits(file.package, text):
            yield _document("prose", f"{file.name}#docstrings", file.package, text)


def text_documents(budget_bytes: int, seed: int) -> Iterator[Document]:
    """Package descriptions (the README a package was published with) and the text files it installed."""
    taken = _Allowance(budget_bytes, MAX_PACKAGE_BYTES)
    described = dict(descriptions())
    metadata = [LocalFile(f"{package}/METADATA", package, Path()) for package in described]
    for file in sorted([*metadata, *package_files(TEXT_SUFFIXES)], key=lambda file: file.rank(seed)):
        name, package = file.name, file.package
        if taken.is_full:
            return
        text = described[package] if name == f"{package}/METADATA" else read_text(file.path)
        if text is not None and len(text) >= MIN_FILE_BYTES and taken.admits(package, text):
            yield _document("prose", name, package, text)


def library_files() -> list[LocalFile]:
    """The `.py` files of the standard library, sorted by name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not SKIPPED_FOLDERS.intersection(parts):
            found.append(LocalFile("python/" + "/".join(parts), "python", path))
    return sorted((file for file in found if _has_fit_size(file.path)), key=lambda file: file.name)


def package_files(suffixes: frozenset[str] = frozenset({".py"})) -> list[LocalFile]:
    """The files with one of `suffixes` that installed packages own, sorted by name; tests are left out."""
    found = {}
    for distribution in importlib.metadata.distributions():
        package = distribution.name.lower()
        for entry in (distribution.files or []) if package != OWN_PACKAGE else []:
            inside = not SKIPPED_FOLDERS.intersection(entry.parts) and ".." not in entry.parts
            if entry.suffix in suffixes and inside:
                name = f"{package}/{entry.as_posix()}"
                found[name] = LocalFile(name, package, Path(str(entry.locate())))
    return sorted((file for file in found.values() if _has_fit_size(file.path)), key=lambda file: file.name)


def descriptions() -> Iterator[tuple[str, str]]:
    """(package, long description) of every installed package."""
    for distribution in importlib.metadata.distributions():
        body = distribution.metadata.json.get("description", "")
        if distribution.name.lower() != OWN_PACKAGE:
            yield distribution.name.lower(), str(body).strip() + "\n"


def docstrings_of(source: str) -> str:
    """The docstrings of a module, its classes and functions, cleaned of indentation and joined by blank lines; "" if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files hold invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, holders)]
    return "".join(inspect.cleandoc(text) + "\n\n" for text in found if text and text.strip())


def read_text(path: Path) -> str | None:
    """The file as UTF-8, or None where it cannot be read as such: the demo's corpus has no defects to show."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


class _Allowance:
    """Counts the bytes taken, in all and by package, and refuses what goes beyond."""

    def __init__(self, total_bytes: int, package_bytes: int) -> None:
        self.left_bytes = total_bytes
        self.package_bytes = package_bytes
        self.taken_bytes: dict[str, int] = {}

    @property
    def is_full(self) -> bool:
        return self.left_bytes <= 0

    def admits(self, package: str, text: str) -> bool:
        size = len(text.encode())
        if self.taken_bytes.get(package, 0) + size > self.package_bytes:
            return False
        self.taken_bytes[package] = self.taken_bytes.get(package, 0) + size
        self.left_bytes -= size
        return True


def _document(source: str, name: str, package: str, text: str) -> Document:
    return {"id": name, "text": text, "source": source, "metadata": {"package": package}}


def _has_fit_size(path: Path) -> bool:
    try:
        return MIN_FILE_BYTES <= path.stat().st_size <= MAX_FILE_BYTES
    except OSError:
        return False
