"""Files of weights: what is hashed is what is loaded, and nothing in them is executed."""

import argparse
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import BaseRequestHandler, TCPServer
from threading import Thread
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save, save_file

from cache.errors import RefusedError
from cache.files import sha256_file
from cache.identity import EncoderIdentity
from cli.extract import open_source
from cli.options import Data
from pipeline.encoders.clip import OPENAI, Encoder, EncoderFiles, find_encoder
from pipeline.weights import read_weights
from support.sources import SIZE_PX, write_encoder

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "encoder"
    write_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def state(folder: Path) -> State:
    return dict(load_file(folder / "w.safetensors"))


@pytest.fixture(scope="module")
def scripted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a TorchScript archive, with the constants that OpenAI's archives have."""
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    for name, value in {"input_resolution": SIZE_PX, "context_length": 77}.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    example = torch.zeros(1, 3, SIZE_PX, SIZE_PX), torch.zeros(1, 77, dtype=torch.long)
    path = tmp_path_factory.mktemp("jit") / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenAI's archives are as old as this way to make them
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), path)
    return path


def beside(folder: Path, here: Path, weights: dict[str, bytes]) -> Path:
    """A folder of the same name and configuration with other files of weights."""
    new = here / folder.name
    new.mkdir(parents=True)
    shutil.copy(folder / "open_clip_config.json", new)
    for name, data in weights.items():
        (new / name).write_bytes(data)
    return new


def find(folder: Path) -> EncoderFiles:
    return find_encoder(f"local-dir:{folder}")


