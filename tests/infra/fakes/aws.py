"""An `aws` that asks the server beside it (aws_server.py), which passes the call to boto3 and moto; starting boto3 here takes too long."""

import json
import os
import socket
import sys

import recorder


def main() -> None:
    arguments = recorder.begin("aws")
    stdin = sys.stdin.read() if "file:///dev/stdin" in arguments else ""
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(os.environ["FAKE_AWS_SOCKET"])
        server.sendall(json.dumps({"arguments": arguments, "stdin": stdin}).encode() + b"\n")
        answer = json.loads(server.makefile().readline())
    recorder.end(answer["code"], answer["out"], answer["error"])


main()
