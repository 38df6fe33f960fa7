"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from jaxdistill.errors import OutputError


def write_atomically(path: str | os.PathLike[str], content: bytes) -> Path:
    """Write a file beside its target and rename it, so that no reader ever sees half of it.

    Raises:
        OutputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, beside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
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