def saved(value: Any, legacy: bool = False) -> bytes:
    """What torch.save writes, or wrote before torch 1.6."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def checkpoint(key: str, state: State) -> dict[str, Any]:
    """What a training script saves beside its weights."""
    args = argparse.Namespace(lr=0.1, betas=(0.9, 0.95), resume="", out=Path("runs"))
    moments = {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}
    schedule = {"milestones": Counter([30, 40]), "best": np.float64(0.5)}
    optimizer = {"state": moments, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {key: state, "optimizer": optimizer, "lr_scheduler": schedule, "args": args, "epoch": 3}


def features(files: EncoderFiles) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, SIZE_PX, SIZE_PX), np.uint8)
    return Encoder(files, "cpu", "fp32").encode(torch.from_numpy(pixels)).numpy()


def test_the_same_weights_have_one_identity_and_the_same_features_in_every_format(
    folder: Path, state: State, scripted: Path, tmp_path: Path
) -> None:
    strided = {name: t.mT.contiguous().mT if t.ndim == 2 else t for name, t in state.items()}
    assert not all(t.is_contiguous() for t in strided.values())
    text = ("transformer.", "token_", "ln_final", "text_projection", "positional_embedding")
    formats = {
        "a.pt": saved(state),
        "b.bin": saved({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state.items()}}),
        "c.pth": saved({n: torch.nn.Parameter(t) for n, t in strided.items()}),
        "d.pt": scripted.read_bytes(),
        "d.pth": saved(strided, legacy=True),
        "d.bin": saved(checkpoint("model", state)),
        "d.model": saved(checkpoint("model_state", state), legacy=True),
        "e.safetensors": save(state | {"position_ids": torch.arange(77)}),
        "f.safetensors": save(
            {f"text.{n}" if n.startswith(text) else n: t for n, t in state.items()}
        ),
    }
    expected = find(folder)
    for name, data in formats.items():
        files = find(beside(folder, tmp_path / name, {name.removesuffix(".model"): data}))
        assert files.identity == expected.identity, name
        if name != "f.safetensors":  # whose names are those of another class of models
            assert np.array_equal(features(files), features(expected)), name


def test_identity_follows_every_value_name_dtype_and_setting(
    folder: Path, state: State, tmp_path: Path
) -> None:
    name = "visual.conv1.weight"
    changed = {
        "value": state | {name: state[name].clone().index_fill_(0, torch.tensor(3), 0.5)},
        "name": {("x" if n == name else n): t for n, t in state.items()},
        "dtype": state | {name: state[name].half()},
        "shape": state | {name: state[name].flatten()},
    }
    found = {find(folder).identity.weights_sha256}
    for kind, tensors in changed.items():
        files = find(beside(folder, tmp_path / kind, {"w.safetensors": save(tensors)}))
        found.add(files.identity.weights_sha256)
    config = json.loads((folder / "open_clip_config.json").read_text())
    for tower, setting in (("vision_cfg", {"head_width": 16}), ("text_cfg", {"heads": 4})):
        new = beside(folder, tmp_path / tower, {"w.safetensors": save(state)})
        config["model_cfg"][tower] |= setting
        (new / "open_clip_config.json").write_text(json.dumps(config))
        found.add(find(new).identity.weights_sha256)
    assert len(found) == 7


def test_the_weights_that_are_hashed_are_loaded_whatever_else_the_folder_holds(
    folder: Path, state: State, tmp_path: Path
) -> None:
    other = {name: tensor + 1 for name, tensor in state.items()}
    # open_clip itself prefers this name to all others.
    two = beside(
        folder,
        tmp_path,
        {"w.safetensors": save(state), "open_clip_pytorch_model.bin": saved(other)},
    )
    assert find(two).identity == find(folder).identity
    assert np.array_equal(features(find(two)), features(find(folder)))


def test_two_files_of_the_same_kind_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    two = beside(folder, tmp_path, {"a.safetensors": b"", "b.safetensors": b""})
    with pytest.raises(RefusedError, match=r"one weights file .* a\.safetensors, b\.safetensors"):
        find(two)


@pytest.mark.parametrize("rule", ["tensors", "file"])
def test_weights_changed_after_they_were_hashed_are_refused(
    folder: Path, state: State, tmp_path: Path, rule: str
) -> None:
    files = find(beside(folder, tmp_path, {"w.safetensors": save(state)}))
    if rule == "file":
        files = like_an_old_store(files)
    assert files.identity
    save_file({name: tensor + 1 for name, tensor in state.items()}, files.weights_path)
    with pytest.raises(RefusedError, match="were changed meanwhile"):
        Encoder(files, "cpu", "fp32")


def like_an_old_store(files: EncoderFiles) -> EncoderFiles:
    weights = sha256_file(files.weights_path)
    old = EncoderIdentity(name=files.name, weights_sha256=weights, activation="GELU", dim=16)
    return files.hashed_like(old)


def test_compared_with_an_old_store_an_encoder_has_the_sha256_of_its_file(folder: Path) -> None:
    files = like_an_old_store(find(folder))
    assert files.identity.weights_sha256 == sha256_file(files.weights_path)
    assert files.hashed_like(find(folder).identity).identity == find(folder).identity


class Payload:
    """Creates a file when it is unpickled, by ``eval``, ``exec`` or ``os.system``."""

    def __init__(self, call: Any, argument: str) -> None:
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.call, (self.argument,)


@pytest.mark.parametrize("call", [eval, exec, os.system])
@pytest.mark.parametrize("format_", ["state dict", "TorchScript", "before torch 1.6"])
def test_a_payload_in_a_pickle_never_runs(
    folder: Path, state: State, scripted: Path, tmp_path: Path, format_: str, call: Any
) -> None:
    ran = tmp_path / "ran"
    argument = f"touch {ran}" if call is os.system else f"open({str(ran)!r}, 'w')"
    poison = {"visual.proj": Payload(call, argument)}
    poisoned = pickle.dumps(poison, 2)
    pickle.loads(poisoned)
    assert ran.exists()  # so the payload works
    ran.unlink()
    source = scripted.read_bytes() if format_ == "TorchScript" else saved(state)
    data = with_entry(source, "data.pkl", poisoned)
    if format_ == "before torch 1.6":
        data = saved(state | poison, legacy=True)
    bad = beside(folder, tmp_path, {"w.pt": data})
    with pytest.raises(RefusedError, match="its pickle would call"):
        assert find(bad).identity
    assert not ran.exists()


def with_entry(archive: bytes, name: str, data: bytes, compression: int = 0) -> bytes:
    """A zip file with another content of one of its files."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(buffer, "w", compression) as new,
    ):
        for info in old.infolist():
            new.writestr(info, data if info.filename.endswith(name) else old.read(info), 0)
    return buffer.getvalue()


