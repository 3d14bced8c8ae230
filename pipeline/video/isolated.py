"""A video that may kill or hang its decoder -> its frames, decoded in a separate process.

::

    this process     a server, started once        a decoder
    Decoder ───────> has imported all ──── fork ─> decodes one video after the other

A decoder is told, in JSON lines, which video to decode.  It answers with JSON lines: when the
frames are shown, if asked, how many there are and, after being told which are wanted, each of them
followed by its bytes.  It limits its own time and memory, so that the limits hold whatever becomes
of the process that asked for it.
"""

import json
import math
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import IO, Any, cast
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from pipeline.interrupt import end_with
from pipeline.video.frames import Choose, Found, Take, read_frames, read_times
from pipeline.video.images import BadVideoError

# More than frames of the largest size need; a header may promise a table of any size.
MEMORY_BYTES = 4 << 30
_WORD_BYTES = 32  # of what the server is told, and of what it answers

TakeTimes = Callable[[NDArray[np.float64]], None]


class DecoderDeathError(BadVideoError):
    """The decoder of a video died or did not finish."""


def read_frames_isolated(path: Path, choose: Choose, take: Take, seconds_max: float) -> Found:
    """``read_frames`` in a separate process, for at most ``seconds_max`` seconds.

    Raises DecoderDeathError if that process dies or hangs, else what ``read_frames`` raises.
    """
    with Decoder() as decoder:
        return decoder.read_frames(path, choose, take, seconds_max)


class Decoder:
    """A process that decodes one video after the other; started when needed, again if it died.

    It ends with the process that asked for it.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None
        self._closed = False

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_frames(
        self,
        path: Path,
        choose: Choose,
        take: Take,
        seconds_max: float,
        take_times: TakeTimes | None = None,
    ) -> Found:
        """As ``read_frames_isolated``; ``take_times`` first gets what ``read_times`` returns."""
        child = self._child = self._child or self._start()
        try:
            _send(child.stream, [os.path.abspath(path), seconds_max, take_times is not None])
            found = _converse(child.stream, choose, take, take_times)
        except ConnectionError:
            found = None
        except BaseException:
            child.kill()
            self._end()
            raise
        if isinstance(found, Found):
            return found
        if found is not None:
            raise BadVideoError(found)
        code = self._end()
        if code == -signal.SIGALRM:
            raise DecoderDeathError(
                f"hangs its decoder: not finished after {seconds_max:g} seconds"
            )
        if code < 0:
            raise DecoderDeathError(f"kills its decoder ({signal.Signals(-code).name})")
        raise RuntimeError(f"the process that decoded {path} ended with code {code}")

    def kill(self) -> None:
        """End the process from any thread; whoever waits for its frames gets DecoderDeathError."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()

    def close(self) -> None:
        """End the process, while nobody uses it."""
        self.kill()
        self._end()

    def _start(self) -> "_Child":
        if self._closed:
            raise DecoderDeathError("its decoder was closed")
        return _server().start()

    def _end(self) -> int:
        child, self._child = self._child, None
        return 0 if child is None else child.end()


class _Child:
    """A decoder, and the stream of what it is told and answers."""

    def __init__(self, server: "_Server", pid: int, line: socket.socket) -> None:
        self._server, self._pid = server, pid
        self._has_ended, self._ending = False, Lock()
        with line:  # the stream keeps it open
            self.stream = _stream(line)

    def kill(self) -> None:
        """End it, from any thread."""
        with self._ending:
            if not self._has_ended:
                os.kill(self._pid, signal.SIGKILL)

    def end(self) -> int:
        """Wait for its exit code, negative for a signal."""
        with suppress(ConnectionError):
            self.stream.close()
        with self._ending:
            self._has_ended = True  # from here on, the number may be another process's
            return self._server.wait(self._pid)


