"""The images offline: Dockerfiles linted, packages locked by hash, the entrypoint run with recorders in the place of Java and Spark.

No image was ever built here: there is no Docker engine.
"""

import hashlib
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "infra" / "images"
DOCKERFILES = sorted(IMAGES.glob("*.Dockerfile"))
LOCKS = sorted(IMAGES.glob("*.lock"))
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}$")


def hadolint(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([Path(sys.executable).parent / "hadolint", path], capture_output=True, text=True)


def instructions(text: str) -> list[str]:
    """Dockerfile instructions, continued lines joined, comments left out."""
    joined = re.sub(r"\\\n", " ", "\n".join(line for line in text.splitlines() if not line.startswith("#")))
    return [line for line in joined.splitlines() if line.strip()]


def image_problems(text: str) -> list[str]:
    """What hadolint does not ask for: a base without a default tag, no root, packages by hash."""
    found, lines = [], instructions(text)
    if bases := [line for line in lines if line.startswith("FROM") and not line.startswith("FROM ${BASE}")]:
        found.append(f"a base of its own: {bases[0]}")
    if "ARG BASE" not in lines:
        found.append("BASE has a default")
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    if not users or users[-1].split(":")[0] in {"0", "root"}:
        found.append("runs as root")
    for install in re.findall(r"pip install [^&\n]*", "\n".join(lines)):
        if "--require-hashes" not in install and "--no-index --no-deps" not in install:
            found.append(f"packages without hashes: {install.strip()}")
    return found


def locked(text: str) -> dict[str, tuple[str, list[str]]]:
    """Package -> (version, its hash lines). ValueError for a requirement of another form."""
    found: dict[str, tuple[str, list[str]]] = {}
    for block in re.split(r"\n(?=\S)", text.strip()):
        first, *hashes = [line.strip().removesuffix(" \\") for line in block.splitlines()]
        name, version = first.split("==")
        found[name.partition("[")[0]] = (version, hashes)
    return found


def lock_problems(text: str) -> list[str]:
    bad = [name for name, (_, hashes) in locked(text).items() if not hashes or not all(map(HASH.match, hashes))]
    return [f"{name} has no sha256" for name in bad]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.stem)
def test_dockerfiles_are_clean(path: Path) -> None:
    done = hadolint(path)
    assert (done.stdout, done.returncode) == ("", 0)
    assert image_problems(path.read_text()) == []


def test_the_checks_of_dockerfiles_find_faults(tmp_path: Path) -> None:
    bad = tmp_path / "bad.Dockerfile"
    bad.write_text("ARG BASE=python:3.11\nFROM python:latest\nRUN sudo pip install six\nUSER root\n")
    linted = hadolint(bad)
    assert linted.returncode == 1
    assert {"DL3007", "DL3004", "DL3002"} <= set(re.findall(r"DL\d+", linted.stdout))
    assert image_problems(bad.read_text()) == [
        "a base of its own: FROM python:latest",
        "BASE has a default",
        "runs as root",
        "packages without hashes: pip install six",
    ]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_is_locked_by_hash_at_the_version_that_is_tested(path: Path) -> None:
    text = path.read_text()
    assert lock_problems(text) == []
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    found = {name.lower().replace("_", "-"): version for name, (version, _) in locked(text).items()}
    assert {name: version for name, version in found.items() if tested.get(name, version) != version} == {}
    untested = set(found) - set(tested)  # what the tests' CPU build of torch does not bring
    assert {name for name in untested if not name.startswith(("nvidia-", "cuda-"))} <= {"triton", "setuptools"}


@pytest.mark.parametrize(
    ("name", "extras"), [("spark", ("data", "s3", "gcs")), ("ray", ("train", "eval", "s3", "gcs"))]
)
def test_a_lock_holds_what_its_plane_asks_for(name: str, extras: tuple[str, ...]) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = project["dependencies"] + [one for extra in extras for one in project["optional-dependencies"][extra]]
    names = {re.split(r"[\[<>=]", one)[0].lower().replace("_", "-") for one in asked}
    assert names - {one.lower().replace("_", "-") for one in locked((IMAGES / f"{name}.lock").read_text())} == set()


def test_a_requirement_without_a_hash_is_found() -> None:
    good = f"six==1.17.0 \\\n    --hash=sha256:{'0' * 64}\n"
    assert lock_problems(good) == []
    assert lock_problems(good + "attrs==25.1.0\n") == ["attrs has no sha256"]
    assert lock_problems(good.replace("sha256:0", "sha256:")) == ["six has no sha256"]


