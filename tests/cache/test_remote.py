"""Stores at a URL, in memory, in an archive, on a web server: the same checks and runs."""

import contextlib
import json
import pickle
import shutil
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from cache.check import diff, inspect, plan_repair, verify
from cache.errors import DamagedError, RefusedError, StorageError
from cache.hdf5 import export_store
from cache.remote import store_path
from cache.store import create_store, open_store, status
from pipeline.config import Run, load_method
from pipeline.train.grid import train_runs
from pipeline.train.records import Records
from support.commands import SMALL, Start, tgdfer
from support.stores import random_store
from support.tiny import TEXT, LocalStore, fill, fixed_files, flip, kinds, make_plan, make_store


class WebServer(ThreadingHTTPServer):
    """Serves a folder, and records what was requested."""

    request_queue_size = 64

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.asked: list[tuple[str, str]] = []
        self.before_chunk: Callable[[], object] = lambda: None
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Handler(SimpleHTTPRequestHandler):
    server: WebServer

    def log_message(self, *arguments: object) -> None:
        self.server.asked.append((self.command, self.path))

    def do_GET(self) -> None:
        if "/c." in self.path:
            self.server.before_chunk()
        super().do_GET()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> LocalStore:
    return make_store(tmp_path_factory.mktemp("remote") / "s", failed=(70,))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[WebServer]:
    server = WebServer(tmp_path)
    yield server
    server.stop()


@pytest.fixture(params=["memory", "zip", "http"])
def url(request: pytest.FixtureRequest, whole: LocalStore, web: WebServer, tmp_path: Path) -> str:
    """A copy of the store ``whole``."""
    return copy_of(whole.path, request.param, web, tmp_path)


def copy_of(source: Path, kind: str, web: WebServer, folder: Path) -> str:
    if kind == "memory":
        memory, root = fsspec.url_to_fs("memory://copies/s.zarr")
        if memory.exists(root):
            memory.rm(root, recursive=True)
        memory.put(str(source), root, recursive=True)
        return "memory://copies/s.zarr"
    shutil.copytree(source, folder / "s.zarr")
    if kind == "http":
        return f"{web.url}/s.zarr"
    shutil.make_archive(str(folder / "s"), "zip", folder, "s.zarr")
    return f"zip://s.zarr::{folder}/s.zip"


def test_copy_at_a_url_reads_like_the_store_itself(whole: LocalStore, url: str) -> None:
    copy = open_store(url)
    assert (copy.digest, copy.plan, copy.missing) == (whole.digest, whole.plan, whole.missing)
    np.testing.assert_array_equal(copy.load_features(), whole.load_features())
    np.testing.assert_array_equal(copy.load_features([1]), whole.load_features([1]))
    np.testing.assert_array_equal(copy.load_frame_index(), whole.load_frame_index())
    assert (copy.text_weights, copy.text_config) == (TEXT, whole.text_config)
    assert status(url).finished
    assert pickle.loads(pickle.dumps(copy)).load_features().shape == (150, 2, 4, 8)


def test_copy_at_a_url_is_inspected_verified_compared_and_exported(
    whole: LocalStore, url: str, tmp_path: Path
) -> None:
    assert verify(url) == verify(url, deep=True) == []
    found = inspect(url)
    assert (found.digest, found.status.total) == (whole.digest, 3)
    assert found.size_bytes == sum(size for size, *_ in whole.manifest["files"].values())
    assert diff(url, whole.path).same_digest
    assert export_store(url, tmp_path / "s.h5") == whole.digest


def test_damage_on_a_web_server_is_found(whole: LocalStore, web: WebServer, tmp_path: Path) -> None:
    url, folder = copy_of(whole.path, "http", web, tmp_path), tmp_path / "s.zarr"
    flip(folder / "features/c.1.0.0.0")
    with pytest.raises(DamagedError, match=rf"{url}/features/c\.1\.0\.0\.0 is damaged .*copy"):
        open_store(url).load_features()
    flip(folder / "text.safetensors", 3)
    with pytest.raises(DamagedError, match="safetensors changed since extraction"):
        _ = open_store(url).text_weights
    damaged = [("content", "features/c.1.0.0.0"), ("content", "text.safetensors")]
    assert kinds(verify(url, deep=True)) == damaged
    assert verify(url) == []
    with (folder / "rows/0.1").open("ab") as file:
        file.write(b" ")
    with pytest.raises(DamagedError, match=r"rows/0\.1 has \d+ bytes, expected"):
        open_store(url)
    (folder / "frame_index/c.0.1.0").unlink()
    with pytest.raises(DamagedError, match=r"frame_index/c\.0\.1\.0 is missing"):
        open_store(url)
    assert kinds(verify(url)) == [("missing", "frame_index/c.0.1.0"), ("size", "rows/0.1")]
    flip(folder / "zarr.json", 3)
    assert ("content", "zarr.json") in kinds(verify(url))


