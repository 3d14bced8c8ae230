"""Web servers that do not answer as they should."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"


def _silent(client: socket.socket, stopped: threading.Event) -> None:
    stopped.wait()


def _garbage(client: socket.socket, stopped: threading.Event) -> None:
    client.sendall(bytes(range(256)) * 16)


def _endless(client: socket.socket, stopped: threading.Event) -> None:
    client.sendall(HEAD + b"\r\n")
    while not stopped.is_set():
        client.sendall(bytes(1 << 16))


def _dripping(client: socket.socket, stopped: threading.Event) -> None:
    client.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
    while not stopped.wait(0.5):
        client.sendall(b"x")


def _loop(client: socket.socket, stopped: threading.Event) -> None:
    client.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")


def _short(client: socket.socket, stopped: threading.Event) -> None:
    client.sendall(HEAD + b"Content-Length: 100000\r\n\r\n{}")


ANSWERS: dict[str, Callable[[socket.socket, threading.Event], None]] = {
    "silent": _silent,
    "garbage": _garbage,
    "endless": _endless,
    "dripping": _dripping,
    "loop": _loop,
    "short": _short,
}


@contextmanager
def hostile_servers() -> Iterator[dict[str, str]]:
    """Kind of server -> its address."""
    stopped = threading.Event()
    servers = {name: socket.create_server(("127.0.0.1", 0)) for name in ANSWERS}
    for name, server in servers.items():
        threading.Thread(target=_serve, args=(server, ANSWERS[name], stopped), daemon=True).start()
    yield {name: f"http://127.0.0.1:{server.getsockname()[1]}" for name, server in servers.items()}
    stopped.set()
    for server in servers.values():
        server.close()


def _serve(
    server: socket.socket,
    answer: Callable[[socket.socket, threading.Event], None],
    stopped: threading.Event,
) -> None:
    with suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_answer, args=(client, answer, stopped), daemon=True).start()


def _answer(
    client: socket.socket,
    answer: Callable[[socket.socket, threading.Event], None],
    stopped: threading.Event,
) -> None:
    with client, suppress(OSError):
        client.recv(65536)
        answer(client, stopped)
