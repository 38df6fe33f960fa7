"""What every experiment shares: arguments, rows that survive a kill, tables, the machine's kind."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil

from jaxdistill.numerics.files import write_atomically
from jaxdistill.numerics.memory import format_bytes
from jaxdistill.sets.artifact import DistilledSet

HERE = Path(__file__).parent


def parse(description: str, extend: Callable[[argparse.ArgumentParser], None] | None = None) -> Any:
    """Read ``[--quick] [--dataset NAME] [--out DIR]`` and what an experiment adds."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="digits, few settings, under two minutes")
    parser.add_argument("--dataset", help="default: digits with --quick, mnist without")
    parser.add_argument("--out", type=Path, help="default: experiments/ (--quick: ./quick)")
    if extend is not None:
        extend(parser)
    options = parser.parse_args()
    if options.dataset is None:
        options.dataset = "digits" if options.quick else "mnist"
    if options.out is None:
        options.out = Path("quick") if options.quick else HERE
    options.results, options.figures = options.out / "results", options.out / "figures"
    options.results.mkdir(parents=True, exist_ok=True)
    options.figures.mkdir(parents=True, exist_ok=True)
    return options


def machine() -> str:
    """Kind of machine and versions, in one line for captions and tables."""
    memory = format_bytes(psutil.virtual_memory().total)
    kind = jax.default_backend() if jax.default_backend() == "cpu" else jax.devices()[0].device_kind
    devices = f"{jax.device_count()} {kind} device(s), {os.cpu_count()} cores, {memory}"
    return f"{devices}; Python {platform.python_version()}, JAX {jax.__version__}"


def machines(rows: Iterable[dict[str, Any]]) -> str:
    """The machines that rows name as those they were measured on; this one for rows that name none."""
    return "; and ".join(dict.fromkeys(row.get("machine") or machine() for row in rows))


def peaks() -> dict[str, int]:
    """Bytes of memory at their peak so far: of this process, and of its first device where that tells."""
    host = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    device = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return {"peak_bytes": host} | ({} if device is None else {"device_peak_bytes": device})


def copied(small: DistilledSet) -> np.ndarray:
    """The real image behind every input of a set of near copies, shape (m, d)."""
    solver = small.recipe["solver"]
    real = small.x[: len(small.x) - solver["images"] * solver["copies"]]  # copies follow them
    return real[[np.argmin(np.sum((real - one) ** 2, axis=1)) for one in small.x]]


def psnr(change: np.ndarray) -> float:
    """How near images are to others, in decibels, of their differences where pixels run from 0 to 1."""
    return float(-10 * np.log10(np.mean(np.square(change, dtype=np.float64))))


def command_line() -> str:
    """The command as a person would type it."""
    return shlex.join(["python", f"experiments/{Path(sys.argv[0]).name}", *sys.argv[1:]])


class Rows:
    """Rows of an experiment, one JSON object a line, each written as soon as it is known.

    A run that was killed is started again with the same command and skips what is already there. A
    last line that was cut off in the middle is dropped.
    """

    def __init__(self, path: Path, keys: Iterable[str]) -> None:
        self.path, self.keys, self.rows = path, tuple(keys), []
        lines = path.read_text().splitlines() if path.exists() else []
        for line in lines:
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        self._write()

    def _write(self) -> None:
        write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())

    def find(self, **setting: Any) -> dict[str, Any] | None:
        """The row of a setting, or None."""
        for row in self.rows:
            if all(row.get(key) == setting.get(key) for key in self.keys):
                return row
        return None

    def once(self, compute: Callable[[], dict[str, Any]], **setting: Any) -> dict[str, Any]:
        """The row of a setting: computed now, or by an earlier run."""
        row = self.find(**setting)
        if row is None:
            row = setting | compute()
            self.rows.append(row)
            self._write()
            print("  ".join(f"{key}={setting[key]}" for key in self.keys), flush=True)
        return row


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def percent(value: float | None) -> str:
    """A share as a percentage with two decimals."""
    return "-" if value is None else f"{100 * value:.2f}"
