"""Tiles against whole matrices, pivoted Cholesky against its definition, ridge against scikit-learn."""

import jax
import numpy as np
import pytest
from helpers import relative
from sklearn.kernel_ridge import KernelRidge

import jaxdistill as jd
from jaxdistill import kernels
from jaxdistill.errors import InputError, KernelError, MemoryBudgetError, PenaltyError
from jaxdistill.kernels.pivoted import pivoted_cholesky
from jaxdistill.kernels.tiles import TiledKernel, kernel_diagonal, kernel_matrix
from jaxdistill.kernels.tiling import Tiling, plan_tiles
from jaxdistill.numerics.linalg import in_float64
from jaxdistill.ridge.conjugate_gradients import Preconditioner
from jaxdistill.ridge.kernel_fit import fit_kernel_ridge

KEY = jax.random.key(0)
matrix = jax.jit(lambda kernel, x, z: kernel.matrix(x, z))


def points(seed, n, d=4):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize(
    ("n", "m", "entries", "symmetric"),
    [
        (1, 1, 256, False),
        (70, 33, 600, False),
        (20, 70, 300, False),
        (70, 70, 900, True),
        (33, 33, 5000, True),
    ],
)
def test_tiles_of_any_size_make_the_matrix_and_its_products(n, m, entries, symmetric):
    x = points(0, n)
    z = x if symmetric else points(1, m)
    kernel = kernels.NTK(1)
    operator = TiledKernel.of(kernel, x, None if symmetric else z, memory=32 * entries)
    whole = in_float64(matrix, kernel, x, z).copy()
    if symmetric:
        np.fill_diagonal(whole, in_float64(jax.jit(type(kernel).diagonal), kernel, x))
    assert operator.tiling.rows * operator.tiling.columns <= entries
    found = operator.to_matrix()
    np.testing.assert_allclose(found, whole, rtol=1e-9)
    if symmetric:
        np.testing.assert_array_equal(found, found.T)
    v = points(2, len(z), 3)
    np.testing.assert_allclose(operator.matmul(v), whole @ v, atol=1e-11 * len(z))
    if not symmetric:
        square, right = operator.normal_equations(whole[:, :1])
        np.testing.assert_allclose(square, whole.T @ whole, rtol=1e-9)
        np.testing.assert_allclose(right, whole.T @ whole[:, :1], rtol=1e-9)


@pytest.mark.parametrize("entries", [None, 12, 1])
@pytest.mark.parametrize(("n", "m"), [(7, 5), (40, 33), (9, None)])
def test_tiles_of_kernels_with_a_workspace_are_few_or_filled_up(n, m, entries, monkeypatch):
    kernel = kernels.from_neural_tangents(lambda a, b, get: jax.numpy.exp(a @ b.T / 4))
    x = points(0, n)
    z = x if m is None else points(1, m)
    if entries is not None:
        workspace = kernel.workspace(4, np.float64)
        monkeypatch.setattr("jaxdistill.kernels.tiling.WORKSPACE", entries * workspace)
    operator = TiledKernel.of(kernel, x, None if m is None else z)
    size = operator.tiling.rows * operator.tiling.columns
    assert size <= entries if entries else size in (32**2, 64**2)
    whole = np.exp(x @ z.T / 4)
    np.testing.assert_allclose(operator.to_matrix(), whole, rtol=1e-12)
    v = points(2, len(z), 3)
    np.testing.assert_allclose(operator.matmul(v), whole @ v, rtol=1e-10, atol=1e-10)
    square, right = operator.normal_equations(whole[:, :1])
    np.testing.assert_allclose(square, whole.T @ whole, rtol=1e-10)
    np.testing.assert_allclose(right, whole.T @ whole[:, :1], rtol=1e-10)
    np.testing.assert_allclose(kernel_diagonal(kernel, x), np.exp(np.sum(x**2, axis=1) / 4), rtol=1e-12)


def test_kernels_with_a_workspace_are_compiled_once_for_many_sizes():
    from jaxdistill.kernels.tiles import _entries

    kernel = kernels.from_neural_tangents(lambda a, b, get: a @ b.T)
    before = _entries._cache_size()
    for n, m in ((3, 32), (11, 7), (20, 25)):
        kernel_matrix(kernel, points(0, n), points(1, m))
        kernel_matrix(kernel, points(0, n))
    assert _entries._cache_size() == before + 1
    assert plan_tiles(300, 10, np.float64, workspace=2**18) == plan_tiles(
        260, 31, np.float64, workspace=2**18
    )
    with pytest.raises(MemoryBudgetError, match="1048608 bytes"):
        plan_tiles(300, 10, np.float64, memory=2**20, workspace=2**20)


def test_products_with_many_inputs_compile_once_and_run_in_their_precision():
    from jaxdistill.kernels.tiles import _add_product

    x = points(3, 300).astype(np.float32)
    operator = TiledKernel.of(kernels.RBF(2.0), x, memory=16 * 64**2)
    assert operator.tiling == Tiling(64, 64)
    before = _add_product._cache_size()
    v = points(4, 300, 2)
    found = operator.matmul(v)
    assert _add_product._cache_size() == before + 1
    exact = in_float64(matrix, kernels.RBF(2.0), x.astype(np.float64), x.astype(np.float64)) @ v
    assert 1e-9 < relative(found, exact) < 1e-6


