"""Read tensors from an untrusted PyTorch file (.pt, .pth, .th, .ckpt).

Such a file is a pickle: a program for a stack machine, followed by raw storages. `torch.load(weights_only=True)` runs
no foreign code, but it believes the sizes it reads: a few bytes can ask for a terabyte, or for a view far outside its
storage. So the program is first followed symbolically, operation by operation, without executing anything, and each
storage and view is checked against the bytes that the file really has.
"""

from __future__ import annotations

import argparse
import io
import mmap
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor

from pellucid.core.errors import InputError, first_line, shown
from pellucid.core.files.tensors import MOST_TENSORS

_MAGIC = 0x1950A86A20F9469CFC6C  # opens torch's format before 1.6
_MOST_PICKLE = 2**26  # bytes; a real one has some hundred per tensor
_DEEPEST_TUPLE = 16
_NESTS = ("state_dict", "model", "net", "model_state_dict", "model_ema", "ema")
_REBUILD = {f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")}
_WRAP = {f"torch._utils {name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")}
_OBJECTS = {"argparse Namespace"}  # made without arguments, then filled: torchvision's and timm's scripts save one
_PLAIN = {"collections OrderedDict", "torch Size", "torch device", "_codecs encode", "builtins set", "__builtin__ set"}
_ITEMSIZE = {
    "UntypedStorage": 1,
    **{f"{kind}Storage": 1 for kind in ("Bool", "Byte", "Char")},
    **{f"{kind}Storage": 2 for kind in ("Short", "Half", "BFloat16")},
    **{f"{kind}Storage": 4 for kind in ("Int", "Float")},
    **{f"{kind}Storage": 8 for kind in ("Long", "Double", "ComplexFloat")},
    "ComplexDoubleStorage": 16,
}
# What torch's own reader knows; NEWOBJ only for `_OBJECTS`.
_VALUES = {"NONE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
_TRUTHS = {"NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Global(NamedTuple):
    name: str


class _Storage(NamedTuple):
    key: str
    itemsize: int
    nbytes: int


class _Tuple(tuple[Any, ...]):
    """A tuple that knows how deeply tuples are nested in it."""

    depth: int


class _Opaque(NamedTuple):
    """A value whose content does not matter: "container" or "tensor"."""

    kind: str


class Refused(Exception):
    """Why a file is not read; the caller adds which file."""


def read(path: Path) -> dict[str, Tensor]:
    """Read the state dict in the PyTorch file at `path`, on the CPU, from inside the usual nesting.

    Raises:
        InputError: the file is damaged, holds code, or holds no tensors.
    """
    try:
        zipped = _check(path)
        # Mapped, not read, where the format allows: the caller copies what it needs.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except Refused as refusal:
        raise InputError(f"{str(path)!r} is refused: {refusal}.") from None
    except pickle.UnpicklingError as error:  # torch's own text would advise to switch the safety off
        raise InputError(f"{str(path)!r} is damaged, or not as torch.save writes: save it again.") from error
    except Exception as error:  # any error at all here means a damaged file, whatever its type
        raise InputError(
            f"{str(path)!r} is truncated, damaged or no PyTorch checkpoint: {first_line(error)}."
        ) from error
    table = _tensors(content, {})
    if table is None:
        raise InputError(f"{str(path)!r} holds no table of named tensors; save model.state_dict() and load that.")
    if len(table) > MOST_TENSORS:
        raise InputError(f"{str(path)!r} names {len(table)} tensors, and a file may name at most {MOST_TENSORS}.")
    return table


def _tensors(content: object, known: dict[int, dict[str, Tensor] | None], level: int = 0) -> dict[str, Tensor] | None:
    """The tensors in the first nested table that has some, or else those of `content` itself; None without any.

    Each table is looked at once (`known`), however often it occurs, also within itself.
    """
    if not isinstance(content, Mapping) or level > len(_NESTS):
        return None
    if id(content) not in known:
        known[id(content)] = None
        nested = (_tensors(content.get(name), known, level + 1) for name in _NESTS)
        own = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        known[id(content)] = next((table for table in nested if table), own or None)
    return known[id(content)]


def _check(path: Path) -> bool:
    """Read the file symbolically; True for the zip format, False for the one before torch 1.6."""
    with path.open("rb") as file:
        if file.read(4) == b"PK\x03\x04":
            with zipfile.ZipFile(path) as archive:
                _check_zip(archive, path.stat().st_size)
            return True
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _check_legacy(content)
        return False


def _check_zip(archive: zipfile.ZipFile, size: int) -> None:
    """torch stores each record once and uncompressed: anything else was made by hand."""
    records = {record.filename: record for record in archive.infolist()}
    if any(name.endswith("/constants.pkl") for name in records):
        raise Refused(
            "it is a TorchScript program, not a state dict: load it in Python with torch.jit.load and save its "
            "state_dict()"
        )
    if any(r.compress_type != zipfile.ZIP_STORED or r.file_size != r.compress_size for r in records.values()):
        raise Refused("its zip records are compressed, which torch never writes")
    if len(records) != len(archive.infolist()) or sum(r.file_size for r in records.values()) > size:
        raise Refused("its zip records claim more bytes than the file has")
    if min((r.header_offset for r in records.values()), default=0) != 0:
        raise Refused("other data stands before its zip records")
    programs = [name for name in records if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise Refused("it is a zip file, but not of PyTorch")
    if records[programs[0]].file_size > _MOST_PICKLE:
        raise Refused("its table of contents is larger than any network needs")
    # torch can be told to leave the sums out; it then writes zeros.
    if any(r.CRC for r in records.values()) and (damaged := archive.testzip()) is not None:
        raise Refused(f"its record {shown(damaged, 60)} is damaged: download or save it again")
    folder = programs[0].removesuffix("data.pkl")
    for storage in _storages(io.BytesIO(archive.read(programs[0])), fields=5).values():
        record = records.get(f"{folder}data/{storage.key}")
        if record is None or record.file_size != storage.nbytes:
            raise Refused(f"its storage {shown(storage.key, 40)} has not the size that the table of contents claims")


def _check_legacy(content: mmap.mmap) -> None:
    """Five pickles (magic number, protocol, system, content, storage keys), then the storages."""
    if _number(content) != _MAGIC:
        raise Refused("it is a pickle, but not a PyTorch checkpoint")
    for _ in range(2):
        _storages(content, fields=6)
    claimed = sum(storage.nbytes for storage in _storages(content, fields=6).values())
    _storages(content, fields=6)
    if claimed > len(content) - content.tell():
        raise Refused(f"its tensors claim {claimed} bytes, but the file has {len(content)}")


def _number(stream: Any) -> object:
    """The number that a pickle consists of, or None."""
    values = [arg for op, arg in _operations(stream) if op not in ("PROTO", "STOP")]
    return values[0] if len(values) == 1 else None


def _operations(stream: IO[bytes] | mmap.mmap) -> Iterator[tuple[str, Any]]:
    for op, arg, position in pickletools.genops(stream):  # type: ignore[arg-type]
        if (position or 0) > _MOST_PICKLE:
            raise Refused("its table of contents is larger than any network needs")
        yield op.name, arg


def _storages(stream: IO[bytes] | mmap.mmap, fields: int) -> dict[str, _Storage]:
    """Follow one pickle to its end, and return the storages it asks for, by key.

    `fields` is the length of torch's reference to a storage.

    Raises:
        Refused: a name that is not on the short list of what state dicts need, or a view outside its storage.
    """
    storages: dict[str, _Storage] = {}
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    def on_container() -> None:
        if stack[-1] != _Opaque("container"):
            raise Refused("its table of contents changes something that is no table")

    def join(items: Sequence[Any]) -> _Tuple:
        joined = _Tuple(items)
        joined.depth = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        if joined.depth > _DEEPEST_TUPLE:
            raise Refused("its tuples are nested deeper than any network needs")
        return joined

    def check_keys(keys: Sequence[Any]) -> None:
        # A key is hashed, with all that is in it.
        if any(not isinstance(key, str | int | float | None) for key in keys):
            raise Refused("one of its tables has a key that is neither text nor a number")

    for op, arg in _operations(stream):
        if op == "PROTO":
            continue
        if op == "STOP":
            break
        if op in _VALUES:
            stack.append(arg)
        elif op in _TRUTHS:
            stack.append(_TRUTHS[op])
        elif op in _EMPTY:
            stack.append(_Opaque("container"))
        elif op in _TUPLES:
            count = _TUPLES[op]
            items = join(stack[len(stack) - count :])
            del stack[len(stack) - count :]
            stack.append(items)
        elif op == "MARK":
            marks.append(len(stack))
        elif op == "TUPLE":
            stack.append(join(since_mark()))
        elif op in ("SETITEMS", "APPENDS"):
            values = since_mark()
            check_keys(values[::2] if op == "SETITEMS" else [])
            on_container()
        elif op in ("SETITEM", "APPEND"):
            check_keys(stack[-2:-1] if op == "SETITEM" else [])
            del stack[-2 if op == "SETITEM" else -1 :]
            on_container()
        elif op == "NEWOBJ":
            arguments, kind = stack.pop(), stack.pop()
            if not isinstance(kind, _Global) or kind.name not in _OBJECTS or arguments != ():
                raise Refused(
                    f"its pickle makes a new {shown(getattr(kind, 'name', 'object'), 60)}, which no network needs"
                )
            stack.append(_Opaque("container"))
        elif op == "BUILD":
            stack.pop()
            on_container()
        elif op in ("BINPUT", "LONG_BINPUT"):
            memo[arg] = stack[-1]
        elif op in ("BINGET", "LONG_BINGET"):
            stack.append(memo[arg])
        elif op == "GLOBAL":
            stack.append(_global(arg))
        elif op == "BINPERSID":
            storage = _storage(stack.pop(), fields)
            if storages.setdefault(storage.key, storage).nbytes != storage.nbytes:
                raise Refused(f"its storage {shown(storage.key, 40)} is claimed at two sizes")
            stack.append(storage)
        elif op == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_reduce(function, arguments))
        else:
            raise Refused(f"its pickle uses {op}, which torch.save does not; save it again with torch.save as it is")
    return storages


def _global(name: str) -> _Global:
    module, _, attribute = name.partition(" ")
    of_torch = module in ("torch", "torch.storage") and (attribute in _ITEMSIZE or _dtype(attribute) is not None)
    if not of_torch and name not in _REBUILD | _WRAP | _PLAIN | _OBJECTS:
        raise Refused(
            f"loading it would run the code {f'{module}.{attribute}'[:80]}; if you trust its source, load it there "
            "and save only model.state_dict()"
        )
    return _Global(name)


def _dtype(name: str) -> torch.dtype | None:
    value = getattr(torch, name, None)
    return value if isinstance(value, torch.dtype) else None


def _storage(reference: object, fields: int) -> _Storage:
    """A storage from torch's reference ("storage", type, key, device, elements[, view])."""
    match reference:
        case ("storage", _Global(name), str(key), str(_), int(count), *view) if len(view) == fields - 5:
            itemsize = _ITEMSIZE.get(name.rpartition(" ")[2])
            if view not in ([], [None]) or itemsize is None or not 0 <= count < 2**48:
                raise Refused(f"its storage {shown(key, 40)} is of a kind or size that no network has")
            return _Storage(key, itemsize, itemsize * count)
    raise Refused("it refers to something other than a tensor's storage")


def _reduce(function: object, arguments: object) -> object:
    """The result of a call on the short list, as far as the checks need it."""
    if not isinstance(function, _Global) or not isinstance(arguments, tuple):
        raise Refused("its table of contents calls something that is no function")
    if function.name in _REBUILD:
        _check_view(*arguments[:4], dtype=arguments[6] if function.name.endswith("v3") else None)
        return _Opaque("tensor")
    if function.name in _WRAP and arguments[0] == _Opaque("tensor"):
        return arguments[0]
    if function.name == "torch Size" and isinstance(arguments[0], tuple):
        return arguments[0]
    if function.name in ("torch device", "_codecs encode"):
        return None
    if function.name in _PLAIN and not arguments:
        return _Opaque("container")
    if function.name.endswith(" set"):
        return _Opaque("container")
    raise Refused(f"its table of contents calls {function.name.replace(' ', '.')[:80]} in an unusual way")


def _check_view(storage: object, offset: object, size: object, stride: object, *, dtype: object) -> None:
    """Check that every element of a view lies in its storage, and that it has no more elements than the storage."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise Refused("one of its tensors has no storage or no shape")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > 16:
        raise Refused(f"one of its tensors has {len(size)} sizes and {len(stride)} strides")
    if any(not isinstance(number, int) or not 0 <= number < 2**48 for number in numbers):
        raise Refused("one of its tensors has a negative or absurd size")
    itemsize = storage.itemsize
    if isinstance(dtype, _Global):
        itemsize = getattr(_dtype(dtype.name.partition(" ")[2]), "itemsize", itemsize)
    assert isinstance(offset, int)
    count, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        count, last = count * length, last + max(length - 1, 0) * step
    end = last + 1 if count else 0
    if max(count, end) * itemsize > storage.nbytes:
        raise Refused(f"one of its tensors claims {max(count, end)} elements, more than its storage has")