def test_damaged_copy_in_memory_is_refused(
    whole: LocalStore, web: WebServer, tmp_path: Path
) -> None:
    url = copy_of(whole.path, "memory", web, tmp_path)
    memory = fsspec.filesystem("memory")
    chunk = "/copies/s.zarr/features/c.2.1.0.0"
    memory.pipe(chunk, memory.cat(chunk)[::-1])
    with pytest.raises(DamagedError, match=r"c\.2\.1\.0\.0 is damaged"):
        open_store(url).load_features()
    memory.rm(chunk)
    with pytest.raises(DamagedError, match=r"c\.2\.1\.0\.0 is missing"):
        open_store(url)


def test_chunks_come_from_a_web_server_at_the_same_time_and_once(
    whole: LocalStore, web: WebServer, tmp_path: Path
) -> None:
    store = open_store(copy_of(whole.path, "http", web, tmp_path))
    web.asked.clear()
    # No request is served before all six have arrived.
    web.before_chunk = threading.Barrier(6, timeout=20).wait
    store.load_features()
    asked = [("GET", f"/s.zarr/features/c.{b}.{v}.0.0") for b in range(3) for v in range(2)]
    assert sorted(web.asked) == asked


def test_server_that_goes_away_is_not_damage(
    whole: LocalStore, web: WebServer, tmp_path: Path
) -> None:
    url = copy_of(whole.path, "http", web, tmp_path)
    store = open_store(url)
    web.stop()
    for read in (store.load_features, lambda: open_store(url), lambda: verify(url)):
        with pytest.raises(StorageError, match=rf"cannot read {url}/.*check the address"):
            read()
    with pytest.raises(StorageError, match="cannot read"):
        (store_path(url) / "plan.json").is_file()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"10000\r\n" + bytes(1 << 16) + b"\r\n"


