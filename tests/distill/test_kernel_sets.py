"""Distilled sets of kernels: supports, labels, the certificate against plain NumPy, files, KIP."""

import jax
import numpy as np
import pytest
from helpers import relative

import jaxdistill as jd
from jaxdistill import kernels
from jaxdistill.errors import ArtifactError, InputError, KernelError, PenaltyError
from jaxdistill.kernels.tiles import kernel_matrix

KEY = jax.random.key(4)
KERNEL = kernels.NTK(1)


@pytest.fixture(scope="module")
def model(problem):
    return jd.fit_kernel_ridge(KERNEL, problem["x"], problem["y"], lam=0.1)


def make(model, problem, **settings):
    return jd.distill_kernel(model, problem["x"], problem["y"], **{"ipc": 3, "key": KEY, **settings})


def gram(x, z=None):
    return kernel_matrix(KERNEL, x, z, dtype=np.float64)


def retrained(small):
    k_ss = gram(small.x)
    return np.linalg.solve(k_ss + small.lam * np.eye(len(k_ss)), small.y)


@pytest.mark.parametrize("support", ["balanced", "pivoted", "kmeans"])
def test_solved_labels_are_least_squares_on_all_targets(model, problem, support):
    small = make(model, problem, support=support)
    k_ts = gram(problem["x"], small.x)
    best = np.linalg.lstsq(k_ts, problem["y"], rcond=None)[0]
    residual = np.linalg.norm(k_ts @ retrained(small) - problem["y"])
    np.testing.assert_allclose(residual, np.linalg.norm(k_ts @ best - problem["y"]), rtol=1e-6)
    assert small.x.shape == (9, 12) and small.x.dtype == problem["x"].dtype
    if support == "balanced":
        rows = [np.flatnonzero((problem["x"] == point).all(1))[0] for point in small.x]
        assert problem["y"][rows].argmax(1).tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize("lam_s", [None, 0.0, 3.0])
def test_projected_labels_are_the_nearest_for_every_penalty(model, problem, lam_s):
    small = make(model, problem, labels="projected", lam_s=lam_s)
    beta, k_ss = retrained(small), gram(small.x)
    np.testing.assert_allclose(beta, np.linalg.solve(k_ss, small.values), atol=1e-6 * np.abs(beta).max())
    found = jd.certify(model, small)
    np.testing.assert_allclose(found.relative_weight_error, found.best_weight_error, rtol=1e-7)
    rng = np.random.default_rng(0)
    for _ in range(3):  # any other labels are farther away
        other = jd.KernelSet(**{**small.__dict__, "y": small.y + 0.01 * rng.standard_normal(small.y.shape)})
        assert jd.certify(model, other).relative_weight_error > found.relative_weight_error


def test_hard_labels_are_class_rows(model, problem):
    small = make(model, problem, labels="hard")
    np.testing.assert_array_equal(small.y, np.tile(np.eye(3), (3, 1)))
    np.testing.assert_allclose(small.lam, 1e-6 * np.trace(gram(small.x)) / 9)


def test_every_number_of_the_certificate_is_that_of_plain_numpy(model, problem):
    small = make(model, problem)
    xt, classes = problem["x_test"], problem["y_test"]
    found = jd.certify(model, small, xt, classes)
    beta, alpha = retrained(small), model.alpha
    both = np.concatenate([problem["x"], small.x])
    difference = np.concatenate([alpha, -beta])
    distance = np.sqrt(np.trace(difference.T @ gram(both) @ difference))
    norm = np.sqrt(np.trace(alpha.T @ gram(problem["x"]) @ alpha))
    own = np.sqrt(np.trace(beta.T @ gram(small.x) @ beta))
    f, g = gram(xt, problem["x"]) @ alpha, gram(xt, small.x) @ beta
    named = f.argmax(1)
    expected = {
        "relative_weight_error": distance / norm,
        "cosine": np.trace(alpha.T @ gram(problem["x"], small.x) @ beta) / norm / own,
        "condition": np.linalg.cond(gram(small.x)),
        "largest_gap": np.linalg.norm(f - g, axis=1).max(),
        "gap_bound": distance * np.sqrt(np.diag(gram(xt)).max()),
        "agreement": np.mean(g.argmax(1) == named),
        "accuracy_full": np.mean(named == classes),
        "accuracy_distilled": np.mean(g.argmax(1) == classes),
        "prediction_error": relative(g, f),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found.to_dict()[name], value, rtol=1e-6, err_msg=name)
    assert found.largest_gap is not None and found.gap_bound is not None
    assert found.largest_gap <= found.gap_bound and not found.exact and found.num_test == len(xt)
    assert found.relative_weight_error_float32 == pytest.approx(found.relative_weight_error, rel=1e-3)
    rows = jd.certify(model, small, xt, np.eye(3)[classes])
    assert rows.squared_error_distilled is not None
    np.testing.assert_allclose(
        rows.squared_error_distilled, np.mean((g - np.eye(3)[classes]) ** 2), rtol=1e-6
    )