def of_header(header: Any, data: bytes = bytes(64)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: Any, end: Any, shape: Any = (4,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def pickled(opcodes: bytes) -> bytes:
    return with_entry(saved({"x": torch.zeros(1)}), "data.pkl", opcodes)


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"x/{name.replace('_', '.')}", data)
    return buffer.getvalue()


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\7\0\0\0storagectorch\nFloatStorage\n"
    b"X\1\0\0\x000X\3\0\0\0cpuK\1tQ"
)
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "neither safetensors nor a zip file"),
    "a page of text": (lambda: b"<html>" * 99, "neither safetensors nor a zip file"),
    "header longer than the file": (lambda: struct.pack("<Q", 1 << 62), "neither safetensors"),
    "header of 5000 digits": (
        lambda: of_header(b'{"x": %s}' % (b"9" * 5000)),
        "Exceeds the limit|damaged",
    ),
    "deep header": (lambda: of_header(b"[" * 100_000), "nested too deeply"),
    "header in Latin-1": (lambda: of_header('{"é": 1}'.encode("latin-1")), "codec can't decode"),
    "header that is a list": (lambda: of_header([1]), "holds a list"),
    "header of numbers": (lambda: of_header({"x": 1}), "damaged"),
    "overlapping tensors": (
        lambda: of_header({"x": entry(0, 16), "y": entry(8, 24)}, bytes(24)),
        "overlap, or leave gaps",
    ),
    "tensor beyond the end": (lambda: of_header({"x": entry(64, 80)}), "overlap, or leave gaps"),
    "negative offsets": (lambda: of_header({"x": entry(-16, 0)}), "header describes 'x'"),
    "fractional shape": (lambda: of_header({"x": entry(0, 16, [4.0])}), "header describes 'x'"),
    "unknown dtype": (lambda: of_header({"x": entry(0, 64, [4], "F7")}), "header describes 'x'"),
    "shape of another size": (lambda: of_header({"x": entry(0, 64, [17])}), "its shape needs 68"),
    "tensor of no elements": (lambda: of_header({"x": entry(0, 0, [0])}, b""), "x has 0 bytes"),
    "huge shape": (lambda: of_header({"x": entry(0, 64, [1 << 60, 1 << 60])}), "its shape needs"),
    "no weights": (lambda: of_header({}, b""), "it holds no weights"),
    "name with an escape sequence": (
        lambda: of_header({"\x1b[2J": entry(0, 64, [16])}),
        "no printable text",
    ),
    "zip of something else": (lambda: zipped(a=b"b"), "not of torch.save or TorchScript"),
    "zip bomb": (lambda: zipped(data_pkl=bytes(1 << 26)), "not of torch.save or TorchScript"),
    "zip cut in half": (lambda: saved({"x": torch.zeros(9)})[:300], "not a zip file|damaged"),
    "pickle without an end": (lambda: pickled(b"\x80\2}"), "damaged|its pickle|exhausted"),
    "pickle of a number": (lambda: pickled(b"\x80\2K\1."), "other than a dictionary of tensors"),
    "pickle with an empty stack": (lambda: pickled(b"\x80\2."), "damaged"),
    "pickle with a memo of 2^32": (
        lambda: pickled(b"\x80\2}r\xff\xff\xff\xff."),
        "it holds no weights",
    ),
    "pickle of a class": (lambda: pickled(b"\x80\2cbuiltins\nlist\n)\x81."), "would call builtins"),
    "pickle of protocol 4": (lambda: pickled(pickle.dumps({"x": {1}}, 4)), "torch does not write"),
    "pickle of an empty set of strides": (
        lambda: pickled(b"\x80\2}X\1\0\0\0x" + TENSOR + b"K\0J\0\0\0\x7f\x85K\0\x85tRs."),
        "does not fit its storage",
    ),
    "pickle of a storage that is missing": (
        lambda: pickled(b"\x80\2}X\1\0\0\0x" + TENSOR.replace(b"\x000X", b"\x007X") + b"s."),
        "damaged",
    ),
    "modules within themselves": (
        lambda: pickled(b"\x80\2c__torch__\nM\n)\x81q\0}X\1\0\0\0xh\0sb."),
        "a name has more than|more than 20000 modules",
    ),
    "modules that double forty times": (
        lambda: pickled(
            b"\x80\2c__torch__\nM\n)\x81"
            + b"q\0c__torch__\nM\n)\x81}(X\1\0\0\0ah\0X\1\0\0\0bh\0ub" * 40
            + b"."
        ),
        "more than 20000 modules",
    ),
    "storages cut short": (
        lambda: saved({"x": torch.zeros(9)}, legacy=True)[:-1],
        "the file ends too early",
    ),
    "storage of 2^63 elements": (
        lambda: saved({"x": torch.zeros(0)}, legacy=True)[:-1] + b"\x80",
        "the file ends too early",
    ),
    "storage without a place": (
        lambda: saved({"x": torch.zeros(9)}, legacy=True).replace(b"]q\0X", b"]q\0."),
        "damaged",
    ),
    "weights saved twice": (
        lambda: saved({"model": {"x": torch.zeros(1)}, "state_dict": {}}),
        "it holds weights as state_dict and as model; save one of them",
    ),
    "pickle that is too long": (lambda: pickled(bytes(2 << 20)), "more than 1048576 bytes"),
    "numbers of another byte order": (
        lambda: with_entry(saved({"x": torch.zeros(1)}), "byteorder", b"big"),
        "not little-endian",
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_malformed_file_of_weights_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    make, message = FILES[kind]
    path = tmp_path / "weights"
    path.write_bytes(make())
    started = time.perf_counter()
    with pytest.raises(RefusedError, match=f"weights {path} do not load: .*({message})") as refused:
        list(read_weights(path))
    assert "\n" not in str(refused.value)
    assert time.perf_counter() - started < 5


def test_any_damage_to_a_file_of_weights_is_at_most_a_refusal(tmp_path: Path) -> None:
    layer = {"weight": torch.ones(4, 4), "bias": torch.ones(4)}
    sources = (save(layer), saved(layer), saved(layer, legacy=True))
    path = tmp_path / "weights"
    rng = random.Random(0)
    read, refusals = 0, list[str]()
    for number in range(1000):
        data = bytearray(sources[number % 3])
        for _ in range(rng.choice([1, 2, 5])):
            at = rng.randrange(rng.choice([600, len(data)])) % max(1, len(data))
            end = at + rng.choice([0, 1, 1, 1, 4])
            data[at:end] = rng.randbytes(rng.choice([0, 1, 1, 1, 4]))
        path.write_bytes(data)
        try:
            read += len(list(read_weights(path))) > 0
        except RefusedError as refused:
            refusals.append(str(refused))
    assert read > 50
    assert len(refusals) > 100
    assert not any("\n" in text for text in refusals)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"visual.proj": s["visual.proj"].T.contiguous()}, r"visual.proj has the sh"),
        (
            lambda s: {n: t for n, t in s.items() if n != "visual.proj"},
            "visual.proj has the shape N",
        ),
        (lambda s: s | {"more": torch.zeros(3)}, r"more has the shape \[3\] in the file, None in"),
        (lambda s: s | {"visual.proj": s["visual.proj"] / 0}, "visual.proj holds a value that is"),
        (lambda s: {"visual.proj": s["visual.proj"]}, r"the model has \d+ weights, the file 1024"),
    ],
)
def test_weights_that_do_not_fit_the_model_are_refused_by_name(
    folder: Path, state: State, tmp_path: Path, change: Callable[[State], State], message: str
) -> None:
    files = find(beside(folder, tmp_path, {"w.safetensors": save(change(state))}))
    with pytest.raises(RefusedError, match=f"do not load into local-dir:encoder: {message}"):
        files.check()