@pytest.fixture
def served() -> Iterator[Callable[..., str]]:
    """Start a server that answers with some bytes, then repeats others; returns its address."""
    sockets = []

    def answer(connection: socket.socket, first: bytes, again: bytes, pause: float) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(first)
            while again:
                connection.sendall(again)
                time.sleep(pause)
            time.sleep(pause)

    def start(first: bytes = b"", again: bytes = b"", pause: float = 0) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    given = (connection, first, again, pause)
                    threading.Thread(target=answer, args=given, daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/s.zarr"

    yield start
    for server in sockets:
        server.close()


def test_silent_and_dripping_servers_are_given_up_within_seconds(
    served: Callable[..., str],
) -> None:
    length = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    urls = [
        served(pause=60),
        served(length + b"abc", pause=60),
        served(CHUNKED, b"1\r\na\r\n", 1),
    ]

    def message(url: str) -> str:
        with pytest.raises(StorageError) as refused:
            open_store(url)
        return str(refused.value)

    started = time.monotonic()
    with ThreadPoolExecutor(len(urls)) as pool:
        for url, said in zip(urls, pool.map(message, urls), strict=True):
            assert said.startswith(f"cannot read {url}/plan.json: silent, or slower than 1024")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((b"\0\xff" * 5000,), "cannot read .*Bad status line"),
        ((CHUNKED, ENDLESS), "cannot open .*/s.zarr/plan.json has more than 268435456 bytes"),
        (
            (b"HTTP/1.1 302 Found\r\nLocation: /s.zarr\r\nConnection: close\r\n\r\n",),
            "cannot read .*TooManyRedirects",
        ),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[[[[[[[[[",), "is not the plan of a"),
    ],
)
def test_answer_that_is_none_or_has_no_end_is_refused(
    served: Callable[..., str], answer: tuple[bytes, ...], message: str
) -> None:
    with pytest.raises((StorageError, RefusedError), match=message):
        open_store(served(*answer))


def test_server_that_falls_silent_is_waited_for_once(
    whole: LocalStore, web: WebServer, tmp_path: Path
) -> None:
    store = open_store(copy_of(whole.path, "http", web, tmp_path))
    released = threading.Event()
    web.before_chunk = released.wait
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"c\.0\.0\.0\.0: silent, or slower"):
        store.load_features()
    with pytest.raises(StorageError, match="silent, or slower"):
        store.load_frame_index()
    assert time.monotonic() - started < 10
    released.set()


def test_archive_is_not_unpacked_beyond_a_limit(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("s.zarr/plan.json", "w") as file:
            for _ in range(257):
                file.write(bytes(1 << 20))
        archive.writestr("../outside", "x")
        archive.writestr("/absolute", "x")
    with pytest.raises(
        RefusedError, match=r"cannot open zip://.*plan\.json has more than 268435456"
    ):
        open_store(f"zip://s.zarr::{tmp_path}/s.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zip"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nothing.zarr", "no store at memory://nothing.zarr: there is no plan.json"),
        ("zip://s.zarr::nothing.zip", "no store at zip://s.zarr::nothing.zip"),
        ("nonsense://s.zarr", "cannot open nonsense://s.zarr: Protocol not known: nonsense"),
        ("oci://bucket/s.zarr", "cannot open oci://bucket/s.zarr: .*ocifs.* with pip"),
    ],
)
def test_url_without_a_store_is_refused(url: str, message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        open_store(url)


def test_file_that_is_not_an_archive_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "s.zip").write_bytes(b"no archive")
    with pytest.raises(StorageError, match=r"cannot read zip://s\.zarr::.*not a zip file"):
        open_store(f"zip://s.zarr::{tmp_path}/s.zip")


def test_unfinished_copy_is_refused(tmp_path: Path, web: WebServer) -> None:
    writer = create_store(tmp_path / "s.zarr", make_plan(), fixed_files())
    fill(writer, only=1)
    for read in (open_store, status, inspect, verify):
        with pytest.raises(RefusedError, match=r"unfinished: it has no manifest\.json; finish"):
            read(f"{web.url}/s.zarr")


def test_names_inside_a_chained_url_keep_the_rest_of_it() -> None:
    chained = store_path("zip://s.zarr::https://host/s.zip") / "rows/0.1"
    assert str(chained) == "zip://s.zarr/rows/0.1::https://host/s.zip"
    assert str(chained.parent.parent) == "zip://s.zarr::https://host/s.zip"
    assert str(store_path("simplecache::s3://b/s/") / "a") == "simplecache::s3://b/s/a"
    assert store_path("data/s.zarr") == Path("data/s.zarr")


def test_nothing_is_written_at_a_url(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="memory://s can only be read; write the store to"):
        create_store("memory://s", make_plan(), fixed_files())
    with pytest.raises(RefusedError, match="can only be read"):
        plan_repair("memory://s")
    (tmp_path / "features").mkdir()
    for command in (
        ["extract", "--store", "s3://bucket/s.zarr"],
        ["store", "repair", "s3://bucket/s.zarr"],
        ["store", "import", "features", "s3://bucket/s.zarr"],
    ):
        done = tgdfer(*command, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert "error: s3://bucket/s.zarr can only be read; write the store to a" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


def test_training_from_an_archive_or_a_web_server_leaves_the_same_files(
    tmp_path: Path, web: WebServer
) -> None:
    local = random_store(tmp_path / "local.zarr", videos=14)
    urls = [copy_of(local.path, kind, web, tmp_path / kind) for kind in ("zip", "http")]
    urls[1] = urls[1].replace("/s.zarr", "/http/s.zarr")
    results = []
    for number, store in enumerate([local.path, *urls]):
        options = ["--store", store, "--runs", f"runs{number}", "--workers", 1, *SMALL]
        # A worker that is forked has no thread of fsspec's, which reads from the web.
        how: Start = "spawn" if store == urls[1] else "fork"
        done = tgdfer("train", "--fold", 1, *options, cwd=tmp_path, workers=how)
        assert done.returncode == 0, done.stderr
        (result,) = (tmp_path / f"runs{number}").glob("*/result.json")
        results.append((result.parent.name, json.loads(result.read_text())["sha256"]))
    assert results[0] == results[1] == results[2]
    assert "checkpoint.safetensors" in results[0][1]

    command = ["train", "--store", urls[1], "--runs", "again", "--workers", 1, *SMALL]
    flip(tmp_path / "http/s.zarr/features/c.0.0.0.0")
    done = tgdfer(*command, cwd=tmp_path, workers="spawn")
    assert done.returncode == 2, done.stderr
    assert f"error: {urls[1]}/features/c.0.0.0.0 is damaged (crc32c)" in done.stderr
    shutil.rmtree(tmp_path / "http")
    done = tgdfer(*command, cwd=tmp_path)
    assert (done.returncode, f"no store at {urls[1]}:" in done.stderr) == (2, True), done.stderr
    web.stop()
    done = tgdfer(*command, cwd=tmp_path)
    assert (done.returncode, f"cannot read {urls[1]}" in done.stderr) == (5, True), done.stderr


def test_store_in_memory_is_trained_in_this_process(tmp_path: Path, web: WebServer) -> None:
    local = random_store(tmp_path / "local.zarr", videos=14)
    copy = store_path(copy_of(local.path, "memory", web, tmp_path))
    method = load_method("paper", ["optimiser.epochs=1"])
    runs = [Run(method=method, fold=fold, seed=0) for fold in "12"]
    scores = []
    for name, store, workers in (("local", local.path, 0), ("memory", copy, 2)):
        records = Records(tmp_path / name, open_store(store))
        train_runs(runs, records, "cpu", workers=workers)
        scores.append([found.result for run in runs if (found := records.find(run))])
    assert len(scores[0]) == 2
    first, second = ([result["sha256"] for result in own if result] for own in scores)
    assert first == second
