"""Arrays of a ``.pth`` file as torch wrote them before 1.6, read without torch and without unpickling.

Such a file is a pickle of the names, shapes and strides of tensors, and their numbers after it. A pickle can
call anything; this reader calls nothing. It is a stack machine of its own for the two dozen instructions
that a dictionary of tensors takes; whatever else a file holds is refused, and named.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxdistill.errors import ArtifactError

# First number of a file, version of the layout, and how many bytes a file may have.
MAGIC, LAYOUT, MOST_BYTES = 0x1950A86A20F9469CFC6C, 1001, 2**31
# Names that stand for types of numbers. Other names of a pickle are what it would call.
STORAGES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
}
DICTIONARY, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
# Instructions that push their argument, and those that push a constant.
NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE")
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()


class _Name(NamedTuple):
    """A name that the pickle asks for."""

    name: str


class _Storage(NamedTuple):
    """Numbers that follow the pickle: their type, the key they go by, and how many."""

    dtype: str
    key: str
    length: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a dictionary of tensors that torch saved.

    Args:
        path: A ``.pth`` file of the layout before torch 1.6; later ones are zip archives.

    Returns:
        Arrays by name, each a copy.

    Raises:
        ArtifactError: no such file, another layout, damage, or anything in it that is not an array.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ArtifactError(f"{path.name} is above 2 GiB; this reader holds a file in memory")
        stream = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path.name} cannot be read ({error.strerror}); name a .pth file") from None
    if stream.getvalue()[:2] == b"PK":
        raise ArtifactError(f"{path.name} is a zip archive; this reader takes the layout before torch 1.6")
    try:
        magic, layout, system = (_load(stream) for _ in range(3))
        if (magic, layout) != (MAGIC, LAYOUT) or not _little(system):
            raise _Refused("no little-endian file of torch's layout before 1.6")
        state, keys = _load(stream), _load(stream)
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise _Refused("no dictionary of arrays")
        if not all(isinstance(tensor, _Tensor) for tensor in state.values()):
            raise _Refused("a value that is no array")
        if not isinstance(keys, list):
            raise _Refused("no list of arrays")
        storages = {tensor.storage.key: tensor.storage for tensor in state.values()}
        numbers = {key: _numbers(stream, storages, key) for key in keys}
        return {name: _array(tensor, numbers) for name, tensor in state.items()}
    except _Refused as error:
        why = str(error)
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        OverflowError,
    ):  # what the bytes of a damaged file lead to
        why = "bytes that make no sense"
    raise ArtifactError(f"{path.name} holds {why}; only plain arrays that torch saved are read")


class _Refused(Exception):
    """What is in the file that may not be."""


def _little(system: Any) -> bool:
    return isinstance(system, dict) and system.get("little_endian") is True


def _load(stream: io.BytesIO) -> Any:
    """The value of one pickle, by a stack machine that calls nothing."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def to_mark() -> list[Any]:
        at = max(i for i, item in enumerate(stack) if item is MARK)
        taken = stack[at + 1 :]
        del stack[at:]
        return taken

    for instruction, argument, _ in pickletools.genops(stream):
        code, known = instruction.name, True
        if code in NUMBERS:
            stack.append(argument)
        elif code in CONSTANTS:
            stack.append(CONSTANTS[code])
        elif code in ("BINPUT", "LONG_BINPUT"):
            memo[int(argument)] = stack[-1]  # pyright: ignore[reportArgumentType]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument)])  # pyright: ignore[reportArgumentType]
        elif code in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if code == "EMPTY_DICT" else [])
        elif code == "MARK":
            stack.append(MARK)
        elif code == "TUPLE":
            stack.append(tuple(to_mark()))
        elif code in TUPLES:
            taken = [stack.pop() for _ in range(TUPLES[code])]
            stack.append(tuple(reversed(taken)))
        elif code in ("SETITEM", "SETITEMS"):
            items = to_mark() if code == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _expect(all(isinstance(name, str) for name in items[::2]), "a name that is no text")
            _expect(isinstance(stack[-1], dict), "items of what is no dictionary")
            stack[-1].update(zip(items[::2], items[1::2], strict=True))
        elif code in ("APPEND", "APPENDS"):
            items = to_mark() if code == "APPENDS" else [stack.pop()]
            last: Any = stack[-1]
            _expect(isinstance(last, list), "items of what is no list")
            last.extend(items)
        elif code == "GLOBAL":
            stack.append(_name(str(argument)))
        elif code == "REDUCE":
            arguments = stack.pop()
            stack.append(_made(stack.pop(), arguments))
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif code == "BUILD":  # versions of the modules that the tensors belonged to: of no use here
            _expect(isinstance(stack.pop(), dict) and isinstance(stack[-1], dict), "state of an object")
        elif code == "STOP":
            return stack.pop()
        else:
            known = code == "PROTO"
        _expect(known, f"the instruction {code}")
    raise _Refused("no end")


def _expect(truth: bool, what: str) -> None:
    if not truth:
        raise _Refused(what)


def _name(name: str) -> _Name:
    _expect(name in STORAGES or name in (DICTIONARY, TENSOR), f"the name {name[:80].replace(' ', '.')}")
    return _Name(name)


def _made(name: Any, arguments: Any) -> Any:
    """What a call in the pickle stands for: an empty dictionary or a tensor; nothing is called."""
    if name == _Name(DICTIONARY) and arguments == ():
        return {}
    _expect(name == _Name(TENSOR) and isinstance(arguments, tuple), "a call that makes no array")
    storage, offset, shape, strides = arguments[:4]
    _expect(isinstance(storage, _Storage), "an array without numbers")
    sizes = (offset, *shape, *strides)
    _expect(all(type(size) is int and size >= 0 for size in sizes), "sizes that are no whole numbers >= 0")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _storage(described: Any) -> _Storage:
    what, kind, key, _, count, view = described
    fits = what == "storage" and isinstance(kind, _Name) and isinstance(key, str) and view is None
    _expect(fits and kind.name in STORAGES and type(count) is int and count >= 0, "numbers of no known type")
    return _Storage(STORAGES[kind.name], key, count)


def _numbers(stream: io.BytesIO, storages: dict[str, _Storage], key: Any) -> np.ndarray:
    """The numbers of a storage, which stand behind their count."""
    storage = storages[key]
    count = int.from_bytes(stream.read(8), "little")
    _expect(count == storage.length, "fewer or more numbers than it says")
    dtype = np.dtype(storage.dtype)
    read = stream.read(count * dtype.itemsize)
    _expect(len(read) == count * dtype.itemsize, "fewer numbers than it says")
    return np.frombuffer(read, dtype)


def _array(tensor: _Tensor, numbers: dict[str, np.ndarray]) -> np.ndarray:
    flat, shape, strides = numbers[tensor.storage.key], tensor.shape, tensor.strides
    _expect(len(shape) == len(strides), "an array whose strides do not fit its shape")
    size = math.prod(shape)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    _expect(size <= len(flat) and (size == 0 or last < len(flat)), "an array larger than its numbers")
    steps = [s * flat.itemsize for s in strides]
    view = np.lib.stride_tricks.as_strided(flat[tensor.offset :], shape, steps, writeable=False)
    return view.copy()
