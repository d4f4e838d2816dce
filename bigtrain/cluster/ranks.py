"""Which rank of how many this process is, and where the ranks meet, by the variables of whatever started it.

torchrun, accelerate and deepspeed set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and so on, the names that the rest of this code
reads. Slurm's `srun` and the `mpirun` of Open MPI, MPICH, Intel MPI and MVAPICH have names of their own, which are translated.

Slurm: the variables of a job *step* count, which `srun` sets for its tasks, and never those of the allocation: a batch script
with --ntasks=8 is one process, and what it starts without srun is so, too. mpirun comes first, because within an allocation it
starts one daemon a node by srun.
"""

import hashlib
import os
import re
import socket
import subprocess
from collections.abc import Mapping, MutableMapping, Sequence
from typing import NamedTuple

from bigtrain.errors import RankError

DEFAULT_PORT = 29500
"""torch's and accelerate's default."""
_FIRST_PORT, _PORTS = 20000, 20000
"""Ports are derived from a job's number within these; Linux gives others to connections (32768 and up) only above."""


class Ranks(NamedTuple):
    """What one launcher says of this process."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int


_OF_MPI = {
    "mpirun (Open MPI)": tuple(f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
    "mpirun (MPICH or Intel MPI)": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    "mpirun (MVAPICH)": tuple(f"MV2_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")),
}
_JOB_OF_MPI = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PMI_JOBID", "SLURM_JOB_ID")
"""Names of a job that all its ranks see alike; the first one that is set."""


def adopt_ranks(variables: MutableMapping[str, str] = os.environ) -> None:
    """Adds the variables that torch reads if another kind of launcher started this process as one of several.

    Raises RankError if some variables of several ranks are set, but not enough to know this one's place among them, or if one
    is no number.
    """
    _check_numbers(variables)
    if "RANK" in variables or "WORLD_SIZE" in variables:
        _complete(variables)
        return
    found = _of_mpi(variables) or _of_slurm(variables)
    if found is None or found.size == 1:
        return
    variables.update(
        {
            "RANK": str(found.rank),
            "WORLD_SIZE": str(found.size),
            "LOCAL_RANK": str(found.local_rank),
            "LOCAL_WORLD_SIZE": str(found.local_size),
            "GROUP_RANK": variables.get("SLURM_NODEID", str(found.rank // found.local_size)),
        }
    )
    variables.setdefault("MASTER_ADDR", _address(found, variables))
    variables.setdefault("MASTER_PORT", str(_port(variables)))


def _check_numbers(variables: Mapping[str, str]) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_PORT"):
        if name in variables and not re.fullmatch(r"-?[0-9]+", variables[name]):
            raise RankError(
                f"the environment has {name}={variables[name]!r}, which is no whole number: start the ranks with accelerate "
                f"launch or torchrun, or unset {name} to train in one process"
            )


def _complete(variables: MutableMapping[str, str]) -> None:
    """Checks the variables of torchrun's kind, and adds those that deepspeed's launcher and hand-written scripts leave out."""
    rank, size = (_number(name, variables) for name in ("RANK", "WORLD_SIZE"))
    if not 0 <= rank < size:
        raise RankError(
            f"the environment has RANK={rank} and WORLD_SIZE={size}: ranks are numbered from 0 to {size - 1}. Start the ranks "
            "with accelerate launch or torchrun, or unset both to train in one process"
        )
    if size == 1:
        return
    if "LOCAL_SIZE" in variables:  # deepspeed's name
        variables.setdefault("LOCAL_WORLD_SIZE", variables["LOCAL_SIZE"])
    if "LOCAL_RANK" not in variables:
        raise RankError(
            f"the environment has RANK={rank} and WORLD_SIZE={size}, but no LOCAL_RANK, the number of the process on its own "
            "node, by which it chooses its GPU; set it, and LOCAL_WORLD_SIZE, the number of processes on the node, or unset "
            "both to train in one process"
        )
    variables.setdefault("MASTER_PORT", str(DEFAULT_PORT))
    if "MASTER_ADDR" not in variables and variables.get("LOCAL_WORLD_SIZE") != str(size):
        raise RankError(
            f"the environment has RANK={rank} and WORLD_SIZE={size}, but no MASTER_ADDR; set it to the address of rank 0's "
            "node (127.0.0.1 if there is no other), and MASTER_PORT to a free port there"
        )
    variables.setdefault("MASTER_ADDR", "127.0.0.1")


def _number(name: str, variables: Mapping[str, str]) -> int:
    other = "WORLD_SIZE" if name == "RANK" else "RANK"
    if name not in variables:
        raise RankError(
            f"the environment has {other}={variables.get(other)} and no {name}: start the ranks with accelerate launch or "
            f"torchrun, or unset {other} to train in one process"
        )
    return int(variables[name])


def _of_mpi(variables: Mapping[str, str]) -> Ranks | None:
    for launcher, names in _OF_MPI.items():
        if all(variables.get(name, "").isdigit() for name in names):
            return Ranks(launcher, *(int(variables[name]) for name in names))
    return None


def _of_slurm(variables: Mapping[str, str]) -> Ranks | None:
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NODEID")
    if "SLURM_STEP_ID" not in variables or not all(variables.get(name, "").isdigit() for name in names):
        return None
    rank, size, local_rank, node = (int(variables[name]) for name in names)
    counts = tasks_of_nodes(variables.get("SLURM_STEP_TASKS_PER_NODE", str(size)))
    return Ranks("srun", rank, size, local_rank, counts[node] if node < len(counts) else size)


def tasks_of_nodes(text: str) -> Sequence[int]:
    """Slurm's short form of the number of tasks on each node: "2(x3),1" is 2, 2, 2, 1."""
    counts: list[int] = []
    for part in re.finditer(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(part[1])] * int(part[2] or 1)
    return counts


