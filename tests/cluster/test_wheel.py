"""The built wheel, installed outside the checkout, used by a user who is not root and cannot write into the installation."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from jobs.submission import package

ROOT = Path(__file__).parents[2]
NOBODY = 65534

RECIPE = """
name: wheel
seed: 1
tokenizer: {tokenizer}
sequence_length_tokens: 16
shard_tokens: 1000000
held_out_fraction: 0.0
sources:
  - name: notes
    documents: {documents}
    format: dolma
    licence: CC0-1.0
    taggers: [lengths, text_hash, ngram_repetition]
    rules: []
    exact_dedup: true
mixes:
  - name: wheel-mix
    tokens: 64
    shares: {{notes: 1.0}}
"""


def unprivileged(command: list[str]) -> list[str]:
    """The command as user `nobody`, who may read everything (the interpreter may live under /root) and write nothing of ours."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("running as root without setpriv: no way to become another user")
    capability = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=+all"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability, *command]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds our wheel and borrows only the third-party packages of the running one."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder / "dist"), str(ROOT)], check=True)
    (wheel,) = (folder / "dist").glob("triplane-*.whl")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # A path named in a .pth file is searched, but its own .pth files are not read: the editable checkout stays invisible.
    (Path(site) / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for path in (folder, *folder.parents):
        if path.stat().st_uid == os.geteuid() and len(path.parts) > 2:
            path.chmod(0o755)
    return folder / "env" / "bin"


def run(installed: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "NUMBA_CACHE_DIR", "VIRTUAL_ENV"}
    }
    environment["HOME"] = str(home)
    environment["PATH"] = f"{installed}:{environment['PATH']}"
    return subprocess.run(
        unprivileged([str(installed / "python"), str(installed / "triplane"), *arguments]),
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.geteuid() and len(parent.parts) > 2:  # never /tmp itself
            parent.chmod(0o755)
    return folder


def test_wheel_is_what_runs_and_it_cannot_be_written(installed: Path, home: Path) -> None:
    probe = "import os, pathlib, triplane; p = pathlib.Path(triplane.__file__).parent; print(p); print(os.access(p, os.W_OK))"
    done = subprocess.run(
        unprivileged([str(installed / "python"), "-c", probe]), cwd=home, capture_output=True, text=True, check=True
    )
    where, writable = done.stdout.split()
    assert Path(where).is_relative_to(installed.parent)
    if os.geteuid() == 0:
        assert writable == "False"


def test_build_from_the_wheel(installed: Path, home: Path) -> None:
    documents = home / "documents"
    documents.mkdir()
    lines = [
        json.dumps({"id": f"n{i}", "text": f"note {i} about water and stone number {i}", "source": "notes"})
        for i in range(40)
    ]
    (documents / "part-00000.jsonl").write_text("\n".join(lines) + "\n")
    trained = run(
        installed,
        home,
        "tokenizer",
        "train",
        "--input",
        str(documents),
        "--vocab-size",
        "300",
        "--output",
        str(home / "tokenizer.json"),
    )
    assert trained.returncode == 0, trained.stderr
    recipe = home / "wheel.yaml"
    recipe.write_text(RECIPE.format(tokenizer=home / "tokenizer.json", documents=documents))
    built = run(installed, home, "data", "build", str(recipe), "--root", str(home / "root"))
    assert built.returncode == 0, built.stderr
    funnel = run(installed, home, "data", "funnel", "--root", str(home / "root"), "--json")
    assert funnel.returncode == 0, funnel.stderr
    assert json.loads(funnel.stdout)


def test_what_is_sent_with_a_job_is_this_wheel(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what git has: a build leaves files of its own in the checkout. And pip takes it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = set(listed.stdout.splitlines())
    (theirs,) = (installed.parents[1] / "dist").glob("triplane-*.whl")
    sent = package.wheel()
    assert sent.name == theirs.name
    contents = [{name: data for name, data in unpacked(wheel).items() if name in tracked} for wheel in (sent, theirs)]
    assert contents[0] == contents[1] and "jobs/recipes/runs/olmo2_7b_stage1.yaml" in contents[0]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "target"), str(sent)], check=True)
    assert (tmp_path / "target" / "jobs" / "train.py").read_bytes() == contents[0]["jobs/train.py"]


def unpacked(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
