"""ImageNet-shaped features, streamed: rate beside that of the product alone, peak memory, certificate.

``python tests/bench/bench_stream.py {generator|file} [--rows N] [--columns P] [--classes K] [--folder DIR]``:
n 1 281 167, p 2048, k 1000, float32 features and class numbers, from a generator function or from two
memory-mapped .npy files, which are written to the folder first, by another process, where they are not there
(10.5 GB). One pass, lam given, a set of one example a class, its certificate.

Every chunk is the same block of random numbers, read from another row on, plus the centre of each row's
class: drawing new ones would take longer than all the rest. Before and after the pass ``A^T [A Y]`` is timed
with a chunk of the same shape, in float32; operations of the pass are counted as of that product,
``2 n p (p + k)``. On a busy machine the seconds of the processors tell more than the clock. Wanted: at least
0.8 of the product's rate, at most 3 GB in the whole process, an exact set.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter, process_time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdistill as jd
from jaxdistill.data.rows import AbstractRows, ChunkRows
from jaxdistill.data.stored import open_rows
from jaxdistill.numerics.linalg import matmul
from jaxdistill.ridge.source import chunk_rows

TEST = 5000


class Chunks:
    """Features and classes, a chunk at a time, the same ones in every pass."""

    def __init__(self, rows: int, columns: int, classes: int) -> None:
        rng = np.random.default_rng(0)
        self.rows, self.classes, self.size = rows, classes, chunk_rows(columns, rows)
        scale = (1 / np.sqrt(1 + np.arange(columns))).astype(np.float32)
        self.noise = rng.standard_normal((2 * self.size, columns), np.float32) * scale
        self.centres = (0.1 + 0.5 * rng.standard_normal((classes, columns), np.float32)) * scale

    def chunk(self, number: int, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (size, p) and classes (size,)."""
        rng = np.random.default_rng([1, number])
        labels = rng.integers(self.classes, size=size)
        first = int(rng.integers(self.size))
        x = self.centres[labels]
        x += self.noise[first : first + size]
        return x, labels

    def __call__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for number, first in enumerate(range(0, self.rows, self.size)):
            yield self.chunk(number, min(self.size, self.rows - first))

    def paths(self, folder: Path) -> tuple[Path, Path]:
        """Files of the inputs and of the classes."""
        stem = f"{self.rows}_{self.centres.shape[1]}_{self.classes}"
        return folder / f"x_{stem}.npy", folder / f"y_{stem}.npy"

    def write(self, folder: Path) -> None:
        """Write both files, the classes last: where they are, the inputs are whole."""
        x_path, y_path = self.paths(folder)
        labels = []
        with x_path.open("wb") as file:
            shape = self.rows, self.centres.shape[1]
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for x, y in self():
                x.tofile(file)
                labels.append(y)
        np.save(y_path, np.concatenate(labels))


def seconds_now() -> np.ndarray:
    """By the clock and of the processors."""
    return np.array([perf_counter(), process_time()])


def floor_of(chunks: Chunks, seconds: float = 5.0) -> np.ndarray:
    """Seconds of ``A^T [A Y]`` for all rows in float32, by the clock and of the processors."""
    x, labels = chunks.chunk(0, min(chunks.size, chunks.rows))
    both = np.concatenate([x, jd.one_hot(labels, chunks.classes).astype(np.float32)], axis=1)
    x, both = jnp.asarray(x), jnp.asarray(both)
    product = jax.jit(lambda a, b: matmul(a.T, b))
    jax.block_until_ready(product(x, both))
    times, begin = [], seconds_now()
    while seconds_now()[0] < begin[0] + seconds:
        start = seconds_now()
        jax.block_until_ready(product(x, both))
        times.append(seconds_now() - start)
    return np.mean(times, axis=0) * chunks.rows / x.shape[0]


def rows_of(source: str, chunks: Chunks, folder: Path) -> AbstractRows:
    """The source that is asked for; class numbers become rows as they are read."""
    if source == "generator":
        rows: AbstractRows = ChunkRows(chunks, num_rows=chunks.rows)
    else:
        paths = chunks.paths(folder)
        if not all(path.is_file() for path in paths):  # pages that this process writes would count as its own
            command = [sys.executable, *sys.argv, "--write"]
            subprocess.run(command, check=True)
        rows = open_rows(*paths)
    class_rows = np.eye(chunks.classes, dtype=np.float32)
    return rows.map(targets=lambda labels: class_rows[labels])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("source", choices=("generator", "file"))
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--lam", type=float, default=100.0)
    parser.add_argument("--folder", type=Path, default=Path(), help="of the files")
    parser.add_argument("--write", action="store_true", help="write the files, and no more")
    options = parser.parse_args()
    n, p, k = options.rows, options.columns, options.classes
    chunks = Chunks(n, p, k)
    if options.write:
        chunks.write(options.folder)
        return
    rows = rows_of(options.source, chunks, options.folder)
    floors, phi = [floor_of(chunks)], jd.features.Linear(p)
    times = [seconds_now()]
    model = jd.fit_ridge(phi, rows, lam=options.lam, progress=True)
    times.append(seconds_now())
    small = jd.distill(model, size=k, key=jax.random.key(0))
    times.append(seconds_now())
    x_test, y_test = chunks.chunk(2**32, min(TEST, chunks.size))
    certificate = jd.certify(model, small, x_test, y_test)
    times.append(seconds_now())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    floors.append(floor_of(chunks))

    print(f"{options.source}: n = {n}, p = {p}, k = {k}, chunks of {chunks.size} rows")
    print("seconds                         by the clock  of the processors")
    fit, *others = np.diff(times, axis=0)
    parts = ("product, before", floors[0]), ("product, after", floors[1]), ("fit", fit)
    for name, (clock, processors) in (*parts, *zip(("set", "certificate"), others, strict=True)):
        print(f"{name:<32}{clock:<14.1f}{processors:.1f}")
    clock, processors = np.mean(floors, axis=0) / fit
    print(f"{'of the rate of the product':<32}{clock:<14.2f}{processors:.2f}  (wanted: 0.80)")
    print(f"peak memory {peak:.2f} GB  (wanted: 3)")
    print(
        f"exact: {certificate.exact}, weights to {certificate.relative_weight_error:.1e}, accuracy "
        f"{certificate.accuracy_full:.4f} and {certificate.accuracy_distilled:.4f}, agreement "
        f"{certificate.agreement:.4f}"
    )


if __name__ == "__main__":
    main()
