"""Compiled programs, kept for the next run: most of what a short command waits for is the compiler."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdistill.errors import OutputError

# JAX's own variable: whoever sets it chooses the folder; set to nothing, there is none.
VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Small programs are what a short run is made of, so none is too small to keep.
_THRESHOLDS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
# A run keeps about 0.2 MiB; a folder larger than this loses its older half.
_MOST_BYTES = 2**28
_CURE = f"set {VARIABLE} to another folder, or pass --no-cache"


@contextlib.contextmanager
def kept_programs(wanted: bool = True) -> Iterator[str | None]:
    """Let JAX keep compiled programs on disk while a command runs, and read those of earlier runs.

    JAX tells programs apart by their text, the versions and the processor, so processes and machines may
    share a folder. A folder that cannot be written costs one line on stderr and the time of compiling.
    When the command ends, JAX's settings are as they were.

    Args:
        wanted: Whether to keep programs at all.

    Yields:
        The folder, or None.

    Raises:
        OutputError: the folder, or one above it, is a file.
    """
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    folder, own = cache_folder() if wanted else (None, False)
    settings: dict[str, Any] = {"jax_enable_compilation_cache": False}
    if folder is not None and _usable(folder):
        chosen = {name: value for name, value in _THRESHOLDS.items() if name.upper() not in os.environ}
        settings = {"jax_compilation_cache_dir": folder, **chosen}
    else:
        folder = None
    before = {name: getattr(jax.config, name) for name in settings}
    own = own and folder is not None
    if own:
        _tidy(Path(str(folder)), _MOST_BYTES)
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # one that this process has opened would keep its own folder
        with _one_line_for_damage(folder, own):
            yield folder
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it would hold on to the folder


def cache_folder() -> tuple[str | None, bool]:
    """Where compiled programs are kept, and whether that is the package's own place.

    Example:
        >>> folder, own = cache_folder()
        >>> own or folder is None or isinstance(folder, str)
        True
    """
    setting = os.environ.get(VARIABLE)
    if setting is not None:
        return setting or None, False
    import platformdirs

    return str(platformdirs.user_cache_path("jaxdistill", appauthor=False) / "programs"), True


def _usable(folder: str) -> bool:
    """Whether files can be made there, with a line on stderr where not; JAX looks after remote folders."""
    if "://" in folder:
        return True
    path = Path(folder).expanduser().absolute()
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise OutputError(f"compiled programs cannot be kept in {folder}: {part} is a file; {_CURE}")
    try:
        path.mkdir(parents=True, exist_ok=True)
        # Permissions alone do not tell of file systems that are read only, or full.
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
    except OSError as error:
        _say(f"compiled programs are not kept, {folder} cannot be written ({error.strerror}); {_CURE}")
        return False
    return True


def _tidy(folder: Path, most: int) -> None:
    """Delete the oldest programs of a folder that holds more than so many bytes, down to half of them."""
    files = []
    for file in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may be doing the same
            told = file.stat()
            files.append((told.st_mtime, told.st_size, file))
    total = sum(size for _, size, _ in files)
    if total <= most:
        return
    for _, size, file in sorted(files):
        if total <= most // 2:
            return
        with contextlib.suppress(OSError):
            file.unlink()
        total -= size


@contextlib.contextmanager
def _one_line_for_damage(folder: str | None, own: bool) -> Iterator[None]:
    """Say in one line that programs could not be read or written, and clear the package's own folder then.

    JAX compiles what it cannot read, and warns each time: a program whose writer was killed stays half
    written. Without the damaged ones the next run writes them anew.
    """
    show, damaged = warnings.showwarning, False

    def showwarning(message: Any, *place: Any, **named: Any) -> None:
        nonlocal damaged
        if "persistent compilation cache" not in str(message):
            show(message, *place, **named)
            return
        if not damaged:
            cure = "the next run keeps them anew" if own else "empty the folder"
            _say(f"compiled programs in {folder} were damaged, and are compiled again; {cure}")
        damaged = True

    with warnings.catch_warnings():
        warnings.filterwarnings("always", message=".*persistent compilation cache")
        warnings.showwarning = showwarning
        try:
            yield
        finally:
            warnings.showwarning = show
            if damaged and own:
                _tidy(Path(str(folder)), 0)


def _say(text: str) -> None:
    print(f"jaxdistill: {text}", file=sys.stderr)
