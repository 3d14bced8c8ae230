r"""Hostile inputs: the second column of the catalogue, done to the files in a row's folder.

Every public function here is a word of that column: ``link s.zarr/journal victim`` calls
``link(place, "s.zarr/journal", "victim")``; words are split as a shell splits them and separated by
``;``. In texts, ``\n``, ``\x1b`` and ``\u202e`` mean what they mean in Python. The good files that
most rows begin with are made once, by ``make_originals``, and copied by ``take``.
"""

import json
import os
import pickle
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cache.chunks import chunk_name, encode_chunk
from cache.files import canonical_json, encode_record, read_records, sha256
from cache.identity import flatten
from cache.journal import fingerprint_of

VIDEOS, VIEWS, FRAMES = 14, 2, 4
FOLDS = ("1", "2")
LISTS = "tree/EmoLabel_DataSplit"


@dataclass(frozen=True)
class Place:
    """Where a row works: its own folder, and the folder of good files."""

    here: Path
    originals: Path

    def files(self, pattern: str) -> list[Path]:
        """The paths that a pattern names, at least one; a path without ``*`` need not exist."""
        found = sorted(self.here.glob(pattern)) if "*" in pattern else [self.here / pattern]
        assert found, f"no {pattern} in {self.here}"
        return found


def make_originals(folder: str) -> None:
    """A tree of videos, an encoder, a store and its export, runs, and an unfinished run.

    Call it in a process that has imported torch.
    """
    import torch

    import tgdfer
    from cache.hdf5 import export_store
    from pipeline.config import Run
    from pipeline.train.features import load_training_data
    from pipeline.train.records import Records
    from pipeline.train.stack import Stack
    from support.sources import write_encoder

    os.chdir(folder)
    _write_tree(Path("tree"))
    store = tgdfer.extract(
        tgdfer.read_dataset("dfew", "tree"),
        "s.zarr",
        write_encoder(Path("enc")),
        views=VIEWS,
        frames=FRAMES,
        device="cpu",
        workers=1,
    )
    export_store("s.zarr", Path("s.h5"))
    method = tgdfer.load_method("paper", settings=["optimiser.epochs=2"])
    tgdfer.train(store, method, runs="runs", device="cpu")
    run = Run(method=method, fold="1", seed=1)
    stack = Stack(load_training_data(store, torch.device("cpu")), [run])
    stack.train_epoch()
    Records(Path("half"), store).write_state(run, stack.state(0))


# Files.


def take(place: Place, *names: str) -> None:
    """Copies of good files."""
    for name in names:
        source = place.originals / name
        if source.is_dir():
            shutil.copytree(source, place.here / name)
        else:
            shutil.copy(source, place.here / name)


def link(place: Place, name: str, target: str) -> None:
    """Replace what is at ``name`` by a symbolic link."""
    for path in place.files(name):
        _remove(path)
        path.symlink_to(target if target.startswith("/") else place.here / target)


def hardlink(place: Place, name: str, target: str) -> None:
    """Replace a file by another name of ``target``."""
    (place.here / name).unlink()
    os.link(place.here / target, place.here / name)


def write(place: Place, name: str, text: str) -> None:
    for path in place.files(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bytes(text))


def append(place: Place, name: str, text: str) -> None:
    for path in place.files(name):
        path.write_bytes(path.read_bytes() + _bytes(text))


def repeat(place: Place, name: str, text: str, count: str) -> None:
    """A file of ``text`` again and again."""
    write(place, name, "")
    (place.here / name).write_bytes(_bytes(text) * int(count))


def change(place: Place, name: str, old: str, new: str) -> None:
    """Replace every ``old`` in a file, of which there must be one, by ``new``."""
    for path in place.files(name):
        data = path.read_bytes()
        assert _bytes(old) in data, f"no {old} in {path}"
        path.write_bytes(data.replace(_bytes(old), _bytes(new)))


def cut(place: Place, name: str, size: str) -> None:
    """Keep the first ``size`` bytes; more than there are are zeros that take no space."""
    for path in place.files(name):
        path.touch()
        os.truncate(path, int(size))


def flip(place: Place, name: str, offset: str = "-5") -> None:
    """Change one bit."""
    for path in place.files(name):
        data = bytearray(path.read_bytes())
        data[int(offset)] ^= 4
        path.write_bytes(data)


def delete(place: Place, *names: str) -> None:
    for name in names:
        for path in place.files(name):
            _remove(path)


def folder(place: Place, name: str) -> None:
    """Replace what is at ``name`` by an empty folder."""
    for path in place.files(name):
        _remove(path)
        path.mkdir(parents=True)


