"""The rules of docs/adr kept by a test: who may import whom, how long a function or a file may be, what a data path may not call.

The checks are functions of (path, source), so that the second half of this file can show each of them failing.
"""

import ast
import statistics
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLANES = ("dataplane", "trainplane", "evalplane")
PACKAGES = ("triplane", *PLANES, "jobs")
PLAIN_STEP = (
    "triplane/lm/model.py",
    "trainplane/loss.py",
    "trainplane/schedule.py",
    "trainplane/optim.py",
    "trainplane/step.py",
)
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 80
P95_FUNCTION_LINES = 45
MEDIAN_FUNCTION_LINES = 10
STANDARD_LIBRARY = frozenset(__import__("sys").stdlib_module_names)


def sources(*folders: str) -> list[tuple[str, str]]:
    """(path, text) of the packages' modules, or of the folders named."""
    paths = sorted(path for folder in folders or PACKAGES for path in (ROOT / folder).rglob("*.py"))
    return [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths]


def code() -> list[tuple[str, str]]:
    """Everything that has to keep to the style: the packages and infra/, which is none."""
    return sources(*PACKAGES, "infra")


def imported_modules(source: str) -> Iterator[str]:
    """Every module imported anywhere in the file, lazily or under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def import_violations(path: str, source: str) -> list[str]:
    found = []
    package = path.split("/")[0]
    for module in imported_modules(source):
        top = module.split(".")[0]
        if top == "infra" or (top == "jobs" and package != "jobs"):
            found.append(f"{path} imports {module}: nobody imports jobs or infra")
        if package == "triplane" and top in PLANES:
            found.append(f"{path} imports {module}: triplane imports no plane")
        if package in PLANES and top in PLANES and top != package:
            found.append(f"{path} imports {module}: planes meet on storage")
        if top == "ray" and not (path.endswith("/cluster.py") or package == "jobs"):
            found.append(f"{path} imports {module}: ray only in cluster.py and jobs")
        if top == "pyspark" and not (path == "dataplane/spark.py" or package == "jobs"):
            found.append(f"{path} imports {module}: pyspark only in dataplane/spark.py and jobs")
        if top == "torch" and not path.startswith(("triplane/lm/", "trainplane/", "evalplane/", "dataplane/taggers/")):
            found.append(f"{path} imports {module}: torch only where a model runs")
        if path in PLAIN_STEP and top not in STANDARD_LIBRARY | {"torch", "numpy"}:
            found.append(f"{path} imports {module}: the train step is torch, numpy and the standard library")
    return found


def banned_calls(path: str, source: str) -> list[str]:
    """Pickle, eval, exec and shell strings."""
    found = [
        f"{path} imports {module}: no pickle on artifacts and inputs"
        for module in imported_modules(source)
        if module.split(".")[0] in {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
    ]
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec"}:
            found.append(f"{path}:{node.lineno} calls {node.func.id}")
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in {
            "torch.load",
            "os.system",
            "np.load",
            "numpy.load",
        }:
            found.append(f"{path}:{node.lineno} calls {ast.unparse(node.func)}")
        if any(keyword.arg == "shell" and not _is_false(keyword.value) for keyword in node.keywords):
            found.append(f"{path}:{node.lineno} passes shell=")
    return found


def _is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def functions(source: str) -> Iterator[tuple[str, int]]:
    """(name, lines) of every function, its decorators not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def unannotated(path: str, source: str) -> list[str]:
    """Parameters and results of public functions that have no annotation."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        missing = [a.arg for a in arguments if a.annotation is None and a.arg not in {"self", "cls"}]
        if node.returns is None and not _is_numba_kernel(node):
            missing.append("return")
        if missing and not _is_numba_kernel(node):
            found.append(f"{path}:{node.lineno} {node.name} lacks annotations for {', '.join(missing)}")
    return found


def _is_numba_kernel(node: ast.FunctionDef) -> bool:
    return any("njit" in ast.unparse(decorator) for decorator in node.decorator_list)


def inheritance_violations(all_sources: list[tuple[str, str]]) -> list[str]:
    """Classes whose in-repository ancestors have in-repository ancestors themselves."""
    bases: dict[str, list[str]] = {}
    for _, source in all_sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base).split(".")[-1] for base in node.bases]
    return [
        f"{name} inherits {base}, which inherits {grand}"
        for name, own in bases.items()
        for base in own
        for grand in bases.get(base, [])
        if grand in bases
    ]


def test_imports_follow_the_design() -> None:
    assert [line for path, source in sources() for line in import_violations(path, source)] == []


def test_no_pickle_eval_exec_or_shell() -> None:
    assert [line for path, source in code() for line in banned_calls(path, source)] == []


def test_infra_is_looked_at_and_is_no_package() -> None:
    looked_at = {path for path, _ in code()} - {path for path, _ in sources()}
    assert {"infra/stages.py", "infra/stacks.py"} <= looked_at and all(path.startswith("infra/") for path in looked_at)
    assert "infra" not in PACKAGES and not (ROOT / "infra" / "__init__.py").exists()


def test_package_inits_import_nothing() -> None:
    inits = [(p, s) for p, s in sources() if p.endswith("__init__.py") and p != "jobs/cli/__init__.py"]
    assert [path for path, source in inits if list(imported_modules(source))] == []


def test_the_wheel_holds_every_package_and_its_data() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.rpartition("/")[0].replace("/", ".") for path, _ in sources()}
    assert set(setuptools["packages"]) == folders
    data = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in {".yaml", ".xz"}}
    globs = [(package, glob) for package, found in setuptools["package-data"].items() for glob in found]
    assert {path for package, glob in globs for path in (ROOT / package).glob(glob)} == data


def test_files_are_short() -> None:
    assert [(path, n) for path, source in code() if (n := len(source.splitlines())) > MAX_FILE_LINES] == []


def test_functions_are_short() -> None:
    lengths = [(n, f"{path}:{name}") for path, source in code() for name, n in functions(source)]
    counts = sorted(n for n, _ in lengths)
    assert [where for n, where in lengths if n > MAX_FUNCTION_LINES] == []
    assert counts[int(0.95 * len(counts))] <= P95_FUNCTION_LINES
    assert statistics.median(counts) <= MEDIAN_FUNCTION_LINES


def test_public_functions_are_annotated() -> None:
    assert [line for path, source in code() for line in unannotated(path, source)] == []


def test_no_deep_inheritance_and_no_grab_bag() -> None:
    assert inheritance_violations(code()) == []
    assert [path for path, _ in code() if path.endswith(("utils.py", "helpers.py", "misc.py"))] == []


def test_every_module_says_what_it_is() -> None:
    assert [p for p, s in code() if s.strip() and not ast.get_docstring(ast.parse(s))] == []


@pytest.mark.parametrize(
    ("path", "source", "words"),
    [
        ("triplane/x.py", "from dataplane import build", "triplane imports no plane"),
        ("trainplane/x.py", "def f():\n    import evalplane.task", "planes meet on storage"),
        ("evalplane/x.py", "import jobs.demo", "nobody imports jobs"),
        ("evalplane/x.py", "import ray", "ray only in cluster.py"),
        ("dataplane/selection.py", "from pyspark.sql import functions", "pyspark only in"),
        ("triplane/storage.py", "import torch", "torch only where"),
        ("trainplane/step.py", "import pyarrow", "the train step is torch"),
    ],
)
def test_import_check_fails_on_a_violation(path: str, source: str, words: str) -> None:
    assert any(words in line for line in import_violations(path, source))


@pytest.mark.parametrize(
    "source",
    ["import pickle", "eval('1')", "torch.load('x')", "subprocess.run('ls', shell=True)", "def f():\n    exec('1')"],
)
def test_banned_calls_are_found(source: str) -> None:
    assert len(banned_calls("x.py", source)) == 1


def test_the_other_checks_fail_on_violations() -> None:
    assert list(functions("def f():\n" + "    x = 1\n" * 90)) == [("f", 91)]
    assert unannotated("x.py", "def f(a): ...") == ["x.py:1 f lacks annotations for a, return"]
    assert inheritance_violations([("x.py", "class A: ...\nclass B(A): ...\nclass C(B): ...")]) == [
        "C inherits B, which inherits A"
    ]