class _Server:
    """A process that becomes decoders by fork, which takes no time once it has imported all.

    It ends with this process, and all of them with it.
    """

    def __init__(self) -> None:
        self._line, theirs = socket.socketpair()
        self._asking = Lock()
        with theirs:
            number = theirs.fileno()
            paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
            # A new session, so that Ctrl-C does not kill the decoders.
            self._process = subprocess.Popen(
                # -P, since the present folder may be somebody else's.
                [sys.executable, "-P", "-m", "pipeline.video.isolated", str(number)],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,
            )
        finalize(self, _end_server, self._line, self._process)

    @property
    def is_alive(self) -> bool:
        """Whether it can still be asked."""
        return self._line.fileno() >= 0 and self._process.poll() is None

    def start(self) -> _Child:
        """Another decoder."""
        ours, theirs = socket.socketpair()
        with theirs:
            pid = self._ask(b"start", [theirs.fileno()])
        if pid is None:
            raise RuntimeError("the process that starts decoders has ended")
        return _Child(self, pid, ours)

    def wait(self, pid: int) -> int:
        """The exit code of a decoder that ends."""
        code = self._ask(b"%d" % pid)
        return -signal.SIGKILL if code is None else code

    def _ask(self, word: bytes, handles: Sequence[int] = ()) -> int | None:
        with self._asking:
            try:
                socket.send_fds(self._line, [word], handles)
                answer = self._line.recv(_WORD_BYTES)
            except ConnectionError:
                return None
            except BaseException:  # its answer would be taken for that to the next question
                self._line.close()
                raise
        return int(answer) if answer else None


def _end_server(line: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    line.close()
    process.kill()
    process.wait()


_servers: dict[int, _Server] = {}  # of this process; what is forked from it needs its own
_finding = Lock()


def _server() -> _Server:
    with _finding:
        own = _servers.get(os.getpid())
        if own is None or not own.is_alive:
            own = _servers[os.getpid()] = _Server()
        return own


def _stream(line: socket.socket) -> IO[bytes]:
    return cast(IO[bytes], line.makefile("rwb"))


def _send(stream: IO[bytes], value: Any) -> None:
    stream.write(json.dumps(value).encode() + b"\n")
    stream.flush()


def _converse(
    stream: IO[bytes], choose: Choose, take: Take, take_times: TakeTimes | None
) -> Found | str | None:
    """What the other process found, or the reason why nothing; None if it ended midway."""
    while (line := stream.readline()).endswith(b"\n"):
        kind, value = json.loads(line)
        if kind == "times":
            assert take_times is not None
            take_times(np.array(value, np.float64))
        elif kind == "choose":
            _send(stream, sorted(choose(value)))
        elif kind == "take":
            index, shape = value
            size = math.prod(shape)
            data = bytearray(stream.read(size))
            if len(data) < size:
                return None
            take(index, np.frombuffer(data, np.uint8).reshape(shape))
        elif kind == "bad":
            return str(value)
        else:
            frames, sha256, flags = value
            return Found(frames, sha256, tuple(flags))
    return None


def main() -> None:
    """The other process: start decoders, and in each of them decode the videos that it is told."""
    os.dup2(2, 1)  # what libraries print
    line, server = socket.socket(fileno=int(sys.argv[1])), os.getpid()
    if (number := _serve(line)) is not None:
        end_with(server)
        line.close()
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        _work(_stream(socket.socket(fileno=number)))
    os._exit(0)


def _serve(line: socket.socket) -> int | None:
    """Returns in every decoder, with the number of its socket; None when nobody asks any more."""
    while True:
        word, numbers, _, _ = socket.recv_fds(line, _WORD_BYTES, 1)
        if numbers:
            if (pid := os.fork()) == 0:
                return numbers[0]
            os.close(numbers[0])
            line.sendall(b"%d" % pid)
        elif word:
            _, status = os.waitpid(int(word), 0)
            line.sendall(b"%d" % os.waitstatus_to_exitcode(status))
        else:
            return None


def _work(stream: IO[bytes]) -> None:
    with suppress(ConnectionError):  # nobody is reading any more
        while told := stream.readline():
            path, seconds_max, with_times = json.loads(told)
            signal.setitimer(signal.ITIMER_REAL, seconds_max)
            _decode(Path(path), with_times, stream)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _decode(path: Path, with_times: bool, stream: IO[bytes]) -> None:
    def tell(kind: str, value: Any, data: bytes = b"") -> None:
        stream.write(json.dumps([kind, value]).encode() + b"\n" + data)
        stream.flush()

    def choose(frames: int) -> list[int]:
        tell("choose", frames)
        line = stream.readline()
        if not line:
            os._exit(0)
        return list(json.loads(line))

    try:
        if with_times:
            tell("times", read_times(path).tolist())
        found = read_frames(
            path, choose, lambda i, rgb: tell("take", [i, rgb.shape], rgb.tobytes())
        )
    except BadVideoError as error:
        tell("bad", str(error))
    else:
        tell("found", [found.frames, found.sha256, found.flags])


if __name__ == "__main__":
    main()
