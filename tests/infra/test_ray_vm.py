"""`ray up` without Kubernetes: the YAML against Ray's own schema, and what that schema does not ask for."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "infra" / "ray-vm.yaml").read_text())
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


def policy(config: dict[str, Any]) -> list[str]:
    """Tokens on, the dashboard on loopback, no address or port for everybody, disks encrypted."""
    found = []
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        if "ray start" in command and "RAY_AUTH_MODE=token " not in command:
            found.append("Ray starts without a token")
        if "--head" in command and "--dashboard-host=127.0.0.1" not in command:
            found.append("the dashboard is open")
    for name, kind in config["available_node_types"].items():
        node = kind["node_config"]
        if not node.get("SecurityGroupIds"):
            found.append(f"{name}: Ray's own security group opens port 22 to everybody")
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            found.append(f"{name}: instance metadata without tokens")
        if not all(disk["Ebs"].get("Encrypted") for disk in node["BlockDeviceMappings"]):
            found.append(f"{name}: a disk is not encrypted")
    if not config["provider"].get("use_internal_ips"):
        found.append("nodes have public addresses")
    return found


def unpinned(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [one for inner in value.values() for one in unpinned(inner)]
    if isinstance(value, list):
        return [one for inner in value for one in unpinned(inner)]
    return [value] if isinstance(value, str) and value.startswith("unpinned: ") else []


def test_ray_accepts_it() -> None:
    jsonschema.validate(CONFIG, SCHEMA)
    assert policy(CONFIG) == []
    assert CONFIG["head_node_type"] in CONFIG["available_node_types"]


def test_what_nobody_can_know_is_not_invented() -> None:
    image = CONFIG["docker"]["image"]
    assert (
        image.startswith("unpinned: ") and len(unpinned(CONFIG)) == 2 + 2 * 4
    )  # region, image; of two kinds of node, four each


@pytest.mark.parametrize(
    ("path", "value"),
    [(("provider",), {}), (("cluster_nam",), "x"), (("available_node_types", "gpu", "resources"), {"GPU": "eight"})],
)
def test_ray_refuses_a_typo(path: tuple[str, ...], value: Any) -> None:
    broken = json.loads(json.dumps(CONFIG))
    *parents, last = path
    at = broken
    for name in parents:
        at = at[name]
    at[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


def test_the_policy_finds_what_is_open() -> None:
    broken = json.loads(json.dumps(CONFIG))
    broken["head_start_ray_commands"] = ["ray start --head --dashboard-host=0.0.0.0"]
    broken["provider"]["use_internal_ips"] = False
    node = broken["available_node_types"]["head"]["node_config"]
    node["BlockDeviceMappings"][0]["Ebs"]["Encrypted"] = False
    del node["SecurityGroupIds"], node["MetadataOptions"]
    assert policy(broken) == [
        "Ray starts without a token",
        "the dashboard is open",
        "head: Ray's own security group opens port 22 to everybody",
        "head: instance metadata without tokens",
        "head: a disk is not encrypted",
        "nodes have public addresses",
    ]
