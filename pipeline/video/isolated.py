"""A video that may kill or hang its decoder -> its frames, decoded in a separate process.

The process writes JSON lines: how many frames there are and, after being told which are wanted,
each of them followed by its bytes.  It limits its own time and memory, so that the limits hold
whatever becomes of the process that started it.
"""

import json
import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from pipeline.interrupt import end_with
from pipeline.video.frames import Choose, Found, Take, read_frames
from pipeline.video.images import BadVideoError

# More than frames of the largest size need; a header may promise a table of any size.
MEMORY_BYTES = 4 << 30


class DecoderDeathError(BadVideoError):
    """The decoder of a video died or did not finish."""


def read_frames_isolated(path: Path, choose: Choose, take: Take, seconds_max: float) -> Found:
    """``read_frames`` in a separate process, for at most ``seconds_max`` seconds.

    Raises DecoderDeathError if that process dies or hangs, else what ``read_frames`` raises.
    """
    command = [sys.executable, "-m", "pipeline.video.isolated"]
    command += [str(path), str(seconds_max), str(os.getpid())]
    # A new session, so that Ctrl-C does not kill the decoder; it ends with this process.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            found = _converse(child.stdin, child.stdout, choose, take)
        except BrokenPipeError:
            found = None
        except BaseException:
            child.kill()
            raise
    if found is not None:
        return found
    code = child.returncode
    if code == -signal.SIGALRM:
        raise DecoderDeathError(f"hangs its decoder: not finished after {seconds_max:g} seconds")
    if code < 0:
        raise DecoderDeathError(f"kills its decoder ({signal.Signals(-code).name})")
    raise RuntimeError(f"the process that decoded {path} ended with exit code {code}")


def _converse(ask: IO[bytes], answer: IO[bytes], choose: Choose, take: Take) -> Found | None:
    """What the other process found; None if it ended midway."""
    while (line := answer.readline()).endswith(b"\n"):
        kind, value = json.loads(line)
        if kind == "choose":
            ask.write(json.dumps(sorted(choose(value))).encode() + b"\n")
            ask.flush()
        elif kind == "take":
            index, shape = value
            size = math.prod(shape)
            data = bytearray(answer.read(size))
            if len(data) < size:
                return None
            take(index, np.frombuffer(data, np.uint8).reshape(shape))
        elif kind == "bad":
            raise BadVideoError(value)
        else:
            frames, sha256, flags = value
            return Found(frames, sha256, tuple(flags))
    return None


def main(path: Path, seconds_max: float) -> None:
    """The other process: decode ``path`` and write what is found to standard output."""
    signal.setitimer(signal.ITIMER_REAL, seconds_max)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    # What libraries print must not mix with the answers.
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)

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
            found = read_frames(
                path, choose, lambda i, rgb: tell("take", [i, rgb.shape], rgb.tobytes())
            )
        except BadVideoError as error:
            tell("bad", str(error))
        else:
            tell("found", [found.frames, found.sha256, found.flags])


if __name__ == "__main__":
    end_with(int(sys.argv[3]))
    main(Path(sys.argv[1]), float(sys.argv[2]))
