"""The policy: closed manifests and templates pass, and each thing that is forbidden is one finding on its line."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.manifests import check, policy, policy_access, policy_cloud
from jobs.manifests.finding import Finding

HERE = Path(__file__).parent / "policy"
FORBIDDEN = yaml.safe_load((HERE / "forbidden.yaml").read_text())
FORBIDDEN_CLOUD = yaml.safe_load((HERE / "forbidden_cloud.yaml").read_text())


def test_what_is_closed_has_no_findings() -> None:
    assert policy.findings([HERE / "closed.yaml"]) == []
    assert check.findings([HERE / "closed.yaml"]) == []
    assert policy_cloud.findings([HERE / "template.yaml"]) == []


def is_the_one_finding(
    find: Callable[[Sequence[Path]], list[Finding]], name: str, mistake: dict[str, Any], folder: Path
) -> None:
    text = (HERE / name).read_text()
    assert text.count(mistake["old"]) == 1
    path = folder / name
    path.write_text(text.replace(mistake["old"], mistake["new"]))
    line = text[: text.index(mistake["old"])].count("\n") + 1
    lead = mistake["new"][: len(mistake["new"]) - len(mistake["new"].lstrip("\n"))].count("\n")
    (finding,) = find([path])
    assert (finding.file, finding.line) == (str(path), mistake.get("line", line + lead))
    assert mistake["says"] in finding.message


@pytest.mark.parametrize("mistake", FORBIDDEN, ids=lambda one: one["new"].strip()[:40])
def test_what_a_manifest_must_not_do(mistake: dict[str, Any], tmp_path: Path) -> None:
    is_the_one_finding(policy.findings, "closed.yaml", mistake, tmp_path)


@pytest.mark.parametrize("mistake", FORBIDDEN_CLOUD, ids=lambda one: one["new"].strip()[:40])
def test_what_a_template_must_not_do(mistake: dict[str, Any], tmp_path: Path) -> None:
    is_the_one_finding(policy_cloud.findings, "template.yaml", mistake, tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("WANDB_API_KEY", "x", True),
        ("HF_TOKEN", "x", True),
        ("AWS_SECRET_ACCESS_KEY", "x", True),
        ("dbPassword", "x", True),
        ("HF_TOKEN", "", False),
        ("HF_TOKEN", None, False),
        ("RAY_AUTH_TOKEN_PATH", "/x", False),
        ("RAY_AUTH_MODE", "token", False),
        ("TOKENIZERS_PARALLELISM", "false", False),
        ("tokens", "5", False),
        ("MONKEY", "x", False),
        ("note", "-----BEGIN RSA PRIVATE KEY-----", True),
    ],
)
def test_what_is_taken_for_a_secret(name: str, value: str | None, is_secret: bool) -> None:
    assert policy_access.is_secret(name, value) is is_secret
