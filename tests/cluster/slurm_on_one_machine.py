"""A real Slurm of two nodes on this machine, in a folder of its own: munge, slurmctld and two slurmd (Debian's packages).

It touches nothing that is installed: keys, sockets, ports, state and logs are its own, and it ends all that it started.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    lacking = [name for name in PROGRAMS if _found(name) is None]
    return f"not installed: {', '.join(lacking)} (Debian: slurm-wlm and munge)" if lacking else None


def _found(name: str) -> str | None:
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


class TwoNodes:
    """Starts when it is made; `environment` is what Slurm's commands need. `stop` it."""

    def __init__(self) -> None:
        # Under a short name: the path of a socket must fit in 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self.environment = {"SLURM_CONF": str(self._configure())}
            self._start_munge()
            self._start("slurmctld", "-D")
            cores = sorted(os.sched_getaffinity(0))
            for node, core in (("n1", cores[0]), ("n2", cores[-1])):  # a node of one core, as the configuration says
                self._start("slurmd", "-D", "-N", node, core=core)
            self.wait(lambda: self.ask("sinfo", "-h", "-o", "%D %t") == "2 idle", 30)
        except BaseException:
            self.stop()
            raise

    def _configure(self) -> Path:
        control, one, two = _free_ports(3)
        name = socket.gethostname()
        lines = [
            "ClusterName=test", f"SlurmctldHost={name}(127.0.0.1)", f"SlurmctldPort={control}",
            "SlurmUser=root", "SlurmdUser=root", "AuthType=auth/munge", "CryptoType=crypto/munge",
            # A job that is queued again waits until its credential has expired, by default for two minutes.
            f"AuthInfo=socket={self.folder}/munge.socket,cred_expire=5",
            "ProctrackType=proctrack/pgid", "TaskPlugin=task/none", "MpiDefault=none", "ReturnToService=2", "JobRequeue=1",
            "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core", "SchedulerParameters=sched_interval=1",
            "AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none", "KillWait=20",
            "SlurmdParameters=config_overrides", "JobCompType=jobcomp/none",
            f"StateSaveLocation={self.folder}/state", f"SlurmdSpoolDir={self.folder}/spool-%n",
            f"SlurmctldPidFile={self.folder}/slurmctld.pid", f"SlurmdPidFile={self.folder}/slurmd-%n.pid",
            f"SlurmctldLogFile={self.folder}/slurmctld.log", f"SlurmdLogFile={self.folder}/slurmd-%n.log",
            f"NodeName=n1 NodeHostname={name} NodeAddr=127.0.0.1 Port={one} CPUs=1 State=UNKNOWN",
            f"NodeName=n2 NodeHostname={name} NodeAddr=127.0.0.1 Port={two} CPUs=1 State=UNKNOWN",
            "PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP",
        ]  # fmt: skip
        (self.folder / "state").mkdir()
        path = self.folder / "slurm.conf"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _start_munge(self) -> None:
        key, address = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self.folder.chmod(0o755)
        names = {"socket": address, "key-file": key}
        names |= {f"{what}-file": self.folder / f"munge.{what}" for what in ("log", "pid", "seed")}
        self._start("munged", "--foreground", "--force", *(f"--{flag}={path}" for flag, path in names.items()))
        self.wait(address.exists, 10)

    def _start(self, program: str, *arguments: str, core: int | None = None) -> None:
        found = _found(program)
        assert found is not None
        with (self.folder / "daemons.out").open("ab") as out:
            daemon = subprocess.Popen(
                [found, *arguments], env=self.all(), stdout=out, stderr=out, stdin=subprocess.DEVNULL
            )
        self._daemons.append(daemon)
        if core is not None:
            os.sched_setaffinity(daemon.pid, {core})

    def all(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """This process's environment with Slurm's."""
        return {**os.environ, **getattr(self, "environment", {}), **(more or {})}

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=self.all(), capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: JobState, Restarts, ExitCode, ..."""
        words = self.ask("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, until: Callable[[], bool], seconds: float) -> None:
        """Raises AssertionError with the daemons' last words if that does not come about."""
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, f"not within {seconds} s; {self._last_words()}"
            time.sleep(0.1)

    def _last_words(self) -> str:
        logs = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.out")])
        return "\n".join(f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in logs)

    def stop(self) -> None:
        """Ends the jobs, then the daemons."""
        if len(self._daemons) > 1:
            for job in self.ask("squeue", "-h", "-o", "%A").split():
                self.ask("scancel", "--signal=KILL", "--full", job)
                self.ask("scancel", job)
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()