def test_a_budget_that_cannot_hold_one_tile_is_named():
    with pytest.raises(MemoryBudgetError, match=r"1000 bytes\) cannot hold one tile.*8192 bytes"):
        plan_tiles(10**5, 10**5, np.float64, memory=1000)
    with pytest.raises(MemoryBudgetError, match="cannot hold one tile"):
        kernel_matrix(kernels.NTK(), points(0, 50), memory=10)


def test_a_matrix_larger_than_memory_is_refused(monkeypatch):
    monkeypatch.setattr("jaxdistill.kernels.tiles.available_bytes", lambda: 10**5)
    with pytest.raises(MemoryBudgetError, match="use products"):
        kernel_matrix(kernels.NTK(), points(0, 200), memory=10**5)


@pytest.mark.parametrize("rank", [1, 7, 40])
def test_pivoted_cholesky_is_the_projection_on_its_pivots(rank):
    x, kernel = points(5, 40), kernels.RBF(2.0)
    found = pivoted_cholesky(kernel, x, rank, key=KEY)
    gram = in_float64(matrix, kernel, x, x)
    assert len(set(found.pivots)) == len(found.pivots) == rank
    columns = gram[:, found.pivots]
    nystrom = columns @ np.linalg.solve(gram[np.ix_(found.pivots, found.pivots)], columns.T)
    approximation = found.factor @ found.factor.T
    np.testing.assert_allclose(approximation, nystrom, atol=1e-8)
    left = np.trace(gram - approximation) / np.trace(gram)
    np.testing.assert_allclose(found.unexplained, max(left, 0), atol=1e-10)


@pytest.mark.long
def test_pivots_are_drawn_in_proportion_to_what_is_left():
    # Three orthogonal inputs with diagonal 1, 2, 5: the first pivot has these odds, the second what remains.
    x = np.diag(np.sqrt([1.0, 2.0, 5.0]))
    draws = [pivoted_cholesky(kernels.Linear(), x, 2, key=jax.random.key(s)).pivots for s in range(400)]
    first = np.bincount([d[0] for d in draws], minlength=3) / 400
    np.testing.assert_allclose(first, np.array([1, 2, 5]) / 8, atol=0.08)
    second = np.bincount([d[1] for d in draws if d[0] == 2], minlength=3)
    np.testing.assert_allclose(second[:2] / second.sum(), [1 / 3, 2 / 3], atol=0.1)


def test_pivoting_stops_at_the_rank_of_the_kernel():
    x = np.concatenate([points(6, 3, 8)] * 4)
    found = pivoted_cholesky(kernels.Linear(), x, 9, key=KEY)
    assert len(found.pivots) == 3 and found.unexplained < 1e-12


def test_the_preconditioner_is_the_inverse_it_says():
    factor, v = points(7, 30, 5), points(8, 30, 2)
    with jax.enable_x64(True):
        found = Preconditioner.of(factor, 0.3).apply(v)
    np.testing.assert_allclose(
        found, 0.3 * np.linalg.solve(factor @ factor.T + 0.3 * np.eye(30), v), rtol=1e-10
    )


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_the_model_is_that_of_scikit_learn(solver):
    x, t = points(9, 120), points(10, 20)
    y = np.stack([np.sin(x[:, 0]), x[:, 1] ** 2], axis=1)
    model = fit_kernel_ridge(kernels.RBF(1.5), x, y, lam=0.05, solver=solver, tolerance=1e-10, key=KEY)
    other = KernelRidge(alpha=0.05, kernel="rbf", gamma=1 / (2 * 1.5**2)).fit(x, y)
    np.testing.assert_allclose(model.predict(t), other.predict(t), atol=1e-7)
    np.testing.assert_allclose(model.alpha, other.dual_coef_, atol=1e-7)
    norm = np.trace(model.alpha.T @ in_float64(matrix, model.kernel, x, x) @ model.alpha)
    np.testing.assert_allclose(model.squared_norm, norm, rtol=1e-7)
    assert model.solver == solver and model.residual < 1e-9 and (model.steps > 0) == (solver == "cg")


@pytest.mark.long
def test_a_better_preconditioner_needs_fewer_steps():
    x, y = points(11, 400, 3), points(12, 400, 1)
    steps = [
        fit_kernel_ridge(kernels.RBF(2.0), x, y, lam=1e-3, solver="cg", rank=r, key=KEY).steps
        for r in (1, 30, 200)
    ]
    assert steps[0] > 2 * steps[1] > 2 * steps[2]


