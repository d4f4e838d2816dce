"""Two network namespaces joined by a cable: two hosts, as far as sockets can tell. Linux, as root, with iproute2."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs_of import ROOT, environment

PORT = 29512
INTERFACE = "cable"


class Host:
    """One of the two: a network namespace with an address of its own."""

    def __init__(self, name: str, machine: int) -> None:
        self.name, self.machine, self.address = name, machine, f"10.77.0.{machine + 1}"

    def cut(self) -> None:
        """Takes the cable's end out of this host. What is sent is lost; no connection is closed."""
        _ip("-n", self.name, "link", "set", INTERFACE, "down")

    def launch(self, output: Path, *arguments: str | Path, meeting_s: int = 60) -> subprocess.Popen[bytes]:
        """Starts this host's launcher of a job of two hosts with a rank each; what both streams say goes to `output`.

        `meeting_s`: how long it waits for the other host's launcher.
        """
        words = [sys.executable, "-m", "accelerate.commands.launch"]
        words += ["--config_file", str(ROOT / "launch" / "accelerate" / "many_nodes.yaml")]
        words += ["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(self.machine)]
        words += ["--main_process_ip", "10.77.0.1", "--main_process_port", str(PORT)]
        words += ["--rdzv_conf", f"timeout={meeting_s}"]
        with output.open("wb") as stream:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *words, *map(str, arguments)], cwd=ROOT, stdout=stream, stderr=stream,
                env=environment(),
            )  # fmt: skip


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Skips the test where network namespaces cannot be made."""
    if sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts on one machine need Linux, root and iproute2")
    one, other = Host(f"bigtrain{os.getpid()}a", 0), Host(f"bigtrain{os.getpid()}b", 1)
    try:
        for host in (one, other):
            if subprocess.run(["ip", "netns", "add", host.name], capture_output=True).returncode != 0:
                pytest.skip("this machine lets nobody make network namespaces")
        _ip("-n", one.name, "link", "add", INTERFACE, "type", "veth", "peer", "name", INTERFACE, "netns", other.name)
        for host in (one, other):
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", INTERFACE)
            for interface in (INTERFACE, "lo"):
                _ip("-n", host.name, "link", "set", interface, "up")
        yield one, other
    finally:
        for host in (one, other):
            subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