def first_node(nodes: str) -> str:
    """The first name of Slurm's short form of a list of nodes: that of "gpu[03-07,9]-ib,cpu1" is gpu03-ib."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)  # as far as the first comma outside of brackets
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", name[0]) if name else nodes


def _address(ranks: Ranks, variables: Mapping[str, str]) -> str:
    nodes = variables.get("SLURM_STEP_NODELIST") or variables.get("SLURM_JOB_NODELIST")
    if ranks.size == ranks.local_size:
        return "127.0.0.1"
    if nodes is None:
        raise RankError(
            f"{ranks.launcher} started {ranks.size} processes on several nodes, and does not say where rank 0 is; give all of "
            "them MASTER_ADDR, its node's address (Open MPI: mpirun -x MASTER_ADDR=NODE ...; others: -genv MASTER_ADDR NODE)"
        )
    name = first_node(nodes)
    return name if _resolves(name) else _address_by_slurm(name) or name


def _resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _address_by_slurm(node: str) -> str | None:
    """A node's name need not resolve everywhere; Slurm itself knows the address."""
    try:
        told = subprocess.run(
            ["scontrol", "show", "node", node], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"NodeAddr=(\S+)", told.stdout)
    return found[1] if found else None


def _port(variables: Mapping[str, str]) -> int:
    """A port that two jobs on one node, or two steps of one job, hardly share, and that needs no exchange."""
    job = variables.get("SLURM_JOB_ID", "")
    if "SLURM_STEP_ID" in variables and job.isdigit() and _of_mpi(variables) is None:
        return _FIRST_PORT + (int(job) + 1009 * int(variables["SLURM_STEP_ID"])) % _PORTS
    name = next((variables[name] for name in _JOB_OF_MPI if name in variables), None)
    if name is None:
        return DEFAULT_PORT
    return _FIRST_PORT + int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "little") % _PORTS


def without_local_rank(argv: Sequence[str], variables: Mapping[str, str] = os.environ) -> list[str]:
    """The command's own words: without the --local_rank=N that deepspeed's launcher, and older ones of torch, put in front."""
    if "LOCAL_RANK" not in variables:
        return list(argv)
    return [word for word in argv if not re.fullmatch(r"--local[_-]rank=\d+", word)]
