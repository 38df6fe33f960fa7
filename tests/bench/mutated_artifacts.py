"""Damaged and forged artifacts: none crashes, hangs, takes over 1 GB, or loads as something else.

``python tests/bench/mutated_artifacts.py --count 1000000 --seconds 3000 --out mutants`` loads that many, on
two processes, for at most so many seconds; the same command again goes on from ``mutants/state.json``. Exit
status 1 where anything failed; a failure is told by its number, and ``--only NUMBER`` runs that one alone.

Every file is a version of four sets (of a linear map, a network, a kernel, a trained network), damaged as
bytes, as an archive, as arrays, or forged: changed, with a digest that fits. Loading one must end in
ArtifactError, or give a set in which everything that the file's digest covers is as in the original; of a
forged file, as the file says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np
from mutants import array_of, members_of, mutant

import jaxdistill as jd
from jaxdistill.errors import ArtifactError
from jaxdistill.networks.config import TrainConfig
from jaxdistill.numerics.files import write_atomically

BLOCK = 1000  # mutants between two writes of the state, on each process
PROCESSES = 2
MOST_SECONDS = 5.0  # for one file
MOST_BYTES = 10**9
SHARES = {
    "linear": 0.3,
    "network": 0.33,
    "kernel": 0.33,
    "encoder": 0.04,
}  # an encoder is compiled to be checked


def originals(folder: Path, names: Iterable[str] = tuple(SHARES)) -> dict[str, bytes]:
    """Content of one small set of every kind, each with all that a file can hold."""
    keys = jax.random.split(jax.random.key(0), 6)
    centres = np.asarray(jax.random.normal(keys[0], (3, 12)))
    classes = np.arange(90) % 3
    images = (centres[classes] + np.asarray(jax.random.normal(keys[1], (90, 12)))).reshape(90, 2, 2, 3)
    prepare = jd.Standardize.fit(images)
    x, y = prepare.forward(images), jd.one_hot(classes, 3)
    network = jd.features.RandomNetwork.create(12, widths=(12, 9), key=keys[2])
    maps: dict[str, Callable[[], jd.features.AbstractFeatureMap]] = {
        "linear": lambda: jd.features.Linear(12),
        "network": lambda: network,
        "encoder": lambda: jd.features.train_encoder(
            x,
            y,
            image_shape=(2, 2, 3),
            config=TrainConfig(steps=5),
            channels=(4,),
            num_features=6,
            activation="tanh",
            key=keys[3],
        ),
    }
    contents = {}
    for name in names:
        if name == "kernel":
            kernel = jd.kernels.NTK() + 0.5 * jd.kernels.FeatureKernel(network)
            model: Any = jd.fit_kernel_ridge(kernel, x, y, lam=1.0)
            small: Any = jd.distill_kernel(model, x, y, ipc=2, dtype="float32", key=keys[5])
        else:
            model = jd.fit_ridge(maps[name](), x, y, lam=1.0, intercept=name == "network")
            start = (x, y) if name == "encoder" else None
            small = jd.distill(model, ipc=2, reference=start, dtype="float32", key=keys[4])
        small = small.with_context(prepare, ("cat", "dog", "Eule ä"))
        small = small.with_certificate(jd.certify(model, small, x, classes))
        contents[name] = small.save(folder / f"{name}.npz").read_bytes()
    return contents


class TooLong(BaseException):
    """Not an Exception: nothing that loads a file may swallow it."""


class Failure(AssertionError):
    """A file did what no file may do."""


def seen(small: Any) -> str:
    """Fingerprint of everything in a loaded set."""
    kernel = isinstance(small, jd.KernelSet)
    of = small.kernel if kernel else small.features
    full = (small.values, small.squared_norm, small.resolution) if kernel else (small.weights,)
    full = full if small.intercept is None else (*full, small.intercept)
    pre = small.preprocess
    arrays = [small.x, small.y, *full, *(v for part in (of, pre) for _, v in sorted(part.arrays().items()))]
    plain = [small.lam, small.recipe, small.certificate, small.class_names]
    plain += [(part.kind, part.settings(), sorted(part.arrays())) for part in (of, pre)]
    sha = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for value in map(np.asarray, arrays):
        sha.update(f"{value.dtype.str}{value.shape}".encode() + value.tobytes())
    return sha.hexdigest()


def as_told(small: Any, content: bytes) -> None:
    """A forged file was loaded as it says: every array that is read, and the metadata."""
    members = members_of(content)
    arrays = {name: array_of(member) for name, member in members.items()}
    meta = json.loads(str(arrays["meta"]))
    kernel = isinstance(small, jd.KernelSet)
    of, prefix = (small.kernel, "kernel/") if kernel else (small.features, "features/")
    told = {"inputs": small.x, "labels": small.y, "lam": np.asarray(small.lam)}
    told |= {"values": small.values} if kernel else {"weights": small.weights}
    if (small.intercept is None) != ("intercept" not in arrays):
        raise Failure("the intercept in the file was not read")
    told |= {} if small.intercept is None else {"intercept": small.intercept}
    told |= {f"{prefix}{name}": value for name, value in of.arrays().items()}
    if small.preprocess is not None:
        told |= {f"preprocess/{name}": value for name, value in small.preprocess.arrays().items()}
    for name, value in told.items():
        same = np.array_equal(value, arrays[name], equal_nan=True)
        if not same or (value.dtype != arrays[name].dtype and not name.startswith(("preprocess/", "lam"))):
            raise Failure(f"{name} is not what the file says")
    for name in ("recipe", "certificate"):
        if json.dumps(getattr(small, name)) != json.dumps(meta[name]):
            raise Failure(f"{name} is not what the file says")
    p = small.values.shape[1] if kernel else len(small.weights)
    if small.x.ndim != 2 or len(small.x) != len(small.y) or (not kernel and of.num_features != p):
        raise Failure("the parts do not fit")


def load(path: Path, content: bytes, kind: str, expected: str) -> str:
    """Load one file: "refused" or "loaded", or raise what is wrong."""
    path.write_bytes(content)
    try:
        small = jd.load_set(path)
    except ArtifactError as error:
        text = str(error)
        if "\n" in text or len(text) > 600:
            raise Failure(f"an error that is no line: {text[:200]!r}") from None
        if "MemoryError" in text or "Unable to allocate" in text:
            raise Failure(f"it took the memory: {text}") from None
        return "refused"
    if kind.startswith("forged"):
        as_told(small, content)
    elif seen(small) != expected:
        raise Failure("it loads as something else")
    return "loaded"


class Trial:
    """What one process needs to load mutants one after the other."""

    def __init__(self, contents: dict[str, bytes], folder: Path, seed: int) -> None:
        self.contents, self.path, self.seed = contents, folder / f"{os.getpid()}.npz", seed
        shares = np.array([SHARES[name] for name in contents])
        self.shares = shares / shares.sum()
        self.expected = {}
        for name, content in contents.items():
            self.path.write_bytes(content)
            self.expected[name] = seen(jd.load_set(self.path))

    def run(self, number: int) -> tuple[str, str, str]:
        """Kind of set, kind of damage, and what came of it."""
        rng = np.random.default_rng([self.seed, number])
        name = str(rng.choice(list(self.contents), p=self.shares))
        kind, content = mutant(rng, name, self.contents)
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                return name, kind, load(self.path, content, kind, self.expected[name])
        except TooLong:
            return name, kind, f"FAILED: longer than {MOST_SECONDS:g} s"
        except Failure as failure:
            return name, kind, f"FAILED: {failure}"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            return name, kind, f"FAILED: {type(error).__name__}: {error} ({place.name}:{place.lineno})"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


def raise_too_long(*_: Any) -> None:
    raise TooLong


def peak_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def work(pipe: Any, at: Any, contents: dict[str, bytes], folder: str, seed: int) -> None:
    """A process: loads blocks of mutants, and may not take more than 1 GB above what it began with."""
    signal.signal(signal.SIGALRM, raise_too_long)
    trial = Trial(contents, Path(folder), seed)
    begun = peak_bytes()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MOST_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    while (block := pipe.recv()) is not None:
        counts: Counter[str] = Counter()
        failures = []
        for number in block:
            at.value = number
            name, kind, outcome = trial.run(number)
            if outcome.startswith("FAILED"):
                failures.append([number, name, kind, outcome])
            counts[f"{kind}|{'failed' if outcome.startswith('FAILED') else outcome}"] += 1
        jax.clear_caches()  # what encoders compiled, each for itself
        pipe.send((counts, failures, peak_bytes() - begun))


class Worker:
    """A process and its pipe; started anew where a file ended it."""

    def __init__(self, *settings: Any) -> None:
        self.settings = settings
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.at = context.Value("q", -1)
        self.process = context.Process(target=work, args=(theirs, self.at, *self.settings), daemon=True)
        self.process.start()
        theirs.close()

    def result(self, block: range) -> tuple[Counter[str], list[list[Any]], int]:
        """What came of a block; a crash or a hang is a failure, and the rest of the block follows."""
        counts: Counter[str] = Counter()
        failures: list[list[Any]] = []
        peak = 0
        while block:
            last, since = -1, monotonic()
            while not self.pipe.poll(0.05) and self.process.is_alive():
                if self.at.value != last:
                    last, since = self.at.value, monotonic()
                elif last >= 0 and monotonic() - since > 20 * MOST_SECONDS:
                    self.process.kill()
            try:
                more, failed, peak = self.pipe.recv()
                return counts + more, failures + failed, peak
            except (EOFError, ConnectionResetError):
                self.process.join()
                number = self.at.value
                failures.append([number, "", "", f"FAILED: the process ended with {self.process.exitcode}"])
                counts["|failed"] += number + 1 - block.start  # those before it are not counted by kind
                block = range(number + 1, block.stop)
                self.start()
                if block:
                    self.pipe.send(block)
        return counts, failures, peak


def run(count: int, seconds: float, out: Path, seed: int) -> dict[str, Any]:
    """Load mutants up to a number, for so long at most, from where the last run stopped."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "state.json"
    state = {"seed": seed, "done": 0, "seconds": 0.0, "peak": 0, "counts": {}, "failures": []}
    if file.exists():
        state = json.loads(file.read_text())
        if state["seed"] != seed:
            raise SystemExit(f"{file} is of seed {state['seed']}; choose another --out")
    memory = Path("/dev/shm")  # where there is one, files cost no disk
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        contents = originals(Path(folder))
        workers = [Worker(contents, folder, seed) for _ in range(PROCESSES)]
        begun, before = monotonic(), state["seconds"]
        while state["done"] < count and monotonic() - begun < seconds:
            first = state["done"]
            edges = [min(count, first + i * BLOCK) for i in range(PROCESSES + 1)]
            blocks = [range(edges[i], edges[i + 1]) for i in range(PROCESSES)]
            for worker, block in zip(workers, blocks, strict=True):
                worker.pipe.send(block)
            for worker, block in zip(workers, blocks, strict=True):
                counts, failures, peak = worker.result(block)
                state["counts"] = dict(Counter(state["counts"]) + counts)
                state["failures"] += failures
                state["peak"] = max(state["peak"], peak)
            state["done"], state["seconds"] = edges[-1], before + monotonic() - begun
            write_atomically(file, json.dumps(state).encode())
            print(f"{state['done']} of {count}, {len(state['failures'])} failed", file=sys.stderr, flush=True)
        for worker in workers:
            worker.pipe.send(None)
            worker.process.join()
    return state