def fifo(place: Place, name: str) -> None:
    """Replace what is at ``name`` by a pipe that nobody writes to."""
    for path in place.files(name):
        _remove(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)


def move(place: Place, name: str, target: str) -> None:
    """Rename a file or folder; ``target`` may be no text."""
    (path,) = place.files(name)
    new = path.parent / _bytes(target).decode("utf-8", "surrogateescape")
    new.parent.mkdir(parents=True, exist_ok=True)
    path.rename(new)


def copy(place: Place, name: str, target: str) -> None:
    for path in place.files(name):
        shutil.copy(path, place.here / target)


def rename_run(place: Place, name: str) -> None:
    """Give one of the runs another folder name."""
    min((place.here / "runs").glob("?" * 16)).rename(place.here / "runs" / name)


def pack(place: Place, name: str, source: str) -> None:
    """A zip archive of a folder, stored without compression."""
    with zipfile.ZipFile(place.here / name, "w") as archive:
        for path in sorted((place.here / source).rglob("*")):
            archive.write(path, path.relative_to(place.here))


def member(place: Place, name: str, inside: str, mib: str = "0") -> None:
    """Add a file of so many MiB of zeros to a zip archive."""
    path, kind = place.here / name, zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "a", kind) as archive, archive.open(inside, "w") as file:
        for _ in range(int(mib)):
            file.write(bytes(1 << 20))


# JSON files, and the store's own.


def alter(place: Place, name: str, *changes: str) -> None:
    """Set ``KEY.KEY=JSON`` in a JSON file; an empty JSON removes the key."""
    for path in place.files(name):
        value = json.loads(path.read_bytes())
        _set(value, changes)
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")


def plan(place: Place, *changes: str) -> None:
    """Set ``KEY.KEY=JSON`` in the plan of ``s.zarr``, with every digest that follows from it."""
    store = place.here / "s.zarr"
    value = json.loads((store / "plan.json").read_bytes())
    _set(value, changes)
    _forge_plan(store, value)


def manifest(place: Place, *changes: str) -> None:
    """Set ``KEY,KEY=JSON`` in the manifest of ``s.zarr``, with its digest."""
    path = place.here / "s.zarr/manifest.json"
    value = json.loads(path.read_bytes())
    _set(value, changes, ",")
    _write_manifest(path, value)


def records(place: Place, name: str, *changes: str) -> None:
    """Set ``KEY,KEY=JSON`` in every record of a journal, with valid checksums."""
    for path in place.files(name):
        found = list(read_records(path))
        for record in found:
            _set(record, changes, ",")
        path.write_bytes(b"".join(map(encode_record, found)))


def features(place: Place, value: str, row: str = "0") -> None:
    """Set the features of one video of ``s.zarr``, with every digest that follows from them."""
    store = place.here / "s.zarr"
    for view in range(VIEWS):
        name = chunk_name("features", 0, view)
        size = json.loads((store / "plan.json").read_bytes())["block_videos"]
        values = np.frombuffer((store / name).read_bytes()[:-4], "<f2").copy()
        values.reshape(size, -1)[int(row)] = float(value)
        _replace(store, name, encode_chunk("features", values.reshape(size, FRAMES, -1), size))


def entry(place: Place, name: str, text: str) -> None:
    """Replace a file of ``s.zarr`` by other bytes, with every digest that follows from them."""
    write(place, f"s.zarr/{name}", text)
    adopt(place, name)


def adopt(place: Place, name: str) -> None:
    """Give the present bytes of a file of ``s.zarr`` every digest that follows from them."""
    store = place.here / "s.zarr"
    data = (store / name).read_bytes()
    _replace(store, name, data)
    if name == "text.safetensors":
        plan(place, f'identity.encoder.text_sha256="{sha256(data)}"')
    if name == "truth.npy":
        plan(place, f'videos.truth_sha256="{sha256(data)}"')


def unfinish(place: Place, store: str = "s.zarr") -> None:
    """A store as it is before its manifest is written."""
    delete(place, f"{store}/manifest.json")


def deep(place: Place, name: str) -> None:
    """JSON that is nested 100,000 times, as a journal's whole line or a safetensors header."""
    text = b"[" * 100_000 + b"]" * 100_000
    path = place.here / name
    if path.suffix == ".safetensors":
        path.write_bytes(len(text).to_bytes(8, "little") + text)
    else:
        path.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text))


# Weights, arrays and HDF5.


def header(place: Place, name: str, text: str) -> None:
    """A safetensors file with this header and no data."""
    data = _bytes(text)
    (place.here / name).write_bytes(len(data).to_bytes(8, "little") + data + bytes(64))


