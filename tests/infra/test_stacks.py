"""What is done about a stack that is not at rest, and what is said of one that failed."""

from pathlib import Path
from typing import Any

import pytest

from infra import main, stacks
from infra.settings import Settings
from tests.infra.fakes.world import REGION


def stack(status: str) -> dict[str, Any]:
    return {"StackName": "triplane-dev-cluster", "StackId": "arn:x", "StackStatus": status}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("UPDATE_IN_PROGRESS", 3),
        ("DELETE_IN_PROGRESS", 3),
        ("ROLLBACK_COMPLETE", 1),
        ("CREATE_COMPLETE", 0),
        ("UPDATE_ROLLBACK_COMPLETE", 0),
    ],
)
def test_a_stack_that_somebody_else_changes_is_left_to_them(status: str, code: int) -> None:
    assert main._carried_out(lambda: stacks.require_at_rest(stack(status))) == code


def test_a_stack_that_fails_says_which_resource_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """AWS rolls back and tells the reason in the oldest failed event; moto never fails, so its answers are written here."""
    events = [
        {
            "LogicalResourceId": "GpuNodes",
            "ResourceType": "AWS::EKS::Nodegroup",
            "ResourceStatus": "CREATE_FAILED",
            "ResourceStatusReason": "Resource creation cancelled",
        },
        {
            "LogicalResourceId": "Cluster",
            "ResourceType": "AWS::EKS::Cluster",
            "ResourceStatus": "CREATE_FAILED",
            "ResourceStatusReason": "no capacity for the control plane",
        },
    ]
    answers = {
        "describe-stacks": {"Stacks": [stack("ROLLBACK_COMPLETE")]},
        "describe-stack-events": {"StackEvents": events},
    }

    def run(arguments: list[str], **_: Any) -> Any:
        return answers.get(arguments[2], {})

    monkeypatch.setattr(stacks, "run", run)
    monkeypatch.setattr(stacks, "parsed", lambda answer: answer)
    monkeypatch.setattr(stacks, "describe", lambda settings, name: stack("ROLLBACK_COMPLETE"))
    proposed = stacks.ChangeSet("triplane-dev-cluster", "arn:y", True, ())
    settings = Settings("dev", REGION, tmp_path)
    assert main._carried_out(lambda: stacks.execute(settings, proposed) and None) == 1
    said = capsys.readouterr().err
    assert "is ROLLBACK_COMPLETE: Cluster (AWS::EKS::Cluster): no capacity for the control plane" in said
