"""What a launcher may ask for, and which network gloo is told to use (tests/cluster/test_lost_ranks.py shows two hosts
find each other by it)."""

import os
from types import SimpleNamespace

import psutil
import pytest

from bigtrain.cluster import launch
from bigtrain.errors import UserError

TWO_NODES = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


class Probe:
    """A socket of a host whose way to the meeting point begins at 10.0.0.7."""

    def __init__(self, *kind: int) -> None:
        pass

    def __enter__(self) -> "Probe":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def connect(self, address: tuple[str, int]) -> None:
        self.own = "127.0.0.1" if address[0].startswith("127.") else "10.0.0.7"

    def getsockname(self) -> tuple[str, int]:
        return self.own, 1


@pytest.mark.parametrize(
    ("changed", "chosen"),
    [
        ({}, "ib0"),
        ({"GLOO_SOCKET_IFNAME": "eth1"}, "eth1"),
        ({"LOCAL_WORLD_SIZE": "4"}, None),
        ({"MASTER_ADDR": "127.0.0.1"}, None),
    ],
    ids=["the way to the first node", "what the user says", "one node", "nodes that are one host"],
)
def test_gloo_uses_the_network_on_which_the_nodes_meet(
    changed: dict[str, str], chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    for name, value in (TWO_NODES | changed).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(launch.socket, "socket", Probe)
    addresses = {"lo": "127.0.0.1", "eth0": "192.168.1.7", "ib0": "10.0.0.7"}
    entries = {name: [SimpleNamespace(address=own)] for name, own in addresses.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: entries)
    try:
        launch._choose_network()
        assert os.environ.get("GLOO_SOCKET_IFNAME") == chosen
    finally:
        os.environ.pop("GLOO_SOCKET_IFNAME", None)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(launch.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(launch.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="started 4 processes on a node with 2 GPUs"):
        launch.join_world("fp32")