def test_weights_that_do_not_fit_are_refused_before_faces_are_rendered(
    folder: Path, state: State, tmp_path: Path
) -> None:
    bad = beside(folder, tmp_path, {"w.safetensors": save(state | {"more": torch.zeros(3)})})
    with pytest.raises(RefusedError, match="more has the shape"):
        open_source(Data("faces", tmp_path / "faces"), f"local-dir:{bad}", None, limit=1)
    assert not list(tmp_path.rglob("*.mp4"))


def test_what_is_no_regular_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="no weights at"):
        find_encoder("ViT-B-32-quickgelu", "x" * 999 + ".pt")
    os.mkfifo(tmp_path / "fifo.pt")
    (tmp_path / "folder.pt").mkdir()
    for path, message in {
        tmp_path / "fifo.pt": "a device, FIFO or socket",
        tmp_path / "folder.pt": "expected one file of weights, found none",
        Path("/dev/zero"): "a device, FIFO or socket",
    }.items():
        with pytest.raises(RefusedError, match=f"{path}.*{message}"):
            find_encoder("ViT-B-32-quickgelu", str(path))


def test_a_file_of_weights_needs_no_suffix(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "w.safetensors", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    for name in ("weights", "./weights"):
        files = find_encoder("ViT-B-32-quickgelu", name)
        assert files.weights_path.samefile(tmp_path / "weights")


def test_a_folder_of_weights_is_read_as_the_hub_and_a_user_keep_it(
    folder: Path, state: State, tmp_path: Path
) -> None:
    blob, data = "0f1e2d3c4b5a", save(state)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / blob).write_bytes(data)
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot/open_clip_model.safetensors").symlink_to(f"../blobs/{blob}")
    (tmp_path / "snapshot/open_clip_pytorch_model.bin").write_bytes(b"of another format")
    expected = find_encoder("ViT-B-32-quickgelu", str(folder / "w.safetensors")).identity
    for place in ("blobs", f"blobs/{blob}", "snapshot"):
        assert find_encoder("ViT-B-32-quickgelu", str(tmp_path / place)).identity == expected
    (tmp_path / "blobs/another").write_bytes(data)
    with pytest.raises(RefusedError, match="blobs: expected one file of weights, found 0f1e2d3c4"):
        find_encoder("ViT-B-32-quickgelu", str(tmp_path / "blobs"))


