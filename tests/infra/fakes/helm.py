"""A helm that installs nothing: it remembers releases, as `helm list` and `helm get values` would show them."""

import json
import sys

import recorder


def main() -> None:
    arguments = recorder.begin("helm")
    releases = recorder.state("helm")
    if arguments[:2] == ["get", "values"]:
        recorder.end(0, json.dumps(releases[arguments[2]]["values"] or None))
    if arguments[0] == "list":
        asked = {one.removeprefix("--") for one in arguments}
        shown = [
            {"name": name, **one["release"]}
            for name, one in sorted(releases.items())
            if one["release"]["status"].partition("-")[0] in asked
        ]
        recorder.end(0, json.dumps(shown))
    if arguments[:2] == ["upgrade", "--install"]:
        name, chart = arguments[2:4]
        if releases.get(name, {}).get("release", {}).get("status", "deployed") not in ("deployed", "failed"):
            recorder.end(1, error="Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress")
        version = recorder.option(arguments, "--version")
        release = {
            "namespace": recorder.option(arguments, "--namespace"),
            "chart": f"{chart.rpartition('/')[2]}-{version}",
            "status": "deployed",
        }
        releases[name] = {"release": release, "values": json.loads(sys.stdin.read())}
        recorder.save("helm", releases)
        recorder.end(0)
    if arguments[0] == "rollback":
        releases[arguments[1]]["release"]["status"] = "deployed"
        recorder.save("helm", releases)
        recorder.end(0)
    if arguments[0] == "uninstall":
        del releases[arguments[1]]
        recorder.save("helm", releases)
        recorder.end(0)
    recorder.end(2, error=f"the fake helm does not know {arguments}")


main()
