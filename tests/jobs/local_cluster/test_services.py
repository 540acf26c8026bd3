"""The commands and settings of a cluster: loopback everywhere, secrets in files of mode 0600 and nowhere else, nothing of another cluster."""

import os
import stat
from pathlib import Path

import pytest

from evalplane import cluster as evaluation
from jobs.local_cluster import services
from jobs.local_cluster.processes import MARK
from trainplane import cluster as training
from triplane.errors import UsageError

CLIENT = ("spark://127.0.0.1:1", "http://127.0.0.1:2", "127.0.0.1:3", "http://127.0.0.1:4")


def test_ray_is_set_as_the_planes_set_it() -> None:
    assert services.RAY_SETTINGS == training.SETTINGS | evaluation.SETTINGS


def test_secrets_are_new_each_time_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        services.write_settings(tmp_path, CLIENT[0])
        first = (tmp_path / services.TOKEN_FILE).read_text()
        services.write_settings(tmp_path, CLIENT[0])
    finally:
        os.umask(before)
    token, conf = tmp_path / services.TOKEN_FILE, tmp_path / services.SPARK_CONF / "spark-defaults.conf"
    assert len(first) == 64 and token.read_text() != first
    assert [stat.S_IMODE(path.stat().st_mode) for path in (token, conf)] == [0o600, 0o600]
    settings = dict(line.split(" ", 1) for line in conf.read_text().splitlines())
    assert settings["spark.authenticate"] == "true" and len(settings["spark.authenticate.secret"]) == 64
    assert settings["spark.master.rest.enabled"] == "false" and settings["spark.driver.host"] == "127.0.0.1"
    exported = services.client_environment(tmp_path, *CLIENT)
    assert not {token.read_text(), settings["spark.authenticate.secret"]} & set(exported.values())


def test_servers_inherit_credentials_and_nothing_of_another_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = {"RAY_ADDRESS": "10.0.0.1:6379", "SPARK_CONF_DIR": "/theirs", "RAY_AUTH_TOKEN": "theirs"}
    for name, value in (theirs | {"AWS_SECRET_ACCESS_KEY": "mine", "AWS_ENDPOINT_URL": "https://theirs"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    client = services.client_environment(tmp_path, *CLIENT)
    made = services.server_environment(client, tmp_path, {MARK: "m"})
    assert "RAY_ADDRESS" not in made and "RAY_AUTH_TOKEN" not in made
    assert made["AWS_SECRET_ACCESS_KEY"] == "mine" and made["AWS_ACCESS_KEY_ID"] == "local"
    assert made["AWS_ENDPOINT_URL"] == CLIENT[3] and made["SPARK_CONF_DIR"] == str(tmp_path / services.SPARK_CONF)
    assert made[MARK] == "m" and made["RAY_AUTH_MODE"] == "token"
    assert "mine" not in client.values()


def test_every_program_is_told_to_listen_on_loopback(tmp_path: Path) -> None:
    head = services.ray_head(1, 2, 3, tmp_path)
    worker = services.ray_worker("127.0.0.1:1", 1, False, tmp_path)
    for command in (head, worker):
        assert command[command.index("--node-ip-address") + 1] == "127.0.0.1"
    assert head[head.index("--dashboard-host") + 1] == "127.0.0.1"
    for command in (services.spark_master(1, 2), services.spark_worker("spark://127.0.0.1:1", 1, 1024, tmp_path)):
        assert command[command.index("--host") + 1] == "127.0.0.1"
    assert services.s3_server(1)[-4:] == ["-H", "127.0.0.1", "-p", "1"]


def test_only_the_first_ray_worker_has_the_gpus(tmp_path: Path) -> None:
    first, second = (services.ray_worker("127.0.0.1:1", 1, is_first, tmp_path) for is_first in (True, False))
    assert "--num-gpus" not in first and second[second.index("--num-gpus") + 1] == "0"


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    services.require_programs(None)
    found = services.importlib.util.find_spec
    monkeypatch.setattr(services.importlib.util, "find_spec", lambda name: None if name == "moto" else found(name))
    with pytest.raises(UsageError, match=r"moto is not installed: pip install 'triplane\[test\]', or give --s3"):
        services.require_programs(None)
    services.require_programs("http://127.0.0.1:9000")


def test_ports_are_free_and_different() -> None:
    assert len(set(services.free_ports(20))) == 20
