"""Reading an .npz that anyone may have written or damaged: checked first, then allocated."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
import zipfile
from typing import Any, BinaryIO

import numpy as np

from jaxdistill.errors import ArtifactError

# What NumPy itself writes: version 3 only for records with names beyond Latin-1.
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_PLAIN = frozenset("biufcU")


def read_archive(file: BinaryIO, where: Any) -> dict[str, np.ndarray]:
    """The arrays of an .npz, none of which takes more memory than it has bytes in the file.

    ``numpy.savez`` stores arrays as they are. So every size that the archive or an array declares can be held
    against the bytes that are there before anything is allocated; what is compressed, or is any other kind of
    member, is refused.

    Args:
        file: An open binary file that can seek.
        where: What to call it in errors.

    Returns:
        Arrays by name.

    Raises:
        ArtifactError: not an archive of plain arrays, or damaged.
    """
    try:
        if file.read(6) == np.lib.format.MAGIC_PREFIX:
            raise ArtifactError(f"{where} is a single array; a distilled set is an .npz file")
        # What NumPy warns of when it reads a header, it would not have written.
        with warnings.catch_warnings(), zipfile.ZipFile(file) as archive:
            warnings.simplefilter("error")
            members = archive.infolist()
            _check_members(where, members, file.seek(0, os.SEEK_END))
            return {member.filename[:-4]: _read_member(where, archive, member) for member in members}
    except ArtifactError:
        raise
    except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise
        raise ArtifactError(f"{where} is damaged or truncated ({first_line(error)}); copy it again") from None


def digest_arrays(arrays: dict[str, Any]) -> str:
    """Fingerprint of arrays: names, types, shapes and contents.

    Example:
        >>> digest_arrays({"a": np.zeros(2)}) == digest_arrays({"a": np.zeros((2, 1))})
        False
    """
    sha = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        sha.update(f"{name}|{value.dtype.str}|{value.shape}|".encode())
        view: Any = value.reshape(-1).view(np.uint8)  # a copy of its bytes would be as large as it is
        sha.update(view)
    return sha.hexdigest()


def read_json(text: str) -> Any:
    """An object of JSON.

    Raises:
        ValueError: it is none, or is nested too deeply to be one of ours.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _check_members(where: Any, members: list[zipfile.ZipInfo], size: int) -> None:
    """Arrays alone, each name once, stored as they are from the first byte on, and no more than there are."""
    for member in members:
        if not member.filename.endswith(".npy"):
            raise ArtifactError(f"{where} holds {_short(member)}, which is no array; get the original")
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ArtifactError(f"{where} holds {_short(member)} compressed; write it with numpy.savez")
    if len({member.filename for member in members}) < len(members):
        raise ArtifactError(f"{where} holds an array twice; get the original")
    declared = sum(member.file_size for member in members)
    if declared > size:
        raise ArtifactError(
            f"{where} declares {declared} bytes of arrays and has {size} in all; get the original"
        )
    if min((member.header_offset for member in members), default=0) > 0:
        raise ArtifactError(f"{where} begins with something else than an array; get the original")


def _read_member(where: Any, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ArtifactError(
                f"{where} holds {_short(member)} in NumPy's format {version}; write it with numpy.savez"
            )
        shape, _, dtype = _HEADERS[version](stream)
        rest = member.file_size - stream.tell()
    if dtype.hasobject:
        raise ArtifactError(f"{where} holds pickled objects, which could run code; it is not opened")
    if dtype.kind not in _PLAIN:
        raise ArtifactError(f"{where} holds {_short(member)} of type {dtype}; get the original")
    whole = all(type(side) is int and side >= 0 for side in shape)
    if not whole or math.prod(shape) * dtype.itemsize != rest:
        raise ArtifactError(
            f"{where} declares {_short(member)} of shape {str(shape)[:40]} and type {dtype} and has {rest} "
            "bytes of it; get the original"
        )
    with archive.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _short(member: zipfile.ZipInfo) -> str:
    """The name of a member, which may be long and hold anything."""
    return repr(member.filename[:60])


def first_line(error: Exception) -> str:
    """What an error says, in one line of bounded length, or its kind."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:200]
