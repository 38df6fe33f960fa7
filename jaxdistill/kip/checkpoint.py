"""Checkpoints of a run, written by orbax: whole or not at all, and never of another run."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxdistill.errors import CheckpointError, OutputError

# orbax's file in every checkpoint that is whole.
_WHOLE = "_CHECKPOINT_METADATA"
_DELETE = "delete it to go on from an earlier one"


def digest(*arrays: np.ndarray) -> str:
    """Fingerprint of arrays, with their types and shapes."""
    sha = hashlib.sha256()
    for array in arrays:
        sha.update(f"{array.dtype.str}{array.shape}".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:16]


class Checkpoints:
    """The checkpoints of one run in one folder; the two newest are kept.

    orbax writes beside and renames when everything is on disk, so a process that is killed leaves a whole
    checkpoint or a temporary folder that the next run deletes.

    Args:
        folder: Where they are; made where missing.
        identity: Everything that the result of the run depends on, in types that JSON keeps.

    Raises:
        OutputError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path, identity: dict[str, Any]) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._identity = identity
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from None
        _delete_remains(self.folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=2, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def save(self, step: int, state: Any) -> None:
        """Write a state, a pytree of NumPy arrays that are not empty.

        Raises:
            OutputError: the folder cannot be written.
        """
        # A run that stopped at this very step has written it already.
        if step in self._manager.all_steps():
            return
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        told = {"run": self._identity, "state": digest(*leaves)}
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), identity=ocp.args.JsonSave(told))
        try:
            self._manager.save(step, args=args)
        except OSError as error:
            raise OutputError(f"cannot write checkpoints to {self.folder}: {error.strerror}") from None

    def restore(self, like: Any) -> Any | None:
        """The newest state, in the structure of ``like``, or None where there is none.

        Raises:
            CheckpointError: it belongs to a run with other settings, which are named, or cannot be read.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        where = f"the checkpoint of step {step} in {self.folder}"
        told = self._read(step, where, identity=ocp.args.JsonRestore())["identity"]
        if not (isinstance(told, dict) and isinstance(identity := told.get("run"), dict)):
            raise CheckpointError(f"{where} does not say which run it is of; use another folder")
        differing = [
            f"{name} ({identity.get(name)!r} there, {self._identity.get(name)!r} here)"
            for name in sorted(identity.keys() | self._identity.keys())
            if identity.get(name) != self._identity.get(name)
        ]
        if differing:
            raise CheckpointError(
                f"{where} is of another configuration: {'; '.join(differing)}; use another folder, or the "
                "settings it was made with"
            )
        leaves, structure = jax.tree.flatten(like)
        plain = [ocp.RestoreArgs(restore_type=np.ndarray) for _ in leaves]
        args = ocp.args.PyTreeRestore(item=list(range(len(leaves))), restore_args=plain)
        restored = self._read(step, where, state=args)["state"]
        if [a.shape for a in restored] != [np.shape(a) for a in leaves]:
            raise CheckpointError(f"{where} holds arrays of other shapes; use another folder")
        # What orbax stores is compressed and not checked: a bit that flips may decode to other numbers.
        if digest(*restored) != told.get("state"):
            raise CheckpointError(f"{where} was altered after it was written; {_DELETE}")
        return jax.tree.unflatten(structure, restored)

    def _read(self, step: int, where: str, **args: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**args))
        except Exception as error:  # orbax raises what its storage raises
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CheckpointError(f"{where} cannot be read ({first[:120]}); {_DELETE}") from None


def _delete_remains(folder: Path) -> None:
    """Finish what a process was killed in: orbax deletes an old checkpoint file by file."""
    steps = [path for path in folder.iterdir() if path.name.isdigit()]
    newest = max((int(path.name) for path in steps if (path / _WHOLE).exists()), default=-1)
    for path in steps:
        if int(path.name) < newest and not (path / _WHOLE).exists():
            shutil.rmtree(path)