def nest(place: Place, name: str) -> None:
    """Files of JSON that is nested 100,000 times."""
    for path in place.files(name):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"[" * 100_000 + b"]" * 100_000)


def long_number(place: Place, name: str) -> None:
    """Append a row whose label has 5000 digits."""
    row = "00014,5,{},0.5\n" if name.endswith("frames.csv") else "30,{}\n"
    append(place, name, row.format("1" * 5000))


def toml(place: Place, name: str, what: str) -> None:
    """TOML with a number of 5000 digits, or with tables inside each other."""
    texts = {
        "digits": "[temporal]\nwindow = " + "9" * 5000,
        "tables": "[" + ".".join(["a"] * 5000) + "]",
    }
    (place.here / name).write_text(texts[what])


def digits(place: Place, name: str) -> None:
    """A safetensors header with a number of 5000 digits."""
    shape = "9" * 5000
    header(place, name, '{"a":{"dtype":"F32","shape":[' + shape + '],"data_offsets":[0,4]}}')


def tensors(place: Place, name: str, change: str) -> None:
    """Change one tensor: ``nan``, ``inf``, ``missing``, ``extra``, ``cut`` or ``other``."""
    from safetensors.numpy import load, save

    path = place.here / name
    found = load(path.read_bytes())
    first = sorted(found)[0]
    altered: dict[str, Callable[[], Any]] = {
        "nan": lambda: found[first].fill(np.nan),
        "inf": lambda: found[first].fill(np.inf),
        "missing": lambda: found.pop(first),
        "extra": lambda: found.update(more=np.zeros(3, np.float32)),
        "cut": lambda: found.update({first: found[first].ravel()[:1].copy()}),
        "other": lambda: found[first].fill(0.5),
    }
    altered[change]()
    path.write_bytes(save(found))


class _Bomb:
    """Unpickled, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def pickled(place: Place, name: str) -> None:
    """A pickle that makes the folder ``executed`` when it is loaded, as pickle, .npy or .pt."""
    data = pickle.dumps(_Bomb(place.here / "executed"), protocol=2)
    for path in place.files(name):
        _pickle_at(path, data)


def _pickle_at(path: Path, data: bytes) -> None:
    if path.suffix == ".npy":
        head = (
            np.lib.format.magic(1, 0) + b"v\0{'descr': '|O', 'fortran_order': False, 'shape': (1,)}"
        )
        data = head.ljust(128) + data
    if path.suffix in (".pt", ".bin"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/version", "3\n")
        return
    path.write_bytes(data)


def resume(place: Place, *changes: str) -> None:
    """Set ``KEY.KEY=JSON`` in the metadata of the unfinished run's state, or make it deep JSON."""
    from safetensors.numpy import load, save

    for path in place.files("half/*/resume.safetensors"):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        state = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["state"])
        _set(state, changes)
        text = json.dumps(state) if changes else "[" * 100_000
        path.write_bytes(save(load(data), {"state": text}))


def hdf5(place: Place, what: str, name: str = "features", target: str = "") -> None:
    """Change the exported store ``s.h5``."""
    import h5py

    with h5py.File(place.here / "s.h5", "r+") as file:
        if what == "add":
            file[name][0] = 1.0
            return
        if what == "attribute":
            file.attrs[name] = target
            return
        kept = file[name][()] if name in file else np.zeros(1)
        if name in file:
            del file[name]
        if what == "shape":
            file[name] = kept[:-1]
        elif what == "nan":
            file[name] = np.full_like(kept, np.nan)
        elif what == "soft":
            file[name] = h5py.SoftLink(target)
        elif what == "external":
            file[name] = h5py.ExternalLink(target, "/features")
        elif what == "storage":
            outside = [(str(place.here / target), 0, kept.nbytes)]
            file.create_dataset(name, kept.shape, kept.dtype, external=outside)
        elif what == "virtual":
            layout = h5py.VirtualLayout(kept.shape, kept.dtype)
            layout[...] = h5py.VirtualSource(str(place.here / target), name, kept.shape)
            file.create_virtual_dataset(name, layout)
        elif what == "bytes":
            file[name] = np.frombuffer(_bytes(target), np.uint8)


