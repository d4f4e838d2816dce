"""Shards at URLs: the same samples in the same order as shards here, whatever the network does."""

import dataclasses
import json
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bigtrain.data import remote
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.stream import SplitLoader, Stream
from bigtrain.data.remote import Origin, RemoteOptions, beside, receive
from bigtrain.data.splits import find_index
from bigtrain.errors import UserError
from bigtrain.formats import upgraded
from tests.data.conftest import make_numbered_shards
from tests.data.faulty_server import Choose, now_and_then, serving
from tests.data.read.test_stream import numbers_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_numbered_shards([4, 7, 1, 5], tmp_path / "served").folder


def options(cache: Path, **given: Any) -> RemoteOptions:
    return RemoteOptions.model_validate({"cache": str(cache), "timeout_s": 0.3, **given})


def open_at(url: str, given: RemoteOptions) -> Index:
    return find_index(url, "train", 4, remote=given)


def seen(index: Index, steps: int, microbatch: int = 5, **given: Any) -> list[list[int]]:
    """The sample numbers of each step of a stream."""
    wanted = {"train": index.where, "image_size": 4, "workers": 0, "shuffle_shards": 2, **given}
    stream = Stream(index, DataOptions.model_validate(wanted), 3, rank=0, world=1, microbatch=microbatch)
    try:
        return [numbers_of(next(stream)["image"]) for _ in range(steps)]
    finally:
        stream.close()