def test_only_a_set_whose_span_holds_the_model_is_called_exact(model, problem):
    n = len(problem["x"])
    all_points = make(model, problem, ipc=None, size=n, labels="projected")
    found = jd.certify(model, all_points)
    assert found.exact and found.relative_weight_error <= found.tolerance < 1e-4
    nearly = make(model, problem, ipc=None, size=n - 3, labels="projected")
    assert not jd.certify(model, nearly).exact
    rounded = jd.KernelSet(
        **{**all_points.__dict__, "y": np.float32(all_points.y).astype(np.float64) * 1.001}
    )
    assert not jd.certify(model, rounded).exact


def test_a_model_solved_in_float32_is_never_called_exact(problem):
    x, y = problem["x"], problem["y"]
    model = jd.fit_kernel_ridge(KERNEL, x, y, lam=1.0, solver="cg", dtype=np.float32, key=KEY)
    small = jd.distill_kernel(model, x, y, size=len(x), labels="projected", key=KEY)
    found = jd.certify(model, small)
    assert not found.exact and found.tolerance > 1e-4


def test_pivots_leave_less_of_the_kernel_than_random_points(problem):
    x = problem["x"]
    kernel = kernels.RBF(6.0)
    model = jd.fit_kernel_ridge(kernel, x, problem["y"], lam=0.1)

    def left(support, seed):
        small = jd.distill_kernel(
            model, x, problem["y"], size=20, support=support, key=jax.random.key(seed), labels="projected"
        )
        columns = kernel_matrix(kernel, x, small.x, dtype=np.float64)
        explained = columns @ np.linalg.solve(kernel_matrix(kernel, small.x, dtype=np.float64), columns.T)
        return len(x) - np.trace(explained)

    assert np.mean([left("pivoted", s) for s in range(4)]) < np.mean([left("balanced", s) for s in range(4)])


@pytest.mark.parametrize(
    "kernel", [KERNEL, 0.5 * kernels.RBF(3.0) + kernels.Linear(), "network"], ids=["ntk", "sum", "features"]
)
def test_a_file_holds_all_that_the_certificate_needs(problem, maps, tmp_path, kernel):
    kernel = kernels.FeatureKernel(maps["network"]) if kernel == "network" else kernel
    model = jd.fit_kernel_ridge(kernel, problem["x"], problem["y"], lam=0.1)
    small = make(model, problem, ipc=1).with_context(None, ("a", "b", "c"))
    cert = jd.certify(model, small, problem["x_test"], problem["y_test"])
    path = small.with_certificate(cert).save(tmp_path / "s.npz")
    again = jd.load_set(path)
    assert isinstance(again, jd.KernelSet) and again.digest == small.digest
    assert again.class_names == ("a", "b", "c") and again.certificate == cert.to_dict()
    found = jd.certify(again, again, problem["x_test"], problem["y_test"])
    for name in ("relative_weight_error", "accuracy_distilled", "gap_bound", "exact", "cosine"):
        assert getattr(found, name) == getattr(cert, name)
    assert found.accuracy_full is None and found.agreement is None
    plain = np.load(path, allow_pickle=False)
    assert plain["inputs"].shape == (3, 12) and float(plain["lam"]) == small.lam
    with pytest.raises(ArtifactError, match="load_set"):
        jd.DistilledSet.load(path)


