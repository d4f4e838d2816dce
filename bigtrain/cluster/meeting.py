"""How the ranks of a job find each other: at the address and port of rank 0, audibly, and obeying signals.

torch waits for its key-value store, and gloo for its connections, for as long as a collective may take, without a word and
deaf to Ctrl-C and SIGTERM, because the main thread is in a library that never comes back to Python. So whatever waits in a
library here does it in a thread of its own, while the main thread says what is waited for.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist

from bigtrain.cluster import world
from bigtrain.cluster.ranks import without_local_rank
from bigtrain.errors import RankError, UserError

TIMEOUT_S = 2400
"""How long a collective may wait for a rank before it fails with an error that names no rank. Longer than any limit of the
watchdog (cluster/watchdog.py), which names the rank. It is the only limit outside the training loop."""
SAY_AFTER_S = 5.0
"""How long the ranks wait before they say for whom; launchers start them within less."""
_SAY_AGAIN_S = 60.0
_LOOK_S = 0.05


def meet(backend: str) -> None:
    """Starts torch.distributed with the ranks that the environment tells of (cluster/ranks.py), once all of them are here.

    Raises UserError if the address cannot be one, or if the port is taken.
    """
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    host, port = _address()
    whom = f"the other ranks of {size}" if rank == 0 else "rank 0, or for the ranks that it waits for,"
    _in_background(
        lambda: _start(backend, port), f"rank {rank} is waiting for {whom} at {host}:{port} (MASTER_ADDR, MASTER_PORT)"
    )


def check_words() -> None:
    """Raises UserError on all ranks if one was started with other words than rank 0, as tasks are that were meant to train by
    themselves."""
    all_words = world.gather_objects(without_local_rank(sys.argv[1:]))
    other = next((rank for rank, words in enumerate(all_words) if words != all_words[0]), None)
    if other is None:
        return
    one, two = (" ".join(all_words[rank]) or "no words" for rank in (0, other))
    raise UserError(
        f"the ranks of one job were started with different words: rank 0 with {one}, rank {other} with {two}. Start all alike; "
        "to train several things side by side, start each in a job or step of one task (srun --ntasks 1, mpirun -n 1)"
    )


def _address() -> tuple[str, int]:
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not port.isdigit() or not 0 < int(port) < 2**16:
        raise _error(f"MASTER_PORT: {port!r} is no port; give a number from 1 to 65535 that is free on rank 0's node")
    try:
        socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _error(
            f"MASTER_ADDR: {host!r} leads to no address on {socket.gethostname()} ({getattr(error, 'strerror', error)}); give "
            "rank 0's node by an address, or by a name that every node knows"
        ) from None
    return host, int(port)


def _speaks() -> bool:
    """Whether this rank is the one of its node that says what all of them meet."""
    return os.environ["LOCAL_RANK"] == "0"


def _error(text: str) -> UserError:
    return RankError(text) if _speaks() else UserError(text)


def _start(backend: str, port: int) -> None:
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT_S))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise RankError(
            f"MASTER_PORT: another process listens at port {port} of this node already; set MASTER_PORT to a free one"
        ) from None


def _in_background(work: Callable[[], None], sentence: str) -> None:
    """Does `work`, which may wait in a library, in a thread of its own, while this one obeys signals and says `sentence` after
    a while."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="meeting", daemon=True)
    thread.start()
    begin, say_at = time.monotonic(), SAY_AFTER_S
    while thread.is_alive():
        if time.monotonic() - begin > say_at:
            say_at += _SAY_AGAIN_S
            if _speaks():
                print(sentence, file=sys.stderr, flush=True)
        thread.join(_LOOK_S)
    if errors:
        raise errors[0]
