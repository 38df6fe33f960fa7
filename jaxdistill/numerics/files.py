"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from jaxdistill.errors import InputError, OutputError

# Where a file lies, or a file that is open already, in binary mode.
File = str | os.PathLike[str] | BinaryIO


def path_of(file: Any) -> Path | BinaryIO:
    """A path as a Path; an open file as it is.

    Raises:
        InputError: it is neither.

    Example:
        >>> path_of(3)
        Traceback (most recent call last):
        jaxdistill.errors.InputError: a file is a path or an open binary file, not int
    """
    if isinstance(file, (str, os.PathLike)):
        return Path(file)  # pyright: ignore[reportArgumentType] - of text, else fspath says so
    if callable(getattr(file, "read", None)) and callable(getattr(file, "write", None)):
        return file
    raise InputError(f"a file is a path or an open binary file, not {type(file).__name__}")


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raise before any work where a file could not be written after it.

    Raises:
        OutputError: there is no folder that can be written.

    Example:
        >>> check_folder("not/there.npz")
        Traceback (most recent call last):
        jaxdistill.errors.OutputError: cannot write not/there.npz: not is not a folder that can be written
    """
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: {folder} is not a folder that can be written")


def write_file(file: File, content: bytes) -> Path | BinaryIO:
    """Write to an open file, or atomically to a path.

    Raises:
        OutputError: it cannot be written.
    """
    target = path_of(file)
    if isinstance(target, Path):
        return write_atomically(target, content)
    try:
        target.write(content)
    except (TypeError, ValueError, OSError) as error:  # text mode, closed, read-only
        raise OutputError(f"cannot write {target} ({error}); open it with mode 'wb'") from None
    return target


_ABANDONED_SECONDS = 3600


def write_atomically(path: str | os.PathLike[str], content: bytes | Callable[[BinaryIO], None]) -> Path:
    """Write a file beside its target and rename it, so that no reader ever sees half of it.

    The content is bytes, or what writes it to an open file where bytes of all would be too many.

    A process that is killed meanwhile leaves a hidden file, ``.NAME.`` and eight letters; whoever writes the
    same target an hour later, or more, deletes it.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        _delete_abandoned(path)
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                if callable(content):
                    content(file)
                else:
                    file.write(content)
            umask = os.umask(0)
            os.umask(umask)
            Path(beside).chmod(0o666 & ~umask)
            Path(beside).replace(path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    return path


def _delete_abandoned(path: Path) -> None:
    """Delete what processes that were killed left beside a target; one at work wrote within the hour."""
    latest = time.time() - _ABANDONED_SECONDS
    for beside in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError):  # another process may be doing the same
            if beside.stat().st_mtime < latest:
                beside.unlink()