class Failing(BaseHTTPRequestHandler):
    """Answers everything with an error."""

    def do_HEAD(self) -> None:
        self.send_error(503)

    do_GET = do_HEAD

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        (lambda: TCPServer(("127.0.0.1", 0), BaseRequestHandler, bind_and_activate=True), "answer"),
        (lambda: ThreadingHTTPServer(("127.0.0.1", 0), Failing), r"give them \(HTTP 503\)"),
    ],
    ids=["silent", "failing"],
)
def test_a_server_without_the_weights_is_not_waited_for_and_the_file_to_fetch_is_named(
    server: Callable[[], TCPServer], problem: str, tmp_path: Path
) -> None:
    code = (
        "import time; begun = time.perf_counter()\n"
        "from pipeline.encoders.clip import find_encoder\n"
        "try: find_encoder('ViT-B-32-quickgelu', 'openai')\n"
        "except Exception as error: print(error)\n"
        "print(time.perf_counter() - begun)"
    )
    with server() as own:
        if "503" in problem:  # nobody accepts what is sent to the other
            Thread(target=own.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{own.server_address[1]}"
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True
        )
    said, seconds = done.stdout.splitlines()
    assert re.search(
        f"{address} does not {problem}; where it does, fetch open_clip_model.saf", said
    )
    assert f"open_clip_pytorch_model.bin from {address}/timm/vit_base_patch32_clip_224.op" in said
    assert said.endswith("pass it with --pretrained FILE")
    assert float(seconds) < 5


