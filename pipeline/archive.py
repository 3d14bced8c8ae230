"""A file of torch.save or TorchScript -> where its tensors are in it.

Both are zip files that hold each storage as a file of its own and describe the tensors in a pickle.
Before torch 1.6, torch.save wrote pickles, one after the other, and then the storages.  Pickles are
interpreted here: they can build dictionaries, lists, tuples and descriptions of tensors, and
nothing in them is ever imported or called.
"""

import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import SEEK_END, BufferedReader, BytesIO
from typing import Any, NamedTuple

import numpy as np

# safetensors' name of a dtype -> torch's name, the name of its storage, bytes per element
DTYPES = {
    "F64": ("float64", "DoubleStorage", 8),
    "F32": ("float32", "FloatStorage", 4),
    "F16": ("float16", "HalfStorage", 2),
    "BF16": ("bfloat16", "BFloat16Storage", 2),
    "I64": ("int64", "LongStorage", 8),
    "I32": ("int32", "IntStorage", 4),
    "I16": ("int16", "ShortStorage", 2),
    "I8": ("int8", "CharStorage", 1),
    "U8": ("uint8", "ByteStorage", 1),
    "BOOL": ("bool", "BoolStorage", 1),
}
_STORAGES = {f"torch.{storage}": dtype for dtype, (_, storage, _) in DTYPES.items()}
# Functions of which only the first argument matters.
_WRAPPERS = {"torch._utils._rebuild_parameter", "torch.jit._pickle.restore_type_tag"} | {
    f"torch.jit._pickle.build_{kind}list" for kind in ("int", "bool", "double", "tensor")
}
# What training scripts save beside weights; none of it is looked at.
_BESIDE = {
    *("argparse.Namespace", "collections.Counter", "collections.defaultdict"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("_codecs.encode", "pathlib.PosixPath", "torch.Size", "torch.device"),
}
# Where they put the weights.
_WEIGHTS = ("state_dict", "model", "model_state", "model_state_dict")
_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # a number that torch chose, as a pickle
_PICKLE_BYTES_MAX = 1 << 20  # some 160 for each tensor; the largest models have a thousand
_DIRECTORY_BYTES_MAX = 8 << 20
_ITEMS_MAX = 1 << 62
_MODULES_MAX = 20_000
_NAME_MAX = 1000


class Stored(NamedTuple):
    """A tensor in a file; ``strides``, in elements, are None if it is contiguous."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    strides: tuple[int, ...] | None = None

    @property
    def bytes(self) -> int:
        """Size of its elements."""
        return math.prod(self.shape) * DTYPES[self.dtype][2]

    def read(self, file: BufferedReader) -> bytearray:
        """Its elements in C order, little-endian; raises ValueError if the file is too short."""
        size, item = self.bytes, DTYPES[self.dtype][2]
        if self.strides is not None:
            size = item * _span(self.shape, self.strides)
        data = bytearray(size)
        file.seek(self.start)
        if file.readinto(data) != size:
            raise ValueError("the file ends too early")
        if self.strides is None:
            return data
        flat = np.frombuffer(data, f"V{item}")
        steps = [item * step for step in self.strides]
        return bytearray(np.lib.stride_tricks.as_strided(flat, self.shape, steps).tobytes())


def is_archive(file: BufferedReader) -> bool:
    """Whether a file begins as a zip file does."""
    file.seek(0)
    return file.read(4) == b"PK\x03\x04"


def is_legacy(file: BufferedReader) -> bool:
    """Whether a file begins as torch.save wrote it before torch 1.6."""
    file.seek(0)
    return file.read(len(_LEGACY)) == _LEGACY


def find_in_archive(file: BufferedReader) -> dict[str, Stored]:
    """The tensors of a state dict, perhaps within a checkpoint, or of a TorchScript module.

    Raises ValueError, or another error, for anything else.
    """
    entries = _entries(file)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError("it is a zip file, but not of torch.save or TorchScript")
    folder = pickles[0].removesuffix("data.pkl")
    if entries[pickles[0]][1] > _PICKLE_BYTES_MAX:
        raise ValueError(f"its pickle has more than {_PICKLE_BYTES_MAX} bytes")
    order = entries.get(f"{folder}byteorder")
    if order is not None and _read(file, *order) != b"little":
        raise ValueError("its numbers are not little-endian")

    def find(key: str, dtype: str) -> tuple[int, int]:
        start, size = entries[f"{folder}data/{key}"]
        return start, size // DTYPES[dtype][2]

    found = _Machine(find).run(BytesIO(_read(file, *entries[pickles[0]])))
    return dict(_of_module(found)) if isinstance(found, _Module) else _state_dict(found)


def find_in_legacy(file: BufferedReader) -> dict[str, Stored]:
    """The tensors of a state dict, perhaps within a checkpoint, as torch.save wrote it before 1.6.

    Raises ValueError, or another error, for anything else.
    """
    pickles = BytesIO(_read(file, 0, _PICKLE_BYTES_MAX))
    dtypes = dict[str, str]()

    def note(key: str, dtype: str) -> tuple[int, int]:
        if dtypes.setdefault(key, dtype) != dtype:
            raise ValueError("a storage has two dtypes")
        return 0, _ITEMS_MAX

    machine = _Machine(note)
    _number, _version, system = (machine.run(pickles) for _ in range(3))
    if not _checked(system, dict).get("little_endian"):
        raise ValueError("its numbers are not little-endian")
    begin = pickles.tell()
    machine.run(pickles)  # where the storages are is only known after their dtypes
    keys = _checked(machine.run(pickles), list)
    places = _storages(file, pickles.tell(), [(key, DTYPES[dtypes[key]][2]) for key in keys])
    pickles.seek(begin)
    return _state_dict(_Machine(lambda key, _: places[key]).run(pickles))


def _storages(
    file: BufferedReader, start: int, keys: Sequence[tuple[str, int]]
) -> dict[str, tuple[int, int]]:
    """Key -> first byte and number of elements of storages that follow one another."""
    end, places = file.seek(0, SEEK_END), {}
    for key, item in keys:
        items = int.from_bytes(_read(file, start, 8), "little")
        places[key] = start + 8, items
        start += 8 + item * items
        if start > end:
            raise ValueError("the file ends too early")
    return places


def _state_dict(found: Any) -> dict[str, Stored]:
    """The weights of what was saved: a state dict, or a dictionary that has one."""
    if isinstance(found, dict):
        inner = [name for name in _WEIGHTS if isinstance(found.get(name), dict)]
        if len(inner) > 1:
            raise ValueError(f"it holds weights as {' and as '.join(inner)}; save one of them")
        found = found[inner[0]] if inner else found
    if not isinstance(found, dict) or not all(isinstance(x, Stored) for x in found.values()):
        raise ValueError("it holds something other than a dictionary of tensors")
    return found


def has_constant(file: BufferedReader, value: float) -> bool:
    """Whether the code of a TorchScript archive uses this number, as far as tracing stores it."""
    wanted = {struct.pack(f"<{kind}", value) for kind in "dfe"}
    return any(
        "/constants/" in name and size <= 8 and _read(file, start, size) in wanted
        for name, (start, size) in _entries(file).items()
    )


class _Name(NamedTuple):
    """What a pickle names in order to import it."""

    name: str


class _Module(dict[str, Any]):
    """The attributes of a TorchScript module."""


class _Beside(dict[Any, Any]):
    """Something that is saved beside the weights."""


@dataclass(frozen=True)
class _Storage:
    dtype: str
    start: int
    items: int


class _Machine:
    """Interprets the opcodes that torch writes; any other is refused.

    ``find`` says where a storage begins and how many elements it has, by its key and dtype.
    """

    def __init__(self, find: Callable[[str, str], tuple[int, int]]) -> None:
        self._find = find

    def run(self, pickled: BytesIO) -> Any:
        """The object that the next pickle describes."""
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._step(opcode.name, argument)
        raise ValueError("its pickle has no end")

    def _step(self, opcode: str, argument: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO":
                pass
            case "MARK":
                self._marked.append(stack)
                self._stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": {}, "EMPTY_LIST": [], "EMPTY_TUPLE": ()}[opcode])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "BINSTRING" | "SHORT_BINSTRING":  # the last two of Python 2
                stack.append(argument)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE" | "APPENDS" | "SETITEMS":
                self._gather(opcode)
            case "APPEND":
                item = stack.pop()
                _checked(stack[-1], list).append(item)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _checked(stack[-1], dict)[key] = value
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_Name(argument.replace(" ", ".")))
            case "BINPERSID":
                stack.append(self._storage(*stack.pop()))
            case "NEWOBJ" | "REDUCE":
                arguments = stack.pop()
                stack.append(_made(_checked(stack.pop(), _Name).name, opcode, arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], _Module):  # that of a dictionary is metadata
                    stack[-1].update(_checked(state, dict))
            case _:
                raise ValueError(f"its pickle has the opcode {opcode}, which torch does not write")

    def _gather(self, opcode: str) -> None:
        items, self._stack = self._stack, self._marked.pop()
        if opcode == "TUPLE":
            self._stack.append(tuple(items))
        elif opcode == "APPENDS":
            _checked(self._stack[-1], list).extend(items)
        else:
            pairs = zip(items[::2], items[1::2], strict=True)
            _checked(self._stack[-1], dict).update(pairs)

    def _storage(
        self, kind: str, storage: _Name, key: str, device: str, items: int, view: None = None
    ) -> _Storage:
        if view is not None:
            raise ValueError("a storage is part of another, as torch wrote it before 0.4")
        dtype = _STORAGES[storage.name]
        return _Storage(dtype, *self._find(key, dtype))


def _made(name: str, opcode: str, arguments: Any) -> Any:
    """What calling ``name`` would make, for the few names that make data."""
    if name.startswith("__torch__.") and opcode == "NEWOBJ":
        return _Module()
    if name in _BESIDE:
        return _Beside()
    if name == "collections.OrderedDict":
        return dict(*arguments)
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        return _tensor(*arguments[:4])
    if name in _WRAPPERS:
        return arguments[0]
    raise ValueError(f"its pickle would call {name}")


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any) -> Stored:
    shape, strides = tuple(shape), tuple(strides)
    counts = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"a tensor has the shape {shape} and the strides {strides}")
    # Strides of zero would turn a few bytes into a tensor of any size.
    if max(math.prod(shape), offset + _span(shape, strides)) > storage.items:
        raise ValueError(f"a tensor of shape {shape} does not fit its storage")
    start = storage.start + offset * DTYPES[storage.dtype][2]
    contiguous = strides == _contiguous(shape)
    return Stored(storage.dtype, shape, start, None if contiguous else strides)


def _span(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last of a tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _of_module(root: _Module) -> Iterator[tuple[str, Stored]]:
    """The parameters and buffers of a module, named as in its state dict."""
    waiting = [("", root)]
    for _ in range(_MODULES_MAX):
        if not waiting:
            return
        prefix, module = waiting.pop()
        for name, value in module.items():
            if len(prefix) + len(name) > _NAME_MAX:
                raise ValueError(f"a name has more than {_NAME_MAX} characters")
            if isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
            elif isinstance(value, Stored):
                yield prefix + name, value
    raise ValueError(f"it has more than {_MODULES_MAX} modules")


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its pickle has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


class _Directory:
    """A zip file of which no large part is read at once: only its directory is needed."""

    def __init__(self, file: BufferedReader) -> None:
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if size > _DIRECTORY_BYTES_MAX:
            raise ValueError(f"its directory has more than {_DIRECTORY_BYTES_MAX} bytes")
        return self._file.read(_DIRECTORY_BYTES_MAX if size < 0 else size)


def _entries(file: BufferedReader) -> dict[str, tuple[int, int]]:
    """Name -> first byte and size of each uncompressed file in a zip file."""
    size = file.seek(0, SEEK_END)
    with zipfile.ZipFile(_Directory(file)) as archive:
        infos = archive.infolist()
    found = {}
    for info in infos:
        # The code of a TorchScript archive is compressed; it is not read.
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
            header = _read(file, info.header_offset, 30)
            name, extra = struct.unpack("<HH", header[26:])
            start = info.header_offset + len(header) + name + extra
            if header[:4] != b"PK\x03\x04" or start + info.file_size > size:
                raise ValueError(f"its directory is wrong about {info.filename[:_NAME_MAX]!r}")
            found[info.filename] = start, info.file_size
    return found


def _read(file: BufferedReader, start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(min(size, _PICKLE_BYTES_MAX))
