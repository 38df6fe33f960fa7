"""The inputs of real users' data that once went wrong without a word: case, before, after.

``python tests/bench/trust_table.py`` runs every case on the package as it is, in about a minute, and prints
one table. "Before" is what revision 06a162a did with the same input, as it was measured then. Exit status 1
where a case does not come out as it should.
"""

from __future__ import annotations

import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.linear_model import LinearRegression, Ridge

import jaxdistill as jd
from jaxdistill.cli.main import main as command
from jaxdistill.errors import ConditioningWarning, JaxDistillError
from jaxdistill.kernels.tiles import kernel_matrix
from jaxdistill.pipeline import prepare
from jaxdistill.plots import Row, draw_rows

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5))
T = X @ RNG.standard_normal((5, 2))
CLASSES = np.arange(60) % 3
Y = jd.one_hot(CLASSES, 3)
LINEAR = jd.features.Linear(5)

# What a case says, and whether that is right.
Outcome = tuple[str, bool]
Case = Callable[[], Outcome]


def relative(found: Any, wanted: Any) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def refused(call: Callable[[], Any], words: str) -> Outcome:
    """One line that names what is wrong."""
    try:
        call()
    except JaxDistillError as error:
        told = str(error)
        return f"{type(error).__name__}: {told[:90]}", words in told and "\n" not in told
    return "nothing was said", False


def full_model() -> Outcome:
    model = jd.fit_ridge(LINEAR, X, Y, lam=1.0)
    wrong = jd.RidgeModel(**{**model.__dict__, "weights": model.weights * 1.01})
    small = jd.distill(wrong, ipc=1, key=KEY)
    found = jd.certify(wrong, small)
    return f"exact {found.exact}, the full model leaves {found.residual_full:.0e}", not found.exact


def large_column() -> Outcome:
    x = np.hstack([X, 1e8 * RNG.standard_normal((60, 1))])
    model = jd.fit_ridge(jd.features.Linear(6), x, T, lam=1e-6)
    sizes = np.linalg.norm(x, axis=0)[:, None]
    oracle = Ridge(alpha=1e-6, solver="svd", fit_intercept=False).fit(x, T).coef_.T
    error = relative(sizes * model.weights, sizes * oracle)
    return f"error {error:.0e}, rank {model.rank} of 6", error < 1e-7 and model.rank == 6