def test_the_repositories_of_openais_weights_are_those_that_open_clip_has() -> None:
    published = {
        model.removesuffix("-quickgelu"): open_clip.get_pretrained_cfg(model, tag)
        for model, tag in open_clip.list_pretrained()
        if tag == "openai"
    }
    assert {name: f"{own}/" for name, own in OPENAI.items()} == {
        name: known["hf_hub"] for name, known in published.items()
    }
    assert all(known["quick_gelu"] for known in published.values())


def test_an_archive_traced_with_quickgelu_is_refused_for_a_model_with_gelu(
    folder: Path, scripted: Path, tmp_path: Path
) -> None:
    other = beside(folder, tmp_path, {"w.pt": scripted.read_bytes()})
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = False
    (other / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match=r"traced with QuickGELU.*set quick_gelu in open_clip_c"):
        find(other)
    with pytest.raises(RefusedError, match="encoder ViT-B-32 has GELU; use ViT-B-32-quickgelu"):
        find_encoder("ViT-B-32", str(scripted))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("image_size", "abc", "image_size: Input should be a valid integer"),
        ("image_size", -1, "image_size: Input should be greater than or equal to 1"),
        ("image_size", 10**9, "image_size: Input should be less than or equal to 4096"),
        ("layers", 10**9, "layers"),
        ("head_width", 0, "head_width: Input should be greater"),
        ("timm_model_name", "hf-hub:someone/model", "timm_model_name: String should match"),
        ("width", 1 << 16, r"the model has \d+ weights, the file"),
        ("mlp_ratio", 1e12, "do not load into"),
        ("unheard_of", 1, "unexpected keyword argument 'unheard_of'"),
    ],
)
def test_an_impossible_model_is_refused_before_it_is_built(
    folder: Path, state: State, tmp_path: Path, setting: str, value: Any, message: str
) -> None:
    bad = beside(folder, tmp_path, {"w.safetensors": save(state)})
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"][setting] = value
    (bad / "open_clip_config.json").write_text(json.dumps(config))
    started = time.perf_counter()
    with pytest.raises(RefusedError, match=message):
        find(bad).check()
    assert time.perf_counter() - started < 5


def test_a_folder_cannot_say_that_its_model_is_one_of_another_library(
    folder: Path, state: State, tmp_path: Path
) -> None:
    bad = beside(folder, tmp_path, {"w.safetensors": save(state)})
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["timm"] = "hf-hub:attacker/model"
    (bad / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(RefusedError, match="unexpected keyword argument 'timm'"):
        find(bad).check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b" " * (2 << 20), "more than 1048576 bytes"),
        ('{"é": 1}'.encode("latin-1"), "is no text; save the file as UTF-8"),
        (b'{"a": 1e999}', "is not valid JSON"),
        (b'{"a": "\\ud800"}', "is not valid JSON"),
        (b'{"a": %s}' % (b"9" * 5000), "is not valid JSON"),
        (b"{}", "model_cfg: Field required"),
        (b'{"model_cfg": {"embed_dim": 0}}', "embed_dim: Input should be greater"),
        (b'{"model_cfg": {"embed_dim": true}}', "embed_dim: Input should be a valid integer"),
        (b'{"model_cfg": {"embed_dim": 8, "text_cfg": {}}}', "vision_cfg: Field required"),
    ],
)
def test_a_broken_configuration_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path, text: bytes, message: str
) -> None:
    bad = beside(folder, tmp_path, {"w.safetensors": b""})
    (bad / "open_clip_config.json").write_bytes(text)
    with pytest.raises(RefusedError, match=message) as refused:
        find(bad)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["../x", "ViT-B-32/../x", "a/b", "a\0b", "a\x1b[2J", "", "a b", "x" * 999]
)
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(RefusedError, match=r"has no encoder|control characters"):
        find_encoder(name)