def test_files_of_feature_maps_are_read_by_the_same_function(problem, maps, tmp_path):
    small = jd.distill(jd.fit_ridge(maps["linear"], problem["x"], problem["y"], lam=1.0), ipc=1, key=KEY)
    path = small.save(tmp_path / "s.npz")
    assert isinstance(jd.load_set(path), jd.DistilledSet)
    with pytest.raises(ArtifactError, match="load_set"):
        jd.KernelSet.load(path)


@pytest.mark.parametrize("drop", ["values", "squared_norm"])
def test_a_missing_part_is_named(model, problem, tmp_path, drop):
    path = make(model, problem).save(tmp_path / "s.npz")
    arrays = dict(np.load(path))
    del arrays[drop]
    np.savez(path, **arrays)
    with pytest.raises(ArtifactError, match=f"lacks {drop}"):
        jd.load_set(path)


def test_a_kernel_of_code_cannot_be_saved_and_says_so(problem, tmp_path):
    kernel = kernels.from_neural_tangents(lambda a, b, get: a @ b.T + 1.0)
    model = jd.fit_kernel_ridge(kernel, problem["x"], problem["y"], lam=0.1)
    with pytest.raises(ArtifactError, match=r"numpy\.savez"):
        make(model, problem).save(tmp_path / "s.npz")
    assert list(tmp_path.iterdir()) == []


def test_real_targets_and_more_targets_than_the_model_has_seen(problem):
    x = problem["x"]
    y = np.stack([np.sin(x[:, 0]), x[:, 1]], axis=1)
    model = jd.fit_kernel_ridge(KERNEL, x[:60], y[:60], lam=0.1)
    small = jd.distill_kernel(model, x, y, size=20, support="kmeans", key=KEY)
    assert small.recipe["num_targets"] == 150 and small.recipe["num_train"] == 60
    found = jd.certify(model, small, problem["x_test"], np.zeros((60, 2)))
    assert found.accuracy_full is None and found.squared_error_distilled is not None


@pytest.mark.parametrize("labels", ["fixed", "learned", "solved"])
def test_kip_takes_the_same_kernels_and_starts_from_the_analytic_set(model, problem, labels):
    start = make(model, problem)
    config = jd.kip.KipConfig(start=start, steps=20, labels=labels, learning_rate=0.005)
    result = jd.kip.train(model, problem["x"], problem["y"], config, key=KEY)
    assert isinstance(result.small, jd.KernelSet) and result.small.x.shape == start.x.shape
    assert result.history.loss[-1, 0] < result.history.loss[0, 0]
    found = jd.certify(model, result.small, problem["x_test"], problem["y_test"])
    assert found.accuracy_distilled is not None and found.accuracy_distilled > 0.8
    alone = jd.kip.train(KERNEL, problem["x"], problem["y"], config, key=KEY)
    np.testing.assert_array_equal(alone.x, result.x)


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"support": "pivots"}, InputError, "did you mean 'pivoted'"),
        ({"labels": "solve"}, InputError, "did you mean 'solved'"),
        ({"ipc": None}, InputError, "give either"),
        ({"ipc": 0}, InputError, "ipc is 0"),
        ({"ipc": 51}, InputError, "153 are asked for"),
        ({"lam_s": -1.0}, PenaltyError, ">= 0"),
        ({"x": np.zeros((150, 3, 4), np.float32)}, InputError, "flatten images"),
        ({"y": np.zeros((150, 2))}, InputError, r"expected \(150, 3\)"),
    ],
)
def test_bad_input_is_refused_with_the_cure(model, problem, settings, error, says):
    given = {"x": problem["x"], "y": problem["y"], "ipc": 3, "key": KEY} | settings
    with pytest.raises(error, match=says):
        jd.distill_kernel(model, **given)


def test_dependent_points_and_a_foreign_model_are_refused(model, problem):
    x = np.repeat(problem["x"][:4], 5, axis=0)
    with pytest.raises(KernelError, match="cannot tell"):
        jd.distill_kernel(model, x, problem["y"][:20], size=20, labels="projected", key=KEY)
    with pytest.raises(KernelError, match="explain the kernel"):
        jd.distill_kernel(model, x, problem["y"][:20], size=20, support="pivoted", key=KEY)
    other = jd.fit_kernel_ridge(KERNEL, problem["x"], problem["y"], lam=1.0)
    with pytest.raises(InputError, match="another model"):
        jd.certify(other, make(model, problem))