def test_leave_one_out_is_leaving_one_out():
    x, y = points(13, 30), points(14, 30, 2)
    lams = [1e-2, 1.0, 100.0]
    model = fit_kernel_ridge(kernels.Matern32(2.0), x, y, lam="auto", lams=lams)
    selection = model.selection
    assert selection is not None and selection.method == "leave-one-out" and model.lam == selection.lam
    for lam, score in zip(lams, selection.squared_errors, strict=True):
        errors = []
        for i in range(30):
            rest = np.arange(30) != i
            one = fit_kernel_ridge(kernels.Matern32(2.0), x[rest], y[rest], lam=lam)
            errors.append(np.sum((one.predict(x[i : i + 1]) - y[i]) ** 2))
        np.testing.assert_allclose(score, np.mean(errors), rtol=1e-8)


def test_a_model_of_features_and_one_of_their_kernel_are_the_same(problem, maps):
    for name in ("linear", "network"):
        model = jd.fit_ridge(maps[name], problem["x"], problem["y"])
        dual = fit_kernel_ridge(kernels.FeatureKernel(maps[name]), problem["x"], problem["y"])
        assert dual.selection is not None and dual.lam == model.lam
        np.testing.assert_allclose(
            dual.predict(problem["x_test"]), model.predict(problem["x_test"]), atol=1e-4
        )


def test_held_out_data_and_subsets_choose_the_penalty(problem, monkeypatch):
    x, y, kernel = problem["x"], problem["y"], kernels.NTK()
    held = fit_kernel_ridge(kernel, x[:100], y[:100], validation=(x[100:], y[100:]))
    assert held.selection is not None and held.selection.method == "validation"
    at = fit_kernel_ridge(kernel, x[:100], y[:100], lam=held.lam)
    wrong = np.mean(at.predict(x[100:]).argmax(1) != y[100:].argmax(1))
    np.testing.assert_allclose(held.selection.error_rates[held.selection.index], wrong)
    drawn = fit_kernel_ridge(kernel, x, y, validation=0.2, key=KEY)
    assert drawn.selection is not None and len(drawn.alpha) == len(x)
    monkeypatch.setattr("jaxdistill.ridge.kernel_selection.MOST_EXAMPLES", 60)
    subset = fit_kernel_ridge(kernel, x, y, key=KEY)
    assert subset.selection is not None and subset.selection.method == "leave-one-out on 60 of 150 examples"


INDEFINITE = kernels.from_neural_tangents(lambda a, b, get: -(a @ b.T))


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"kernel": INDEFINITE, "lam": 0.1}, KernelError, r"eigenvalue of -\d"),
        ({"kernel": INDEFINITE, "lam": 0.1, "solver": "cg"}, KernelError, r"k\(x, x\) is -"),
        ({"kernel": INDEFINITE}, KernelError, "not positive semidefinite: its smallest eigenvalue is -"),
        ({"kernel": kernels.Linear(), "lam": 0.0}, KernelError, "eigenvalue of|too close to singular"),
        ({"x": points(0, 20).reshape(20, 2, 2)}, InputError, "flatten images"),
        ({"x": np.full((20, 4), np.nan)}, InputError, "not finite"),
        ({"y": np.arange(20)}, InputError, "one_hot"),
        ({"lam": -1.0}, PenaltyError, ">= 0"),
        ({"lam": 0.0, "solver": "cg"}, PenaltyError, "positive penalty"),
        ({"lam": 0.1, "solver": "cg", "key": None}, InputError, "pass key"),
        ({"solver": "cgs"}, InputError, "did you mean 'cg'"),
        ({"validation": "often"}, InputError, "unknown validation"),
        ({"validation": 1.5}, InputError, "both sides"),
        ({"validation": 0.5, "key": None}, InputError, "pass key"),
        ({"validation": (points(0, 5), points(0, 5, 3))}, InputError, r"expected \(5, 1\)"),
        ({"lam": 1e-3, "solver": "cg", "rank": 1, "max_steps": 2}, KernelError, "larger rank"),
        ({"lam": 1e-3, "solver": "cg", "rank": 21}, InputError, "1 to the 20"),
    ],
)
def test_bad_input_is_refused_with_the_cure(settings, error, says):
    given = {"kernel": kernels.RBF(2.0), "x": points(0, 20), "y": points(1, 20, 1), "key": KEY} | settings
    with pytest.raises(error, match=says):
        fit_kernel_ridge(**given)


def test_an_indefinite_kernel_is_found_by_conjugate_gradients_too():
    # A positive diagonal hides it from the pivots.
    kernel = kernels.from_neural_tangents(lambda a, b, get: 1.0 - (a @ b.T) ** 2)
    x = 0.1 * points(3, 30, 2)
    with pytest.raises(KernelError, match="eigenvalue of at most -"):
        fit_kernel_ridge(kernel, x, x[:, :1], lam=1e-3, solver="cg", rank=1, key=KEY)


def test_too_little_memory_turns_to_tiles_or_says_so():
    x, y = points(0, 60), points(1, 60, 1)
    assert fit_kernel_ridge(kernels.RBF(2.0), x, y, lam=0.1, memory=8 * 60**2, key=KEY).solver == "cg"
    with pytest.raises(MemoryBudgetError, match="cannot hold one tile"):
        fit_kernel_ridge(kernels.RBF(2.0), x, y, lam=0.1, memory=100, key=KEY)
