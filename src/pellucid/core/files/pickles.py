"""A reader of pickled tables that creates numpy arrays, bytes, text, integers, lists and dictionaries only."""

from __future__ import annotations

import io
import pickle
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.core.errors import InputError, first_line


class _Type:
    """Stands for `numpy.dtype`: a plain number type, whatever else the pickle says about it."""

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii") if isinstance(code, bytes) else str(code)
        if text.lstrip("|<=") not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8", "b1"):
            raise pickle.UnpicklingError(f"an array of type {text[:40]!r}")
        self.type = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like; the code already names a little-endian or one-byte type."""


class _Array:
    """Stands for an array under construction; the pixels are a view of bytes that the file really holds."""

    value: np.ndarray

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, columns_first, content = state
        if not isinstance(kind, _Type) or len(content) != prod(shape) * kind.type.itemsize:
            raise pickle.UnpicklingError("an array whose content does not fill its shape")
        self.value = np.frombuffer(content, kind.type).reshape(shape, order="F" if columns_first else "C")


def _scalar(kind: _Type, content: bytes) -> Any:
    return np.frombuffer(content, kind.type, count=1)[0].item()


# Stand-ins, not numpy's own: a pickle may call what it is given with any argument it likes.
_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Type,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
}


# BYTEARRAY8, newer than these files, would make even Python's own reader allocate by claim; sets hash what they hold.
_LEFT_OUT = {op[0] for op in (pickle.BYTEARRAY8, pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET)}


def _check_keys(keys: list[Any]) -> None:
    """Hashing a key hashes all that is in it: millions of nested tuples would end the process."""
    if any(not isinstance(key, str | bytes | int | float) for key in keys):
        raise pickle.UnpicklingError("a table whose key is neither text nor a number")


class _Unpickler(pickle._Unpickler):  # the C one allocates what a file merely claims to hold
    def load_build(self) -> None:
        # Elsewhere the opcode sets attributes of whatever it is given, functions included.
        if not isinstance(self.stack[-2], _Type | _Array):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("a state for something that is no array")
        super().load_build()  # type: ignore[misc]

    def load_setitem(self) -> None:
        _check_keys(self.stack[-2:-1])  # type: ignore[attr-defined]
        super().load_setitem()  # type: ignore[misc]

    def load_setitems(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_setitems()  # type: ignore[misc]

    def load_dict(self) -> None:
        _check_keys(self.stack[::2])  # type: ignore[attr-defined]
        super().load_dict()  # type: ignore[misc]

    dispatch = {op: act for op, act in pickle._Unpickler.dispatch.items() if op not in _LEFT_OUT}  # noqa: RUF012
    dispatch |= {
        pickle.BUILD[0]: load_build,  # type: ignore[dict-item]
        pickle.SETITEM[0]: load_setitem,  # type: ignore[dict-item]
        pickle.SETITEMS[0]: load_setitems,  # type: ignore[dict-item]
        pickle.DICT[0]: load_dict,  # type: ignore[dict-item]
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the global {module}.{name}") from None


def unpickle(content: bytes, path: Path) -> dict[Any, Any]:
    """Read the dictionary pickled in `content`; Python 2 text comes as bytes, arrays are read-only.

    Nothing in the file is executed, and nothing larger than the file is allocated.

    Raises:
        InputError: not a plain table; the message names `path`, and any global it asks for other than numpy's arrays.
    """
    try:
        table = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:
        reason = first_line(error)
        raise InputError(f"{path} is refused: not a plain pickled table ({reason}); unpack the set again") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} is refused: it holds a {type(table).__name__} instead of a table")
    keys = {key.encode("utf-8", "replace") if isinstance(key, str) else key: value for key, value in table.items()}
    return {key: getattr(value, "value", value) if isinstance(value, _Array) else value for key, value in keys.items()}
