"""Joins the processes that a launcher started, each with its device and its share of the cores."""

import contextlib
import ctypes
import ipaddress
import json
import os
import platform
import signal
import socket
import sys
import time
from pathlib import Path

import psutil
import torch

from bigtrain.cluster import world
from bigtrain.cluster.launcher_flags import refuse_contradictions
from bigtrain.cluster.meeting import check_words, meet
from bigtrain.errors import UserError

_BY_ACCELERATE, _BY_TORCHRUN = "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID"
"""Variables that these launchers set in any case."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_PR_SET_PDEATHSIG = 1  # Linux's prctl.h


def join_world(precision: str = "no", accumulate: int | None = None) -> torch.device:
    """Starts torch.distributed if a launcher made several processes; returns this rank's device.

    `precision` is the recipe's (fp32, tf32 or bf16), or "no" for a command that does not train; `accumulate` its number of
    microbatches, or None. Raises UserError if the launcher's flags contradict the recipe.
    """
    refuse_contradictions(precision, accumulate)
    _refuse_one_process()
    _choose_network()

    cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true")
    # A task of Slurm may see the GPU alone that is bound to it.
    if not cpu and world.local_size() > torch.cuda.device_count() and not _has_gpu_of_its_own():
        raise UserError(
            f"the launcher started {world.local_size()} processes on a node with {torch.cuda.device_count()} GPUs; each GPU "
            "needs one process: launch with --num_processes equal to the number of GPUs (times the number of nodes)"
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not world.initialised():
        meet("gloo" if cpu else "nccl")
    from accelerate import PartialState  # a heavy import, not needed to refuse flags or to wait

    state = PartialState(cpu=cpu)
    check_words()
    torch.set_float32_matmul_precision("highest")  # TF32 in the steps of a run that asks for it alone
    torch.backends.cudnn.allow_tf32 = False
    if cpu:
        _share_cores()
        _keep_memory()
        return state.device
    # A single process gets "cuda" without a number, and CUDA has not been started.
    return torch.device("cuda", torch.cuda.current_device())


def follow_launcher() -> None:
    """Asks the kernel for a SIGTERM if the launcher dies, so that no rank goes on as an orphan.

    Only under accelerate's or torch's: a process started from a shell must outlive it (nohup), and mpirun and srun end their
    own. Raises UserError if the launcher has died already.
    """
    if sys.platform != "linux" or not {_BY_ACCELERATE, _BY_TORCHRUN} & set(os.environ):
        return
    die_with_parent(signal.SIGTERM)
    adopted = os.getppid() == 1 and not any(
        word in Path("/proc/1/cmdline").read_bytes() for word in (b"accelerate", b"torch")
    )
    if adopted:
        raise UserError("the launcher has died while this process was starting; start it again")


def tell_launcher(sentence: str) -> None:
    """Has torch's launcher repeat the sentence as the cause at the end of its own report, which is long and comes last.

    The file and its form are those of torch.distributed.elastic.multiprocessing.errors.
    """
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path:
        error = {"message": {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps(error))


def die_with_parent(number: int) -> None:
    """Asks the kernel for this signal when the thread that made this process ends, however it ends. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def _has_gpu_of_its_own() -> bool:
    return torch.cuda.device_count() == 1 and "SLURM_STEP_GPUS" in os.environ


def _refuse_one_process() -> None:
    # `accelerate launch --cpu --num_processes 2` sets an address for several processes to meet at, but starts only one.
    if _BY_ACCELERATE in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError(
            "the launcher was asked for several processes but started one; for several on CPU: "
            "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 ... "
            "(if MASTER_ADDR is set in your shell and you want one process, unset it)"
        )


def _choose_network() -> None:
    """With several nodes, makes gloo use the network interface that reaches MASTER_ADDR, unless GLOO_SOCKET_IFNAME is set.

    Gloo connects CPU ranks, and carries the small exchanges between GPU ranks. By default it gives the other nodes the address
    that this node's own name resolves to: 127.0.1.1 on a plain Debian or Ubuntu, and often none in a container.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not several or "GLOO_SOCKET_IFNAME" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    try:
        meeting = socket.getaddrinfo(os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"], type=socket.SOCK_DGRAM)[0]
        with socket.socket(meeting[0], socket.SOCK_DGRAM) as probe:
            probe.connect(meeting[4])  # sends nothing: the kernel only chooses the route
            own = probe.getsockname()[0]
    except OSError:
        return  # torch.distributed will say what is wrong with the address
    names = [name for name, addresses in psutil.net_if_addrs().items() if own in (a.address for a in addresses)]
    if names and not ipaddress.ip_address(own).is_loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = names[0]


def _share_cores() -> None:
    """Sets threads to a CPU rank's share of this node's cores; `accelerate launch` and torchrun set one thread."""
    by_launcher = {_BY_ACCELERATE, _BY_TORCHRUN} & set(os.environ) and os.environ.get("OMP_NUM_THREADS") == "1"
    if by_launcher or "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // world.local_size()))


def _keep_memory() -> None:
    """Makes glibc keep freed memory: each step on a CPU frees and allocates the same large tensors, and each page of fresh
    memory costs a page fault (about 8 % of a small GAN's step; tests/benchmarks/RESULTS.md)."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
            libc.mallopt(parameter, 2**31 - 1)
