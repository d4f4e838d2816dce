"""Weights come whole and as published, once for all processes of a machine, or with a sentence that says what to do."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from bigtrain.errors import UserError
from bigtrain.features.published_weights import Published, published_file

DATA = b"weights" * 1000


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(Published of DATA on a server of our own, the list of what was asked of it), with an empty cache."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            self.end_headers()
            self.wfile.write(DATA)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    http = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    yield Published(f"http://127.0.0.1:{http.server_port}/net.pt", hashlib.sha256(DATA).hexdigest()), asked
    http.shutdown()
    thread.join()
    http.server_close()


def test_weights_are_fetched_once_by_all_who_want_them(server):
    published, asked = server
    paths: list = []
    threads = [threading.Thread(target=lambda: paths.append(published_file(published, None))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len(paths) == 4
    assert paths[0].read_bytes() == DATA


def test_other_bytes_than_the_published_ones_are_refused_and_not_kept(server):
    published, asked = server
    for _ in range(2):
        with pytest.raises(UserError, match=r"has the sha256 .*, not 00ff; .*evaluation\.weights=PATH"):
            published_file(Published(published.url, "00ff"), None)
    assert len(asked) == 2


def test_without_a_network_the_sentence_says_where_to_get_the_file_and_which_key_takes_it(tmp_path, monkeypatch):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/net\.pt .*refused.*evaluation\.weights=PATH"):
        published_file(Published("http://127.0.0.1:1/net.pt", "00ff"), None)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [".net.pt.lock"]


def test_a_given_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "own.pt"
    path.write_bytes(b"anything")
    assert published_file(Published("http://127.0.0.1:1/net.pt", "00ff"), str(path)) == path
    with pytest.raises(UserError, match=r"evaluation\.weights: nowhere: there is no such file"):
        published_file(Published("http://127.0.0.1:1/net.pt", "00ff"), "nowhere")
