"""SIGKILL at random moments: files are whole or absent, and what goes on afterwards ends as if unbroken.

``python tests/bench/killed.py --kills 50 --out killed`` kills ``jaxdistill distill``, ``jaxdistill kip
--checkpoint`` and ``experiments/ipc_sweep.py --quick`` that often each; the same command again goes on from
``killed/state.json``. Exit status 1 where anything failed.

A trial starts a program in an empty folder, kills it up to three times, each at a moment drawn from the
length of an unbroken run (or, half the time, just after it began to write), and lets it end. Whatever the
kills left must be byte for byte what the unbroken run wrote, or not be there; a hidden temporary file may
stay, which no reader takes for a result and a later run deletes. In the end the files are the unbroken ones,
rows of the experiment but for measured seconds. Compiled programs are kept in a folder that the same kills
hit: the last run of a trial may say in one line that it found some damaged; the run after it says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np

from jaxdistill.numerics.files import write_atomically

ROOT = Path(__file__).parents[2]
TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")
DAMAGED = re.compile(r"jaxdistill: compiled programs in \S+ were damaged, and are compiled again; .*\n")
Files = dict[str, bytes]


@dataclass(frozen=True)
class Program:
    """What is killed.

    Args:
        command: Words after the Python interpreter; run in the trial's folder.
        results: Pattern of the files that are results.
        written: Pattern of what it writes first; half the kills wait for another one.
        plain: A result without what may differ from run to run.
    """

    command: tuple[str, ...]
    results: str
    written: str
    plain: Callable[[str, bytes], Any]


def same(name: str, content: bytes) -> bytes:
    """A file that has to be the same byte for byte."""
    del name
    return content


def without_seconds(name: str, content: bytes) -> Any:
    """Rows of an experiment without measured seconds, in their order; other files as they are."""
    if not name.endswith(".jsonl"):
        return content
    rows = [json.loads(line) for line in content.decode().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in rows]


PROGRAMS = {
    "distill": Program(
        ("-m", "jaxdistill", "distill", "--features", "network"), "distilled/*", "distilled/*", same
    ),
    "kip": Program(
        ("-m", "jaxdistill", "kip", "--features", "network", "--steps", "1500", "--checkpoint", "run"),
        "distilled/*",
        "run/*",
        same,
    ),
    "experiment": Program(
        (str(ROOT / "experiments" / "ipc_sweep.py"), "--quick", "--ipc", "1"),
        "quick/**/*.*",
        "quick/**/*.*",
        without_seconds,
    ),
}


def start(program: Program, folder: Path) -> subprocess.Popen[str]:
    """The program in its folder, with a cache of compiled programs there."""
    variables = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    environment = {
        name: v for name, v in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    } | variables
    return subprocess.Popen(
        [sys.executable, *program.command],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(program: Program, folder: Path) -> str:
    """Run to the end; what it said on stderr."""
    process = start(program, folder)
    said = process.communicate()[1]
    if process.returncode != 0:
        raise AssertionError(f"it ended with {process.returncode}: {said[-500:]}")
    return said


def results(program: Program, folder: Path) -> Files:
    """Results by name, without hidden temporary files."""
    found = (path for path in folder.glob(program.results) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if not TEMPORARY.fullmatch(path.name)
    }


def temporaries(program: Program, folder: Path) -> list[str]:
    return [path.name for path in folder.glob(program.results) if TEMPORARY.fullmatch(path.name)]


def check_whole(program: Program, found: Files, unbroken: Files) -> None:
    """Every file is what the unbroken run wrote; rows of an experiment, as many as there are."""
    for name, content in found.items():
        if name not in unbroken:
            raise AssertionError(f"{name} is left, which no unbroken run writes")
        plain, whole = program.plain(name, content), program.plain(name, unbroken[name])
        if plain != (whole[: len(plain)] if isinstance(plain, list) else whole):
            raise AssertionError(f"{name} is not whole: {len(content)} bytes of {len(unbroken[name])}")


def kill_once(program: Program, folder: Path, rng: np.random.Generator, length: float) -> bool:
    """Start and kill at a random moment; whether it was still running."""
    begun = monotonic()
    process = start(program, folder)
    if rng.random() < 0.5:
        sleep(length * rng.random())
    else:  # as soon as something else appears, and a little later
        before = set(folder.glob(program.written))
        while process.poll() is None and set(folder.glob(program.written)) <= before:
            if monotonic() - begun > 5 * length:
                break
            sleep(0.0005)
        sleep(0.03 * rng.random() ** 3)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def trial(
    program: Program, folder: Path, rng: np.random.Generator, unbroken: Files, length: float
) -> Counter[str]:
    """Kill a program up to three times, then let it end: counts of what happened.

    Raises:
        AssertionError: what was left or came out is not what the unbroken run wrote.
    """
    counts: Counter[str] = Counter()
    for _ in range(int(rng.integers(1, 4))):
        if not kill_once(program, folder, rng, length):
            break
        counts["kills"] += 1
        found = results(program, folder)
        counts["with results"] += bool(found)
        check_whole(program, found, unbroken)
    counts["temporary files"] += len(temporaries(program, folder))
    said = finish(program, folder)
    counts["damaged programs"] += bool(DAMAGED.fullmatch(said))
    if said and not DAMAGED.fullmatch(said):
        raise AssertionError(f"the last run said: {said[-500:]}")
    ended = results(program, folder)
    if ended.keys() != unbroken.keys():
        raise AssertionError(f"it wrote {sorted(ended)}, not {sorted(unbroken)}")
    for name, content in ended.items():
        if program.plain(name, content) != program.plain(name, unbroken[name]):
            raise AssertionError(f"{name} is not that of an unbroken run")
    if counts["damaged programs"] and (said := finish(program, folder)):
        raise AssertionError(f"the run after damaged programs said: {said[-500:]}")
    counts["identical"] += 1
    return counts


def run(kills: int, out: Path, seed: int, names: list[str]) -> dict[str, Any]:
    """Trials of every program until it was killed so often, from where the last run stopped."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"seed": seed}
    if state["seed"] != seed:
        raise SystemExit(f"{file} is of seed {state['seed']}; choose another --out")
    for name in names:
        program, folder = PROGRAMS[name], out / name
        own = state.setdefault(name, {"trials": 0, "counts": {}, "failures": []})
        if own["counts"].get("kills", 0) >= kills:
            continue
        with tempfile.TemporaryDirectory(dir=out) as whole:
            begun = monotonic()
            finish(program, Path(whole))
            length, unbroken = monotonic() - begun, results(program, Path(whole))
        while own["counts"].get("kills", 0) < kills:
            rng = np.random.default_rng([seed, *name.encode(), own["trials"]])
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            counts: Counter[str] = Counter()
            try:
                counts = trial(program, folder, rng, unbroken, length)
            except (AssertionError, ValueError) as failure:  # or a row that is no JSON
                own["failures"].append([own["trials"], str(failure)])
                shutil.move(folder, out / f"{name}_{own['trials']}")
            own["trials"] += 1
            own["counts"] = dict(Counter(own["counts"]) + counts)
            write_atomically(file, json.dumps(state).encode())
            print(f"{name}: {own['counts'].get('kills', 0)} of {kills}", file=sys.stderr, flush=True)
            if len(own["failures"]) >= 10:
                break
    return state


def table(state: dict[str, Any]) -> str:
    """A line a program."""
    columns = ("kills", "with results", "temporary files", "damaged programs", "identical")
    lines = [
        "| program | trials | " + " | ".join(columns) + " | failed |",
        "| --- " * (len(columns) + 3) + "|",
    ]
    for name in PROGRAMS:
        if name in state:
            own = state[name]
            cells = [
                own["trials"],
                *(own["counts"].get(column, 0) for column in columns),
                len(own["failures"]),
            ]
            lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="of each program")
    parser.add_argument("--out", type=Path, default=Path("killed"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=PROGRAMS, nargs="+", default=list(PROGRAMS))
    options = parser.parse_args()
    state = run(options.kills, options.out, options.seed, options.only)
    print(table(state))
    failures = [(name, *failure) for name in PROGRAMS if name in state for failure in state[name]["failures"]]
    for name, number, failure in failures:
        print(f"{name}, trial {number}: {failure}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