def test_the_order_is_that_of_shards_here(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = find_index(str(shards / "train.json"), "train", 4)
    with serving(shards) as server:
        there = open_at(f"{server.url}/train.json", options(tmp_path / "kept"))
        assert f"train.json are fetched to {tmp_path / 'kept'} as they are needed" in capsys.readouterr().err
        assert there.fingerprint == here.fingerprint
        assert seen(there, 9) == seen(here, 9)
        sweep = SplitLoader(there, rank=0, world=1, batch=4, workers=0)
        assert [n for _, batch in sweep for n in numbers_of(batch["image"])] == list(range(17))
        assert {path: times for path, times in server.requests.items() if path.endswith(".tar")} == {
            shard.name: 1 for shard in here.shards
        }


def one_run(seed: int, folder: Path) -> None:
    """Two epochs of random shards from a server that fails in 4 of 10 requests: each sample once an epoch, in order."""
    draws = random.Random(seed)
    here = make_numbered_shards([draws.randint(1, 6) for _ in range(draws.randint(1, 6))], folder / "served")
    with serving(here.folder, now_and_then(seed), ranges=draws.random() < 0.5) as server:
        given = options(folder / "kept", prefetch_shards=draws.randint(0, 3), timeout_s=0.1)
        there = open_at(f"{server.url}/train.json", given)
        position, microbatch = draws.randrange(here.samples), draws.randint(1, 5)
        steps = -(-2 * here.samples // microbatch)
        got, wanted = (numbers_from(index, position, microbatch, steps) for index in (there, here))
    assert got == wanted
    epoch = got[here.samples - position : 2 * here.samples - position]
    assert sorted(epoch) == list(range(here.samples))


def numbers_from(index: Index, position: int, microbatch: int, steps: int) -> list[int]:
    data = DataOptions.model_validate({"train": index.where, "image_size": 4, "workers": 0, "shuffle_shards": 2})
    stream = Stream(index, data, 3, rank=0, world=1, microbatch=microbatch, position=position)
    numbers = [number for _ in range(steps) for number in numbers_of(next(stream)["image"])]
    stream.close()
    return numbers


@pytest.mark.parametrize("seed", range(4))
def test_each_sample_comes_once_from_a_server_that_fails_stalls_truncates_and_corrupts(
    seed: int, tmp_path: Path
) -> None:
    one_run(seed, tmp_path)


@pytest.mark.slow
def test_a_hundred_random_runs_against_a_failing_server_see_each_sample_once() -> None:
    for seed in range(100, 200):
        with tempfile.TemporaryDirectory() as folder:
            one_run(seed, Path(folder))


def first_time(fault: str) -> Choose:
    return lambda path, before: fault if before == 0 and path.endswith(".tar") else ""


@pytest.mark.parametrize("fault", ["truncate", "reset in the middle", "stall in the middle"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke_off_if_the_server_can(shards: Path, fault: str, ranges: bool) -> None:
    data, shard = (shards / "train-000001.tar").read_bytes(), Index.read(shards / "train.json").shards[1]
    with serving(shards, first_time(fault), ranges=ranges) as server, tempfile.TemporaryFile() as file:
        origin = Origin(options=RemoteOptions(timeout_s=0.3))
        receive(f"{server.url}/train-000001.tar", file, origin, "it", sha256=shard.sha256)
        file.seek(0)
        assert file.read() == data
        assert server.bodies["train-000001.tar"] == len(data) if ranges else len(data) + len(data) // 2


def test_what_is_here_already_is_checked_and_not_fetched(shards: Path) -> None:
    shard = Index.read(shards / "train.json").shards[1]
    with serving(shards) as server, tempfile.TemporaryFile() as file:
        url, origin = f"{server.url}/{shard.name}", Origin(options=RemoteOptions(timeout_s=5))
        file.write((shards / shard.name).read_bytes())
        receive(url, file, origin, "it", size=shard.size, sha256=shard.sha256)
        assert not server.requests
        file.seek(0)
        file.write(b"other")
        receive(url, file, origin, "it", size=shard.size, sha256=shard.sha256)
        assert server.bodies[shard.name] == shard.size


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("error", "could not be fetched in 3 attempts; the last ended with: HTTP 500"),
        ("reset", "in 3 attempts; the last ended with: .*reset"),
        ("stall", "in 3 attempts; the last ended with: .*[Tt]imed? ?out"),
        ("trickle", r"in 3 attempts; the last ended with: only \d+ bytes came in 0.1 s"),
        ("truncate", r"in 3 attempts; the last ended with: .*\d+ bytes read, \d+ more expected"),
        ("corrupt", "in 3 attempts; the last ended with: its sha256 is .* as in the index: another or a damaged file"),
        ("absent", r"cannot be fetched: HTTP 404 .*\(is the name right\?\)"),
        ("forbidden", r"cannot be fetched: HTTP 403 .*\(is a login missing\?\)"),
    ],
)
def test_a_download_that_fails_in_the_end_is_one_sentence_with_key_url_and_reason(
    shards: Path, tmp_path: Path, fault: str, words: str
) -> None:
    def choose(path: str, before: int) -> str:
        return fault if path == "train-000002.tar" else ""

    with serving(shards, choose, ranges=False) as server:
        given = options(tmp_path / "kept", retries=2, prefetch_shards=0, timeout_s=0.1)
        index = open_at(f"{server.url}/train.json?token=secret", given)
        with pytest.raises(UserError, match=words) as raised:
            seen(index, 4)
        assert str(raised.value).startswith(f"data.train: {server.url}/train-000002.tar: the shard ")
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
        assert server.requests["train-000002.tar"] == (1 if fault in ("absent", "forbidden") else 3)


def test_an_index_that_is_not_there_or_none_names_its_url(shards: Path) -> None:
    with serving(shards) as server:
        with pytest.raises(UserError, match=rf"data.train: {server.url}/no.json: the index .*HTTP 404"):
            find_index(f"{server.url}/no.json", "train", 4)
        with pytest.raises(UserError, match=rf"{server.url}/train-000000.tar: training reads an index of such tars"):
            find_index(f"{server.url}/train-000000.tar", "train", 4)


def test_an_index_that_changes_while_it_is_fetched_is_not_glued_together(shards: Path) -> None:
    before = (shards / "train.json").read_text()
    after = before.replace('"train-', '"trial-')

    def choose(path: str, requests: int) -> str:
        (shards / "train.json").write_text(after if requests else before)
        return "" if requests else "reset in the middle"

    with serving(shards, choose) as server:
        index = Index.read(f"{server.url}/train.json")
        assert server.requests["train.json"] == 2
    assert [shard.name[:6] for shard in index.shards] == ["trial-"] * 4


def test_processes_that_share_a_folder_fetch_an_index_once_and_later_ones_anew(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(shards) as server, ThreadPoolExecutor(4) as ranks:
        for began in (1, 2):
            monkeypatch.setattr("bigtrain.data.index._PROCESS_BEGAN", time.time())
            found = list(ranks.map(Index.read, [f"{server.url}/train.json"] * 4))
            assert [index.samples for index in found] == [17] * 4
            assert server.requests["train.json"] == began


def test_an_index_that_was_fetched_by_a_wrong_clock_is_fetched_anew(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(shards) as server:
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: 2.0**32)
            Index.read(f"{server.url}/train.json")
        Index.read(f"{server.url}/train.json")
        assert server.requests["train.json"] == 2


def test_an_index_without_end_is_refused(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigtrain.data.index.MOST_BYTES", 1000)
    words = "the index cannot be fetched: it has more than 1000 bytes, the most that are taken"
    with serving(shards) as server:
        with pytest.raises(UserError, match=words):
            open_at(f"{server.url}/train.json", options(tmp_path / "kept"))
        assert server.requests["train.json"] == 1


def test_a_host_that_is_not_there_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/train.json"
        with pytest.raises(UserError, match=rf"data.train: {url}: .* in 2 attempts; .*ConnectionRefusedError"):
            find_index(url, "train", 4, remote=RemoteOptions(retries=1, timeout_s=0.3))


def test_a_local_index_may_list_shards_at_urls(shards: Path, tmp_path: Path) -> None:
    here = Index.read(shards / "train.json")
    with serving(shards) as server:
        moved = [dataclasses.replace(shard, name=f"{server.url}/{shard.name}") for shard in here.shards[:2]]
        kept = [dataclasses.replace(shard, name=f"served/{shard.name}") for shard in here.shards[2:]]
        dataclasses.replace(here, path=tmp_path / "both.json", shards=(*moved, *kept)).write()
        both = open_at(str(tmp_path / "both.json"), options(tmp_path / "kept"))
        assert seen(both, 7) == seen(here, 7)
        assert set(server.requests) == {shard.name for shard in here.shards[:2]}


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("train-0.tar", "https://host/a/b/train-0.tar?sig=1"),
        ("../c/x y.tar", "https://host/a/c/x%20y.tar?sig=1"),
        ("../../../../etc/passwd", "https://host/etc/passwd?sig=1"),
        ("s3://bucket/x.tar", "s3://bucket/x.tar"),
    ],
)
def test_shards_lie_beside_their_index_or_where_they_say(name: str, url: str) -> None:
    assert beside("https://host/a/b/train.json?sig=1", name) == url
    assert beside("s3://bucket/a/train.json", "t 0.tar") == "s3://bucket/a/t 0.tar"
    assert beside("hf://datasets/o/n@main/a/train.json", "t.tar") == "hf://datasets/o/n@main/a/t.tar"


@pytest.mark.parametrize("name", ["/etc/passwd", "a\0b", "..", ""])
def test_an_index_from_afar_cannot_name_files_of_this_machine(shards: Path, tmp_path: Path, name: str) -> None:
    value = json.loads((shards / "train.json").read_text())
    value["shards"][0]["url"] = name
    (shards / "train.json").write_text(json.dumps(value))
    with (
        serving(shards) as server,
        pytest.raises(UserError, match=r"the index is damaged .*is not the name of a shard"),
    ):
        open_at(f"{server.url}/train.json", options(tmp_path / "kept"))


@pytest.mark.parametrize("name", ["file:///etc/passwd", "ftp://host/x.tar", "simplecache::s3://b/x.tar"])
def test_other_schemes_are_refused_in_an_index_and_in_a_recipe(shards: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"data.train: .* cannot be read; give a path, or one of http://"):
        open_at(name, options(tmp_path / "kept"))
    here = Index.read(shards / "train.json")
    renamed = dataclasses.replace(here.shards[0], name=name)
    dataclasses.replace(here, shards=(renamed, *here.shards[1:])).write()
    with serving(shards) as server, pytest.raises(UserError, match=r"cannot be read; give a path, or one of http://"):
        open_at(f"{server.url}/train.json", options(tmp_path / "kept"))


def test_an_address_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.train: http://\[::1/train.json: Invalid IPv6 URL"):
        open_at("http://[::1/train.json", options(tmp_path / "kept"))


def test_an_index_or_a_recipe_that_names_a_program_is_refused_and_nothing_runs(shards: Path, tmp_path: Path) -> None:
    mark, here = tmp_path / "ran", Index.read(shards / "train.json")
    renamed = dataclasses.replace(here.shards[0], name=f"pipe:touch {mark}")
    dataclasses.replace(here, shards=(renamed, *here.shards[1:])).write()
    with serving(shards) as server:
        for where in (str(shards / "train.json"), f"{server.url}/train.json", f"pipe:touch {mark}"):
            with pytest.raises(UserError, match=r"data.train: pipe:touch .*: pipe: URLs are gone, .* fetch the shards"):
                open_at(where, options(tmp_path / "kept"))
    with pytest.raises(UserError, match=r"pipe: URLs are gone"):
        upgraded({"allow_pipe": True}, RemoteOptions, where="recipe.yaml")
    assert upgraded({"allow_pipe": False}, RemoteOptions, where="recipe.yaml") == {}
    assert not mark.exists()


def test_a_data_set_on_the_hub_is_read_by_its_plain_address(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "hub/datasets/owner/name/resolve/v1/sub"
    shutil.copytree(shards, served)
    with serving(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        index = open_at("hf://datasets/owner/name@v1/sub/train.json", options(tmp_path / "kept"))
        assert seen(index, 5) == seen(find_index(str(shards / "train.json"), "train", 4), 5)
        assert server.logins == {"Bearer hf_secret"}
    with pytest.raises(UserError, match="not of the form hf://datasets/OWNER/NAME"):
        open_at("hf://owner/name", options(tmp_path / "kept"))


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    """The address of an S3-compatible store on this machine."""
    moto = pytest.importorskip("moto.server", reason="pip install s3fs 'moto[s3,server]'")
    pytest.importorskip("s3fs")
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.slow
def test_an_s3_compatible_store_is_read(
    store: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for file in shards.iterdir():
        client.upload_file(str(file), "bucket", f"a b/{file.name}")
    monkeypatch.setattr(remote, "_S3_PIECE", 3000)  # several requests a shard
    given = options(tmp_path / "kept", timeout_s=10, retries=1)
    index = open_at("s3://bucket/a b/train.json", given)
    here = find_index(str(shards / "train.json"), "train", 4)
    assert seen(index, 7, workers=2) == seen(here, 7)
    shutil.rmtree(tmp_path / "kept")
    assert seen(index, 7) == seen(here, 7)
    with pytest.raises(UserError, match=r"s3://bucket/none.json: the index cannot be fetched: S3 has no such object"):
        open_at("s3://bucket/none.json", given)
    part = (shards / "train-000001.tar").read_bytes()
    with tempfile.TemporaryFile() as file:  # begun by an attempt that broke off
        file.write(part[:5000])
        origin = Origin("s3://bucket/a b/train.json", options=given)
        receive("s3://bucket/a b/train-000001.tar", file, origin, "it", sha256=here.shards[1].sha256)
        assert file.seek(0, 2) == len(part)


def test_without_s3fs_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match=r"data.train: s3://b/t.json: .* pip install s3fs"):
        open_at("s3://b/t.json", options(tmp_path))
