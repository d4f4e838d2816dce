"""The collectives that are not the engine's, over two processes."""

import datetime
import json
from pathlib import Path

import torch.distributed as dist

from bigtrain.cluster import world
from tests.ranks import in_ranks


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", datetime.timedelta(seconds=60), 2, rank)
    try:
        gathered = world.gather_on_main(["record"] * (1 + rank))
        Path(folder, f"{rank}.json").write_text(json.dumps(gathered))
    finally:
        dist.destroy_process_group()


def test_what_the_main_rank_alone_needs_stays_on_it(tmp_path: Path) -> None:
    in_ranks(work, (str(tmp_path),), 2)
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (main, other) == ([["record"], ["record", "record"]], [])