def arrays(place: Place, change: str = "") -> None:
    """The folder ``npy`` with features for every video of the tree; the last one is ``change``."""
    root = place.here / "npy"
    root.mkdir()
    for number in range(1, VIDEOS + 1):
        np.save(root / f"{number:05d}.npy", np.ones((FRAMES, 16), np.float16))
    last = root / f"{VIDEOS:05d}.npy"
    odd = {
        "nan": np.full((FRAMES, 16), np.nan, np.float16),
        "shape": np.ones((FRAMES, 3), np.float16),
        "text": np.array(["x"] * 3),
        "large": np.full((FRAMES, 16), 1e9),
        "flat": np.ones(3, np.float16),
    }
    if change == "pickle":
        pickled(place, f"npy/{last.name}")
    elif change == "missing":
        last.unlink()
    elif change:
        np.save(last, odd[change])


# Lists.


def listed(place: Place, line: str, file: str = "train(single-labeled)/set_1.csv") -> None:
    """Append a line to an annotation file of the tree."""
    append(place, f"{LISTS}/{file}", line + "\\n")


def _write_tree(root: Path) -> None:
    """Fourteen videos in DFEW's layout, mp4 files and folders of frames, with ground truth."""
    from support.sources import pictures, write_folder, write_video

    videos = root / "Clip/original"
    videos.mkdir(parents=True)
    for number in range(1, VIDEOS + 1):
        moving = pictures(FRAMES, seed=number, height=32, width=32)
        if number % 2:
            write_folder(videos / f"{number:05d}", moving, ".png")
        else:
            write_video(videos / f"{number:05d}.mp4", moving)
    lists = root / "EmoLabel_DataSplit"
    for fold in (1, 2):
        for part in ("train", "test"):
            rows = [n for n in range(1, VIDEOS + 1) if ((n > 7) == (fold == 1)) == (part == "test")]
            path = lists / f"{part}(single-labeled)/set_{fold}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [f"{number},{(number - 1) % 7 + 1}\n" for number in rows]
            path.write_text("".join(["video_name,label\n", *lines]))
    truth = {"subjects": {f"{n:05d}": f"person {n}" for n in range(1, VIDEOS + 1)}}
    (lists / "truth.json").write_text(json.dumps(truth | {"subsets": {"dark": ["00001"]}}))
    frames = [
        f"{number:05d},{frame},{(number - 1) % 7 + 1},0.5\n"
        for number in range(1, VIDEOS + 1)
        for frame in range(1, FRAMES + 1)
    ]
    (lists / "frames.csv").write_text("".join(["video_name,frame,label,intensity\n", *frames]))


def _bytes(text: str) -> bytes:
    decoded = re.sub(
        r"\\(?:x..|u....|[nrt0\\])",
        lambda found: found[0].encode().decode("unicode_escape"),
        text,
    )
    try:
        return decoded.encode("latin-1")
    except UnicodeEncodeError:
        return decoded.encode()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _set(value: Any, changes: tuple[str, ...], separator: str = ".") -> None:
    for change in changes:
        keys, _, text = change.partition("=")
        *path, last = keys.split(separator)
        found = value
        for key in path:
            found = found[int(key) if isinstance(found, list) else key]
        place = int(last) if isinstance(found, list) else last
        if text:
            found[place] = json.loads(text)
        else:
            del found[place]


def _forge_plan(store: Path, value: dict[str, Any]) -> None:
    value["identity"]["videos"] = sha256(canonical_json(value["videos"]))
    identity = sha256(canonical_json(flatten(value["identity"])))
    for path in (store / "journal").glob("*.jsonl"):
        records = [record | {"identity": identity} for record in read_records(path)]
        path.write_bytes(b"".join(map(encode_record, records)))
    _replace(store, "plan.json", canonical_json(value) + b"\n", identity=identity)
    group = json.loads((store / "zarr.json").read_bytes())
    group["attributes"] = {name: value["videos"][name] for name in ("ids", "labels", "classes")}
    _replace(store, "zarr.json", canonical_json(group) + b"\n")


def _replace(store: Path, name: str, data: bytes, **more: Any) -> None:
    """Replace a file, and its fingerprint in journal and manifest."""
    (store / name).write_bytes(data)
    found = fingerprint_of(name, data)
    for path in (store / "journal").glob("*.jsonl"):
        records = list(read_records(path))
        for record in records:
            record["files"] |= {name: found} if name in record["files"] else {}
        path.write_bytes(b"".join(map(encode_record, records)))
    value = json.loads((store / "manifest.json").read_bytes())
    value["files"][name] = found
    _write_manifest(store / "manifest.json", value | more)


def _write_manifest(path: Path, value: dict[str, Any]) -> None:
    content = {name: part for name, part in value.items() if name != "digest"}
    whole = content | {"digest": sha256(canonical_json(content))}
    path.write_bytes(canonical_json(whole) + b"\n")
