"""Arrays <-> the bytes of the store's chunk files, and the metadata that lets Zarr read them."""

import json
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from cache.errors import DamagedError
from cache.files import canonical_json, storage_errors
from cache.plan import Plan
from cache.remote import RemotePath, StoreFiles, StorePath

FILL: dict[str, float | int] = {"features": float("nan"), "frame_index": -1}
DTYPES: dict[str, np.dtype[Any]] = {
    "features": np.dtype("<f2"),
    "frame_index": np.dtype("<i4"),
}

# crc32c of any message followed by its own little-endian crc32c.
_CRC32C_RESIDUE = 0x48674BC7


def chunk_name(array: str, block: int, view: int) -> str:
    """Path of a chunk inside the store; Zarr's default key with the separator "."."""
    return f"{array}/c.{block}.{view}.0" + (".0" if array == "features" else "")


def rows_name(block: int, view: int) -> str:
    """Path of the outcomes of a block's videos in one view."""
    return f"rows/{block}.{view}"


def view_files(block: int, view: int) -> tuple[str, ...]:
    """The files of one view of a block, which are committed and redone together."""
    return (*(chunk_name(array, block, view) for array in DTYPES), rows_name(block, view))


def chunk_bytes(plan: Plan, array: str) -> int:
    """Size of every chunk file of an array."""
    values = plan.block_videos * plan.frames * (plan.dim if array == "features" else 1)
    return values * DTYPES[array].itemsize + 4


def encode_chunk(array: str, values: NDArray[Any], block_videos: int) -> bytes:
    """One view of a block, [video, ...], padded to ``block_videos`` rows -> the file's bytes.

    The same as zarr's own codecs (bytes, crc32c) write, as a test checks.
    """
    full = np.full((block_videos, *values.shape[1:]), FILL[array], DTYPES[array])
    full[: len(values)] = values
    data = full.tobytes()
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


def read_chunk(path: StoreFiles, array: str, crc32c: str) -> NDArray[Any]:
    """The values of a chunk file, flat.

    Raises DamagedError if its checksum fails, or is not ``crc32c``, the committed one: then the
    file is intact but belongs elsewhere.
    """
    with storage_errors(path, "read"):
        data = path.read_bytes()
    if len(data) < 4 or google_crc32c.value(data) != _CRC32C_RESIDUE or data[-4:].hex() != crc32c:
        raise DamagedError(f"{path} is damaged (crc32c): {repair_hint(path.parent.parent)}")
    dtype = DTYPES[array]
    return np.frombuffer(data, dtype, (len(data) - 4) // dtype.itemsize)


def array_shape(plan: Plan, array: str) -> tuple[int, ...]:
    """Shape of an array of the store."""
    shape = (len(plan.videos.ids), plan.views, plan.frames)
    return (*shape, plan.dim) if array == "features" else shape


def zarr_metadata(plan: Plan) -> dict[str, bytes]:
    """The ``zarr.json`` files of the group and its arrays, by their path inside the store."""
    import zarr
    from zarr.codecs import Crc32cCodec
    from zarr.storage import MemoryStore

    memory = MemoryStore()
    group = zarr.create_group(memory, zarr_format=3)
    for array, dtype in DTYPES.items():
        shape = array_shape(plan, array)
        group.create_array(
            array,
            shape=shape,
            chunks=(plan.block_videos, 1, *shape[2:]),
            dtype=dtype,
            fill_value=FILL[array],
            filters=None,
            compressors=[Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},
            dimension_names=("video", "view", "frame", "dim")[: len(shape)],
        )
    files = {name: data.to_bytes() for name, data in memory._store_dict.items()}
    if plan.schema_version > 1:
        files["zarr.json"] = _describe_all(json.loads(files["zarr.json"]), files, plan)
    return files


def _describe_all(group: dict[str, Any], files: dict[str, bytes], plan: Plan) -> bytes:
    """The group's ``zarr.json`` with the videos as attributes, and the arrays' metadata inside.

    With these, Zarr does not search for arrays among files that are not its own.
    """
    videos = plan.videos
    group["attributes"] = {
        "ids": [*videos.ids],
        "labels": videos.labels.tolist(),
        "classes": videos.classes,
    }
    arrays = {array: json.loads(files[f"{array}/zarr.json"]) for array in DTYPES}
    inline = {"kind": "inline", "must_understand": False, "metadata": arrays}
    return canonical_json(group | {"consolidated_metadata": inline}) + b"\n"


def repair_hint(path: StorePath) -> str:
    """What to do about a damaged file of the store at ``path``."""
    look = f"list the damage with: tgdfer store verify --deep {path}, "
    if isinstance(path, RemotePath):
        return look + "then copy those files there again from an intact store"
    return look + f"repair it with: tgdfer store repair {path}"
