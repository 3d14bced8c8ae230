"""A video that may kill or hang its decoder -> its frames, decoded in a separate process.

The process is told, in JSON lines, which video to decode.  It answers with JSON lines: when the
frames are shown, if asked, how many there are and, after being told which are wanted, each of them
followed by its bytes.  It limits its own time and memory, so that the limits hold whatever becomes
of the process that started it.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.interrupt import end_with
from pipeline.video.frames import Choose, Found, Take, read_frames, read_times
from pipeline.video.images import BadVideoError

# More than frames of the largest size need; a header may promise a table of any size.
MEMORY_BYTES = 4 << 30

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

    It ends with the thread that started it.
    """

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
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
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _send(child.stdin, [os.path.abspath(path), seconds_max, take_times is not None])
            found = _converse(child.stdin, child.stdout, choose, take, take_times)
        except BrokenPipeError:
            found = None
        except BaseException:
            self._end()
            raise
        if isinstance(found, Found):
            return found
        if found is not None:
            raise BadVideoError(found)
        self._end(kill=False)
        if child.returncode == -signal.SIGALRM:
            raise DecoderDeathError(
                f"hangs its decoder: not finished after {seconds_max:g} seconds"
            )
        if child.returncode < 0:
            raise DecoderDeathError(f"kills its decoder ({signal.Signals(-child.returncode).name})")
        raise RuntimeError(f"the process that decoded {path} ended with code {child.returncode}")

    def kill(self) -> None:
        """End the process from any thread; whoever waits for its frames gets DecoderDeathError."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()

    def close(self) -> None:
        """End the process, while nobody uses it."""
        self.kill()
        self._end()

    def _start(self) -> subprocess.Popen[bytes]:
        if self._closed:
            raise DecoderDeathError("its decoder was closed")
        command = [sys.executable, "-m", "pipeline.video.isolated", str(os.getpid())]
        # A new session, so that Ctrl-C does not kill the decoder.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )

    def _end(self, kill: bool = True) -> None:
        child, self._child = self._child, None
        if child is not None:
            with suppress(BrokenPipeError), child:  # closes its pipes, and waits
                if kill:
                    child.kill()


def _send(stream: IO[bytes], value: Any) -> None:
    stream.write(json.dumps(value).encode() + b"\n")
    stream.flush()


def _converse(
    ask: IO[bytes], answer: IO[bytes], choose: Choose, take: Take, take_times: TakeTimes | None
) -> Found | str | None:
    """What the other process found, or the reason why nothing; None if it ended midway."""
    while (line := answer.readline()).endswith(b"\n"):
        kind, value = json.loads(line)
        if kind == "times":
            assert take_times is not None
            take_times(np.array(value, np.float64))
        elif kind == "choose":
            _send(ask, sorted(choose(value)))
        elif kind == "take":
            index, shape = value
            size = math.prod(shape)
            data = bytearray(answer.read(size))
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
    """The other process: decode the videos that standard input names, until it ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # What libraries print must not mix with the answers.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)
        while line := sys.stdin.buffer.readline():
            path, seconds_max, with_times = json.loads(line)
            signal.setitimer(signal.ITIMER_REAL, seconds_max)
            _decode(Path(path), with_times, answer)
            signal.setitimer(signal.ITIMER_REAL, 0)


def _decode(path: Path, with_times: bool, answer: IO[bytes]) -> None:
    def tell(kind: str, value: Any, data: bytes = b"") -> None:
        try:
            answer.write(json.dumps([kind, value]).encode() + b"\n" + data)
            answer.flush()
        except BrokenPipeError:
            os._exit(0)  # nobody is reading any more

    def choose(frames: int) -> list[int]:
        tell("choose", frames)
        line = sys.stdin.buffer.readline()
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
    end_with(int(sys.argv[1]))
    main()