def wheel(folder: Path) -> Path:
    """A package of one empty module."""
    path = folder / "tampered-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tampered.py", "")
        file.writestr("tampered-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tampered\nVersion: 1.0\n")
        file.writestr("tampered-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tampered-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize("tampered", [False, True])
def test_a_wheel_of_other_bytes_is_not_installed(tmp_path: Path, tampered: bool) -> None:
    """Fault row 27, by the very flags of the Dockerfiles."""
    path = wheel(tmp_path)
    lock = tmp_path / "one.lock"
    lock.write_text(f"tampered==1.0 --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n")
    if tampered:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("more.py", "print('not what was locked')")
    target = tmp_path / "target"
    flags = ["--require-hashes", "--only-binary=:all:", "--no-index"]
    command = [sys.executable, "-m", "pip", "install", *flags, "--find-links", tmp_path, "--target", target, "-r", lock]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, (target / "tampered.py").exists()) == ((1, False) if tampered else (0, True))
    assert ("DO NOT MATCH THE HASHES" in done.stderr) is tampered


def recorder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def entrypoint(folder: Path, *arguments: str, **variables: str) -> list[str]:
    """The arguments that the entrypoint gives to Java, or to spark-submit."""
    for tool in ("spark/bin/spark-submit", "java/bin/java"):
        recorder(folder / tool)
    environment = {
        "PATH": os.environ["PATH"],
        "SPARK_HOME": f"{folder}/spark",
        "JAVA_HOME": f"{folder}/java",
        **variables,
    }
    done = subprocess.run(
        [IMAGES / "spark-entrypoint.sh", *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_a_driver_is_spark_submit(tmp_path: Path) -> None:
    given = ["--class", "org.apache.spark.deploy.PythonRunner", "local:///a b.py", "recipe.yaml"]
    assert entrypoint(tmp_path, "driver", *given, SPARK_DRIVER_BIND_ADDRESS="10.0.0.7") == [
        "--conf",
        "spark.driver.bindAddress=10.0.0.7",
        "--deploy-mode",
        "client",
        *given,
    ]


def test_an_executor_gets_its_options_in_order(tmp_path: Path) -> None:
    told = {
        "SPARK_EXECUTOR_MEMORY": "2g",
        "SPARK_DRIVER_URL": "spark://CoarseGrainedScheduler@driver:7078",
        "SPARK_EXECUTOR_ID": "3",
        "SPARK_EXECUTOR_CORES": "1",
        "SPARK_APPLICATION_ID": "app",
        "SPARK_EXECUTOR_POD_IP": "10.0.0.8",
        "SPARK_RESOURCE_PROFILE_ID": "0",
        "SPARK_EXECUTOR_POD_NAME": "exec-3",
    }
    options = {f"SPARK_JAVA_OPT_{i}": f"-Dn={i} and a space\nand a line" for i in (10, 2, 0)}
    found = entrypoint(tmp_path, "executor", **told, **options)
    assert found[:3] == [options[f"SPARK_JAVA_OPT_{i}"] for i in (0, 2, 10)]
    assert found[3:7] == ["-Xms2g", "-Xmx2g", "-cp", f"{tmp_path}/spark/conf:{tmp_path}/spark/jars/*"]
    assert found[7] == "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"
    assert dict(zip(found[8::2], found[9::2], strict=True)) == {
        "--driver-url": told["SPARK_DRIVER_URL"],
        "--executor-id": "3",
        "--cores": "1",
        "--app-id": "app",
        "--hostname": "10.0.0.8",
        "--resourceProfileId": "0",
        "--podName": "exec-3",
    }


def test_an_executor_that_is_told_nothing_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        entrypoint(tmp_path, "executor")


def executor(folder: Path, on_notice: str) -> subprocess.Popen[str]:
    """A process that has an executor's class among its arguments, and does this when told that its node goes away."""
    script = folder / "executor.sh"
    script.write_text(f'trap "{on_notice}" PWR\necho ready\nwhile true; do sleep 0.05; done\n')
    command = ["bash", script, "org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("on_notice", "code", "said"), [("exit 7", 7, ""), (":", None, "is still at work after 1 s")])
def test_an_executor_is_told_that_its_node_goes_away(
    tmp_path: Path, on_notice: str, code: int | None, said: str
) -> None:
    """And waited for, but not for ever."""
    with executor(tmp_path, on_notice) as process:
        try:
            done = subprocess.run([IMAGES / "spark-decommission.sh", "1"], capture_output=True, text=True, check=True)
            assert said in done.stderr
            if code is None:
                assert process.poll() is None
            else:
                assert process.wait(5) == code
        finally:
            process.kill()


def test_a_spark_image_holds_what_the_operator_runs() -> None:
    copied = [line for line in instructions((IMAGES / "spark.Dockerfile").read_text()) if line.startswith("COPY infra")]
    assert [line.split()[-1] for line in copied] == ["/locks/", "/opt/entrypoint.sh", "/opt/decom.sh"]
