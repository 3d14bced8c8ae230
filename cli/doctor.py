"""tgdfer doctor: what works on this machine, and how to fix what does not."""

import fcntl
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from cli.show import next_step, show
from pipeline.resources import (
    CGROUPS,
    OWN_CGROUPS,
    available_bytes,
    cpu_quotas,
    memory_limits,
    usable_cores,
)

UNUSABLE = 1
GIB = 2**30
FREE_GIB, MEMORY_GIB, FSYNC_SECONDS = 2, 2, 0.25  # less or slower than this is worth a warning
ENCODER, TAG = "ViT-B-32-quickgelu", "openai"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
DECODERS = ("h264", "hevc", "vp9", "mpeg4")
PACKAGES = ("cache", "pipeline", "cli")


@dataclass(frozen=True)
class Check:
    """The result of one check; ``remedy`` says how to fix a problem."""

    name: str
    status: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def doctor(
    path: Annotated[
        Path, typer.Option("--path", metavar="DIR", help="Folder whose disk and locks are tested.")
    ] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: libraries, devices, disk, memory, weights.

    Every line is ok, warn or fail, with a remedy for problems. The exit code is 1 if something
    fails that tgdfer needs. Nothing is downloaded, and nothing is left on the disk.

    \b
    tgdfer doctor
    tgdfer doctor --path /data --json
    """
    found = examine(path)
    if as_json:
        print(json.dumps([asdict(check) for check in found], indent=2))
    else:
        for check in found:
            print(f"{check.status:<4}  {check.name:<8}  {show(check.found)}")
            if check.remedy:
                print(f"{'':<16}{show(check.remedy)}")
    if any(check.status == "fail" for check in found):
        raise typer.Exit(UNUSABLE)
    next_step("tgdfer", "extract")


def examine(folder: Path) -> list[Check]:
    """Run every check; one that raises an error has failed."""
    checks: dict[str, Callable[[], Check]] = {
        "python": check_python,
        "modules": lambda: check_modules([folder, Path.cwd(), *map(Path, sys.path)]),
        "torch": check_torch,
        "device": check_device,
        "triton": check_triton,
        "videos": check_videos,
        "jpeg": check_jpeg,
        "disk": lambda: check_disk(folder),
        "locks": lambda: check_locks(folder),
        "memory": check_memory,
        "cores": check_cores,
        "mini": check_mini,
        "weights": check_weights,
    }
    return [_made(name, check) for name, check in checks.items()]


def _made(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except OSError as error:
        remedy = "choose a writable folder with --path"
        return Check(name, "fail", f"{error}", remedy)
    except Exception as error:
        remedy = "reinstall tgdfer in a fresh environment with make setup"
        return Check(name, "fail", f"{type(error).__name__}: {error}", remedy)


def check_python() -> Check:
    """The interpreter and the platform."""
    found = f"{platform.python_version()}, tgdfer {version('tgdfer')}, {platform.platform()}"
    return Check("python", "ok", found)


def check_modules(folders: list[Path]) -> Check:
    """Files of others that hide our packages from a program started beside them."""
    home = Path(__file__).resolve().parents[1]
    places = dict.fromkeys(folder.resolve() for folder in folders)
    names = [file for name in PACKAGES for file in (f"{name}.py", f"{name}/__init__.py")]
    files = [place / name for place in places if place != home for name in names]
    hiding = [file for file in files if file.is_file()]
    if not hiding:
        return Check("modules", "ok", "nothing hides tgdfer's packages")
    found = f"{', '.join(map(str, hiding))} can hide a package of tgdfer"
    return Check("modules", "warn", found, "rename what is yours, or keep it off the Python path")


def check_torch() -> Check:
    """PyTorch and its build."""
    import torch

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "CPU only"
    return Check("torch", "ok", f"{torch.__version__}, built for {build}")


def check_device() -> Check:
    """GPUs, or the CPU, and the precision that auto chooses on them."""
    import torch

    from pipeline.encoders.clip import choose_precision

    if torch.cuda.is_available():
        gpus = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        names = ", ".join(f"{gpu.name} ({gpu.total_memory / GIB:.0f} GiB)" for gpu in gpus)
        return Check("device", "ok", f"{names}; auto is {choose_precision('auto', 'cuda')}")
    if Path("/proc/driver/nvidia/version").exists():
        remedy = "install a build of torch for the CUDA version that nvidia-smi shows"
        return Check("device", "warn", "a GPU that this torch cannot use", remedy)
    return Check("device", "ok", f"CPU, no GPU; auto is {choose_precision('auto', 'cpu')}")


def check_triton() -> Check:
    """The compiler of the GPU kernels."""
    import torch

    if find_spec("triton"):
        return Check("triton", "ok", version("triton"))
    if torch.cuda.is_available():
        remedy = "pip install triton: the GPU kernels need it"
        return Check("triton", "warn", "not installed", remedy)
    return Check("triton", "ok", "not installed, and not needed without a GPU")


def check_videos(decoders: Sequence[str] = DECODERS) -> Check:
    """PyAV and its decoders for common videos."""
    import av

    missing = [name for name in decoders if not _decodes(name)]
    if missing:
        found = f"PyAV {av.__version__} without {', '.join(missing)}"
        remedy = "pip install --force-reinstall --only-binary av av: its wheels include them"
        return Check("videos", "warn", found, remedy)
    return Check("videos", "ok", f"PyAV {av.__version__} decodes {', '.join(decoders)}")


def _decodes(name: str) -> bool:
    import av

    try:
        av.codec.Codec(name, "r")
    except ValueError:  # PyAV's UnknownCodecError is one
        return False
    return True


def check_jpeg() -> Check:
    """The decoder for folders of frames."""
    import numpy as np
    import simplejpeg

    simplejpeg.decode_jpeg(simplejpeg.encode_jpeg(np.zeros((8, 8, 3), np.uint8)))
    return Check("jpeg", "ok", f"simplejpeg {version('simplejpeg')}")


def check_disk(folder: Path) -> Check:
    """Free space, and how long fsync takes to make a MiB safe from a power cut."""
    free = shutil.disk_usage(folder).free / GIB
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
        started = time.perf_counter()
        file.flush()
        os.fsync(file.fileno())
        seconds = time.perf_counter() - started
    found = f"{free:.1f} GiB free in {folder.resolve()}, fsync takes {1000 * seconds:.0f} ms"
    if free < FREE_GIB:
        return Check("disk", "warn", found, "16,000 videos of 5 views take 1.3 GiB; make room")
    if seconds > FSYNC_SECONDS:
        return Check("disk", "warn", found, "extract into a folder on a local disk")
    return Check("disk", "ok", found)


def check_locks(folder: Path) -> Check:
    """Whether two processes can share a store in that folder."""
    with tempfile.NamedTemporaryFile(dir=folder) as first, open(first.name) as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Check("locks", "ok", f"flock works in {folder.resolve()}")
        except OSError as error:
            reason = f"no flock: {error.strerror}"
        else:
            reason = "flock does not keep a second process out"
    remedy = "give each process its own part of the videos: extract --shard I/N"
    return Check("locks", "warn", reason, remedy)


def check_memory() -> Check:
    """The machine's free memory, and this process's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    limits = memory_limits(CGROUPS, OWN_CGROUPS)
    free = available_bytes() / GIB
    found = f"{sizes['MemAvailable'] / GIB:.1f} of {sizes['MemTotal'] / GIB:.1f} GiB available"
    found += f", limited to {min(limits) / GIB:.1f} GiB by a cgroup" if limits else ""
    if free < MEMORY_GIB:
        return Check("memory", "warn", found, "use --workers 1, and close other programs")
    return Check("memory", "ok", found)


def check_cores() -> Check:
    """The cores that this process may use."""
    usable, quotas = len(os.sched_getaffinity(0)), cpu_quotas(CGROUPS, OWN_CGROUPS)
    found = f"{usable} of {os.cpu_count()}"
    if quotas and min(quotas) < usable:
        found += f", a cgroup allows {min(quotas):.1f}: one worker for each of {usable_cores()}"
    return Check("cores", "ok", found)


def check_mini() -> Check:
    """The bundled encoder."""
    from pipeline.encoders.clip import find_encoder
    from pipeline.weights import TENSORS

    digest = find_encoder("mini").identity.weights_sha256.removeprefix(TENSORS)
    return Check("mini", "ok", f"the bundled encoder is available (sha256 {digest[:12]})")


def check_weights() -> Check:
    """OpenAI's weights, if open_clip can find them without the network."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    known = open_clip.get_pretrained_cfg(ENCODER, TAG)
    repository = known["hf_hub"].rstrip("/")
    here = [try_to_load_from_cache(repository, name) for name in WEIGHTS]
    for file in (*here, Path("~/.cache/clip").expanduser() / Path(known["url"]).name):
        if isinstance(file, (str, Path)) and Path(file).is_file():
            return Check("weights", "ok", f"{ENCODER}, {TAG}: {file}")
    remedy = f"--encoder {ENCODER} downloads them; without a network: --pretrained FILE"
    return Check("weights", "warn", f"{ENCODER}, {TAG}: not on this machine", remedy)
