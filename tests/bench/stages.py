"""Stages of a run on a machine that may be seen once: each caught, timed and written down at once."""

from __future__ import annotations

import json
import os
import platform
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import jax
import numpy as np

from jaxdistill.numerics.files import write_atomically
from jaxdistill.numerics.placement import placement


@dataclass
class Row:
    """One stage: whether it is right, what it takes, what it could not do without."""

    stage: str
    check: str
    cold: float | None = None
    warm: float | None = None
    floor: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.warm / self.floor if self.warm and self.floor else None


class Bench:
    """Rows so far, the rates that floors are made of, and the time that is left."""

    def __init__(self, quick: bool, seconds: float, folder: Path) -> None:
        self.quick, self.folder, self.rows, self.rates = quick, folder, [], {}
        self.begun = perf_counter()
        self.end = self.begun + 5 / 6 * seconds
        self.repeats = 2 if quick else 3
        self.sections: dict[str, float] = {}
        self.table: list[dict[str, Any]] = []
        self.stages: list[str] = []  # under way, the innermost last
        # Operations and bytes a second, by measure_rates.
        self.float32 = self.float64 = self.copy = self.back = 1.0

    def stage(
        self,
        name: str,
        run: Callable[[], Any],
        check: Callable[[Any], str],
        floor: float | Callable[[], float] | None = None,
        repeats: int | None = None,
    ) -> Any:
        """Run cold, check, run warm; the fastest counts. A stage that fails is a row, and no end."""
        if perf_counter() > self.end:
            self.rows.append(Row(name, "not run: no time was left"))
            return None
        row = Row(name, "")
        self.stages.append(name)
        try:
            row.cold, result = timed(run)
            row.check = check(result)
            for _ in range(self.repeats if repeats is None else repeats):
                if row.warm is None or perf_counter() < self.end:
                    row.warm = min(timed(run)[0], row.warm or np.inf)
            row.floor = floor() if callable(floor) else floor
        except Exception as error:
            self.failed(name, error, row)
            return None
        finally:
            self.stages.pop()
        self.rows.append(row)
        told = f"cold {row.cold:7.2f} s" + ("" if row.warm is None else f", warm {row.warm:8.4f} s")
        print(f"{name:<44} {told}  {row.check}", file=sys.stderr, flush=True)
        return result

    def failed(self, name: str, error: Exception, row: Row | None = None) -> None:
        """A row in place of an end: what fails on a machine seen for the first time is what this is for."""
        row = row or Row(name, "")
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        row.check = f"{row.check}; then FAILED: {words}" if row.check else f"FAILED: {words}"
        self.rows.append(row)
        print(f"{name}: {row.check}", file=sys.stderr, flush=True)
        traceback.print_exception(error, limit=-4, file=sys.stderr)

    def section(self, name: str, run: Callable[[], Any]) -> Any:
        """A few stages and what is between them; the report is written after it, whatever came of it."""
        begun, result = perf_counter(), None
        if begun > self.end:
            self.rows.append(Row(name, "not run: no time was left"))
        else:
            self.stages.append(name)
            try:
                result = run()
            except Exception as error:
                self.failed(name, error)
            self.stages.pop()
        self.sections[name] = perf_counter() - begun
        self.write()
        return result

    def over(self) -> None:
        """The end, wherever it finds the run; the report has what was under way."""
        self.rows.append(Row(self.stages[-1] if self.stages else "?", "not finished: the time was over"))
        self.write()
        os._exit(0)

    def write(self) -> dict[str, Any]:
        """The report so far, as JSON and as a table."""
        device = jax.local_devices()[0]
        used = (device.memory_stats() or {}).get("peak_bytes_in_use")
        if used is not None:
            self.rates["most memory used, GiB"] = used / 2**30
        report = {
            "device": device.device_kind,
            "versions": f"Python {platform.python_version()}, JAX {jax.__version__}, XLA_FLAGS "
            + (os.environ.get("XLA_FLAGS") or "not set"),
            "float64": placement().title,
            "quick": self.quick,
            "seconds": perf_counter() - self.begun,
            "sections": dict(self.sections),
            "rates": dict(self.rates),
            "rows": [asdict(row) | {"ratio": row.ratio} for row in self.rows],
            "kip against analytic": list(self.table),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        name = "".join(c if c.isalnum() else "_" for c in device.device_kind.lower())
        stem = self.folder / f"accelerator_{name}"
        write_atomically(
            stem.with_suffix(".json"), (json.dumps(report, indent=1, default=float) + "\n").encode()
        )
        write_atomically(stem.with_suffix(".md"), markdown(report).encode())
        return report


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    begun = perf_counter()
    result = jax.block_until_ready(run())
    return perf_counter() - begun, result


def fastest(run: Callable[[], Any], times: int = 3) -> float:
    jax.block_until_ready(run())
    return min(timed(run)[0] for _ in range(times))


def markdown(report: dict[str, Any]) -> str:
    """The table of a report."""
    lines = [f"# {report['device']}", "", f"{report['versions']}; float64 {report['float64']}.", ""]
    lines += ["| rate | measured |", "| --- | --- |"]
    lines += [f"| {name} | {value:.4g} |" for name, value in report["rates"].items()]
    lines += [
        "",
        "| stage | cold s | warm s | floor s | ratio | check |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in report["rows"]:
        numbers = (row["cold"], row["warm"], row["floor"], row["ratio"])
        cells = " | ".join("" if value is None else f"{value:.3g}" for value in numbers)
        lines.append(f"| {row['stage']} | {cells} | {row['check']} |")
    table = report["kip against analytic"]
    if table:
        lines += ["", f"| {' | '.join(table[0])} |", f"| {' | '.join(['---'] * len(table[0]))} |"]
        for row in table:
            cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