def table(state: dict[str, Any]) -> str:
    """A line a kind of damage."""
    outcomes = ("refused", "loaded", "failed")
    kinds = sorted({key.split("|")[0] for key in state["counts"]})
    lines = ["| damage | " + " | ".join(outcomes) + " |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {kind} | " + " | ".join(str(state["counts"].get(f"{kind}|{o}", 0)) for o in outcomes) + " |"
        for kind in kinds
    ]
    rate = state["done"] / max(state["seconds"], 1e-9)
    told = f"{state['done']} files in {state['seconds']:.0f} s ({rate:.0f} a second); at most "
    return "\n".join([*lines, told + f"{state['peak'] / 1e6:.0f} MB above the start"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=3000.0)
    parser.add_argument("--out", type=Path, default=Path("mutants"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this one here, and keep its file")
    options = parser.parse_args()
    if options.only is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        signal.signal(signal.SIGALRM, raise_too_long)
        trial = Trial(originals(options.out), options.out, options.seed)
        print(*trial.run(options.only), trial.path, sep="\n")
        return 0
    state = run(options.count, options.seconds, options.out, options.seed)
    print(table(state))
    for number, name, kind, outcome in state["failures"][:50]:
        print(f"number {number}, {name}, {kind}: {outcome}")
    return int(bool(state["failures"]) or state["peak"] > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