def hopeless_columns() -> Outcome:
    x = np.hstack([X, X[:, :1] + 1e-12 * RNG.standard_normal((60, 1))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jd.fit_ridge(jd.features.Linear(6), x, T, lam=0.0)
    told = [str(w.message) for w in caught if w.category is ConditioningWarning]
    return (told[0][:90] if told else "nothing was said"), bool(told)


def time_stamps() -> Outcome:
    stamps = 1.7e9 + np.arange(200) % 100 + RNG.integers(0, 2, 200) * 0.5
    table = np.stack([stamps, RNG.standard_normal(200)], axis=1)
    transform = jd.Standardize.fit(table)
    values = len(np.unique(np.asarray(transform.forward(table))[:, 0]))
    return f"{values} of {len(np.unique(stamps))} distinct values", values == len(np.unique(stamps))


def far_kernel() -> Outcome:
    x = (RNG.standard_normal((50, 3)) + 1000).astype(np.float32)
    gram = kernel_matrix(jd.kernels.RBF(1.0), x)
    wide = x.astype(np.float64)
    truth = np.exp(-np.sum((wide[:, None] - wide) ** 2, axis=-1) / 2)
    error = float(np.abs(gram - truth).max())
    fine = gram.max() <= 1 and np.all(np.diagonal(gram) == 1) and error < 1e-4
    return f"largest {gram.max():.6f}, diagonal {np.diagonal(gram).min():.2f}, off by {error:.0e}", bool(fine)


def mean_of_targets() -> Outcome:
    x = RNG.uniform(0, 1, (200, 4))
    y = 2 * x[:, :1] + 5
    small = jd.distill(jd.fit_ridge(jd.features.Linear(4), x, y, lam=1e-8, intercept=True), size=2, key=KEY)
    fitted = LinearRegression().fit(small.x, small.y)
    error = float(np.abs(fitted.predict(x) - y).max())
    return f"off by {error:.0e}, scikit-learn on the set alone", error < 1e-7


def rare_class() -> Outcome:
    classes = np.zeros(1001, int)
    classes[0] = 1
    x = RNG.standard_normal((1001, 5))
    model = jd.fit_ridge(LINEAR, x, jd.one_hot(classes, 2), lam=1.0, intercept=True)
    found = jd.certify(model, jd.distill(model, ipc=1, key=KEY), x, classes)
    assert found.accuracy_distilled is not None
    return f"accuracy {found.accuracy_distilled:.3f}, exact {found.exact}", found.accuracy_distilled >= 0.999


def california() -> Outcome:
    n = 3000
    columns = [RNG.uniform(0.5, 15, n), RNG.uniform(1, 52, n), RNG.gamma(5, 1, n), RNG.normal(1.1, 0.1, n)]
    columns += [RNG.gamma(2, 700, n), RNG.gamma(3, 1, n), RNG.uniform(32, 42, n), RNG.uniform(-124, -114, n)]
    x = np.stack(columns, axis=1)
    scales = np.array([0.44, 0.0094, -0.1, 0.6, -4e-6, -0.004, -0.42, -0.43])
    y = (x @ scales - 35 + 0.7 * RNG.standard_normal(n))[:, None]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "california.npz"
        np.savez(file, x_train=x[:2400], y_train=y[:2400], x_test=x[2400:], y_test=y[2400:])
        task = prepare(str(file))
    model = jd.fit_ridge(jd.features.Linear(8), task.x, task.y, intercept=True)
    small = jd.distill(model, size=8, dtype=np.float32, key=KEY).with_context(task.preprocess, None)
    buffer = io.BytesIO()
    small.save(buffer)
    buffer.seek(0)
    with np.load(buffer) as held:  # the set alone, and the transform that is in the file
        fitted = LinearRegression().fit(held["inputs"].astype(np.float64), held["labels"][:, 0])
        raw = np.asarray(held["images"])
    assert np.allclose(task.preprocess.forward(raw), small.x, rtol=1e-4, atol=1e-4)
    ours = np.mean((fitted.predict(task.x_test.astype(np.float64)) - y[2400:, 0]) ** 2)
    oracle = Ridge(alpha=model.lam).fit(task.x.astype(np.float64), task.y[:, 0])
    theirs = np.mean((oracle.predict(task.x_test.astype(np.float64)) - y[2400:, 0]) ** 2)
    return f"squared error {ours:.5f}, scikit-learn {theirs:.5f}", bool(abs(ours / theirs - 1) < 0.01)


def regression_scores() -> Outcome:
    model = jd.fit_ridge(LINEAR, X, T, lam=1.0)
    found = jd.certify(model, jd.distill(model, size=3, key=KEY), X, T)
    return f"accuracy {found.accuracy_full}, agreement {found.agreement}", found.accuracy_full is None


def wrong_labels() -> Outcome:
    model = jd.fit_ridge(LINEAR, X, Y, lam=1.0)
    small = jd.distill(model, ipc=1, key=KEY)
    return refused(lambda: jd.certify(model, small, X, np.where(CLASSES == 2, 7, CLASSES)), "y_test[2] is 7")


def real_targets_without_size() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        np.savez(file, x_train=X, y_train=T, x_test=X, y_test=T)
        told = io.StringIO()
        before, sys.stderr = sys.stderr, told
        try:
            status = command(["distill", "--dataset", str(file), "--out", f"{folder}/o"])
        finally:
            sys.stderr = before
    text = told.getvalue()
    return text.strip()[-90:], status == 2 and "give --size N" in text


def big_endian() -> Outcome:
    swapped = jd.fit_ridge(LINEAR, X.astype(">f8"), Y.astype(">f8"), lam=1.0)
    error = relative(swapped.weights, jd.fit_ridge(LINEAR, X, Y, lam=1.0).weights)
    return f"error {error:.0e}", error == 0


def plain_key() -> Outcome:
    model = jd.fit_ridge(LINEAR, X, Y, lam=1.0)
    seed: Any = 0
    return refused(lambda: jd.distill(model, ipc=1, key=seed), "jax.random.key")


def channels_first() -> Outcome:
    images = RNG.uniform(0, 1, (9, 3, 8, 8))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, x_train=images, y_train=np.arange(9) % 3, x_test=images, y_test=np.arange(9) % 3)
        return refused(lambda: jd.load_dataset(str(file)), "channels")


def odd_names() -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            draw_rows([Row("set", np.full((2, 8, 8, 1), 7.0))], ("$x", "猫"), file)
        return f"drawn, {file.stat().st_size} bytes", file.exists()


def sum_to_zero() -> Outcome:
    x = (X - X.mean(axis=0)).astype(np.float32)
    model = jd.fit_ridge(LINEAR, x, Y, lam=1.0)
    small = jd.distill(model, ipc=1, dtype=np.float32, key=KEY)
    found = jd.certify(model, small, x, CLASSES)
    told = (
        f"{small.recipe['labels']} labels, condition {found.condition:.1f}, float32 {found.agreement_float32}"
    )
    return told, found.condition < 1e3 and found.agreement_float32 == 1


def huge_penalty() -> Outcome:
    model = jd.fit_ridge(LINEAR, X, Y, lam=1e300)
    try:
        found = jd.certify(model, jd.distill(model, ipc=1, key=KEY))
    except JaxDistillError as error:
        return f"{type(error).__name__}: {str(error)[:90]}", True
    return f"exact {found.exact}", True


def cases() -> Iterator[tuple[str, str, Case]]:
    yield "1 the full model is not the ridge solution", "exact True", full_model
    yield "2 a column of size 1e8 beside five of size 1", "error 0.9999", large_column
    yield "2 a column that is another but for 1e-12, lam = 0", "nothing was said", hopeless_columns
    yield "3 time stamps 1.7e9 + 0..100 s", "2 of 200 distinct values", time_stamps
    yield "4 RBF at offset 1000 in float32", "largest 1.28, diagonal 0.78", far_kernel
    yield "5 targets 2 x0 + 5", "off by their mean", mean_of_targets
    yield "5 classes at 1 : 1000", "accuracy 0.531", rare_class
    yield "5 a table in raw units, set of 8", "no intercept", california
    yield "6 real targets of two outputs", "accuracy 0.85", regression_scores
    yield "6 a test label outside 0..k-1", "counted as wrong", wrong_labels
    yield "6 real targets without --size", "another message", real_targets_without_size
    yield "7 big-endian targets", "weights of exactly 0", big_endian
    yield "7 key=0", "a traceback of JAX", plain_key
    yield "8 images (n, 3, H, W)", "read as H x W x C", channels_first
    yield "8 names with $ and missing glyphs, a constant image", "the run ended", odd_names
    yield "11 a standardised float32 table", "hard labels, condition 6.5e6, float32 0.27", sum_to_zero
    yield "12 lam = 1e300", "ZeroDivisionError", huge_penalty


def main() -> int:
    failed = 0
    print("| case | before | after |\n| --- | --- | --- |")
    for name, before, case in cases():
        after, fine = case()
        failed += not fine
        print(f"| {name} | {before} | {after}{'' if fine else ' **WRONG**'} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
