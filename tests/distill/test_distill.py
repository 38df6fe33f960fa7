"""The front door: distill, certify, save, load; every request and every refusal."""

import json

import jax
import numpy as np
import pytest
from sklearn.linear_model import Ridge

import jaxdistill as jd
from jaxdistill import errors

KEY = jax.random.key(7)
NAMES = ["linear", "fourier", "orthogonal fourier", "network", "gaussian network"]


@pytest.fixture(scope="module")
def models(problem, maps):
    return {name: jd.fit_ridge(phi, problem["x"], problem["y"], lam=1.0) for name, phi in maps.items()}


@pytest.fixture(scope="module")
def centred(problem):
    y = problem["y"] - 1 / 3
    return jd.fit_ridge(jd.features.Linear(12), problem["x"], y, lam=1.0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("request_", [{"ipc": 1}, {"ipc": 2, "lam_s": "max"}, {"size": 5, "labels": "soft"}])
def test_sets_are_exact_in_both_types(models, problem, name, request_):
    for dtype in ("float64", "float32"):
        small = jd.distill(models[name], dtype=dtype, key=KEY, **request_)
        cert = jd.certify(models[name], small, problem["x_test"], problem["y_test"])
        assert small.x.dtype == dtype and small.y.dtype == np.float64
        assert cert.exact and cert.relative_weight_error <= cert.tolerance
        assert cert.agreement == 1.0 and cert.accuracy_full == cert.accuracy_distilled
        assert cert.stored == dtype


@pytest.mark.parametrize("name", NAMES)
def test_a_given_penalty_up_to_the_largest_is_met_exactly(models, name):
    largest = jd.distill(models[name], ipc=2, lam_s="max", key=KEY).lam
    for lam_s in (0.3 * largest, largest):
        small = jd.distill(models[name], ipc=2, lam_s=lam_s, key=KEY)
        assert small.lam == lam_s
        assert jd.certify(models[name], small).exact
    with pytest.raises(errors.PenaltyError, match="largest") as caught:
        jd.distill(models[name], ipc=2, lam_s=1.01 * largest, key=KEY)
    named = float(str(caught.value).split("admit, ")[1].split(";")[0])
    assert jd.distill(models[name], ipc=2, lam_s=named, key=KEY).lam == named


def test_centred_targets_need_one_point_less_and_below_that_the_loss_is_named(centred):
    assert jd.certify(centred, jd.distill(centred, size=2, key=KEY)).exact
    small = jd.distill(centred, size=1, key=KEY)
    cert = jd.certify(centred, small)
    assert not cert.exact and cert.rank == 2 and small.recipe["lost"] > 0
    assert small.recipe["construction"] == "reduced"


def test_below_the_rank_nothing_is_called_exact_even_with_no_error(problem):
    x = problem["x"]
    y = x[:, :2] @ np.array([[1.0, 0.0], [0.0, 1e-12]])
    model = jd.fit_ridge(jd.features.Linear(12), x, y, lam=0.0)
    assert np.linalg.matrix_rank(model.weights) == 2
    cert = jd.certify(model, jd.distill(model, size=1, key=KEY))
    assert cert.relative_weight_error < 1e-9 and not cert.exact


@pytest.mark.parametrize("targets", [1, 3])
def test_real_targets_are_distilled_to_as_many_points_as_their_rank(problem, targets):
    x = problem["x"]
    y = np.random.default_rng(0).standard_normal((150, targets))
    model = jd.fit_ridge(jd.features.Linear(12), x, y, lam=0.5)
    for size in (targets, targets + 3):
        cert = jd.certify(model, jd.distill(model, size=size, key=KEY), x, y)
        assert cert.exact and cert.accuracy_full is None
        assert np.isclose(cert.squared_error_full, cert.squared_error_distilled)
    with pytest.raises(errors.InputError, match="size"):
        jd.distill(model, ipc=1, key=KEY)


@pytest.mark.parametrize("realistic", ["closest", "inverse"])
def test_sets_near_real_examples_are_exact(models, problem, realistic):
    for name in ("linear", "network"):
        small = jd.distill(
            models[name], ipc=2, realistic=realistic, reference=(problem["x"], problem["y"]), key=KEY
        )
        assert jd.certify(models[name], small).exact


def test_fixed_examples_get_labels_and_are_exact_only_where_they_span(models, problem):
    reference = (problem["x"], problem["y"])
    few = jd.distill(models["linear"], ipc=1, realistic="fixed", reference=reference, key=KEY)
    many = jd.distill(models["linear"], ipc=6, realistic="fixed", reference=reference, key=KEY)
    assert not jd.certify(models["linear"], few).exact
    assert jd.certify(models["linear"], many).exact
    rows = {tuple(row) for row in problem["x"]}
    assert all(tuple(row) in rows for row in few.x.astype(np.float32))
    weighted = jd.distill(
        models["linear"], ipc=1, realistic="fixed", labels="weighted", reference=reference, key=KEY
    )
    errors_ = [jd.certify(models["linear"], s, problem["x"]).prediction_error for s in (few, weighted)]
    assert errors_[1] <= errors_[0]


def test_weights_of_centred_inputs_get_soft_labels_where_rounding_asks_for_it(problem):
    x = problem["x"] - problem["x"].mean(axis=0, dtype=np.float64).astype(np.float32)
    model = jd.fit_ridge(jd.features.Linear(12), x, problem["y"], lam=1.0)
    for labels, dtype, kind, exact in (
        (None, "float32", "soft", True),
        (None, "float64", "soft", True),  # the data are no better known for being stored so
        ("hard", "float32", "hard", False),
    ):
        small = jd.distill(model, ipc=1, labels=labels, dtype=dtype, key=KEY)
        assert small.recipe["labels"] == kind
        assert jd.certify(model, small).exact is exact


def test_own_labels_and_their_rank(models):
    labels = np.random.default_rng(1).standard_normal((4, 3))
    small = jd.distill(models["linear"], size=4, labels=labels, key=KEY)
    assert jd.certify(models["linear"], small).exact
    with pytest.raises(errors.RankError, match="rank 1"):
        jd.distill(models["linear"], size=4, labels=np.ones((4, 3)), key=KEY)
    with pytest.raises(errors.InputError, match="not finite"):
        jd.distill(models["linear"], size=4, labels=labels * np.nan, key=KEY)


def test_same_key_same_set_other_key_other_set(models):
    a, b, c = (jd.distill(models["network"], ipc=2, key=jax.random.key(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(a.x, b.x)
    assert np.max(np.abs(a.x - c.x)) > 0


@pytest.mark.parametrize(
    ("request_", "error", "says"),
    [
        ({}, errors.InputError, "either ipc"),
        ({"ipc": 1, "size": 3}, errors.InputError, "either ipc"),
        ({"ipc": 0}, errors.InputError, ">= 1"),
        ({"size": 2, "labels": "hard"}, errors.RankError, "every class"),
        ({"ipc": 1, "lam_s": "auto"}, errors.PenaltyError, "soft"),
        ({"ipc": 1, "labels": "soft", "lam_s": "max"}, errors.PenaltyError, "no largest"),
        ({"ipc": 1, "lam_s": -1.0}, errors.PenaltyError, ">= 0"),
        ({"ipc": 1, "labels": "firm"}, errors.InputError, "unknown labels"),
        ({"ipc": 1, "realistic": "closest"}, errors.InputError, "reference"),
        ({"ipc": 1, "realistic": "near"}, errors.InputError, "unknown realistic"),
        ({"ipc": 1, "noise": 0.0}, errors.InputError, "positive"),
        ({"ipc": 1, "dtype": "float16"}, errors.InputError, "float32"),
        ({"ipc": 1, "scale": -1.0}, errors.InputError, "scale"),
    ],
)
def test_requests_that_make_no_sense_are_refused(models, request_, error, says):
    with pytest.raises(error, match=says):
        jd.distill(models["linear"], key=KEY, **request_)


def test_a_class_with_too_few_real_examples_is_named(models, problem):
    keep = (problem["y"].argmax(1) != 2) | (np.arange(150) < 3)
    with pytest.raises(errors.InputError, match="class 2"):
        jd.distill(
            models["linear"],
            ipc=4,
            realistic="closest",
            reference=(problem["x"][keep], problem["y"][keep]),
            key=KEY,
        )


def test_a_scale_out_of_range_is_refused_for_bounded_maps(models):
    with pytest.raises(errors.InverseError, match="at most"):
        jd.distill(models["fourier"], ipc=1, scale=1e3, key=KEY)


def test_a_changed_set_is_not_exact(models):
    import dataclasses

    small = jd.distill(models["linear"], ipc=1, key=KEY)
    assert not jd.certify(models["linear"], dataclasses.replace(small, x=small.x * 1.001)).exact


@pytest.fixture
def saved(models, problem, tmp_path):
    small = jd.distill(models["network"], ipc=1, dtype="float32", key=KEY)
    cert = jd.certify(models["network"], small, problem["x_test"], problem["y_test"])
    return small, cert, small.with_certificate(cert).save(tmp_path / "small.npz")


def test_a_file_is_read_back_equal_and_by_numpy_alone(saved, problem):
    small, cert, path = saved
    again = jd.DistilledSet.load(path)
    np.testing.assert_array_equal(again.x, small.x)
    assert again.digest == small.digest and again.certificate == cert.to_dict()
    assert jd.certify(again, again, problem["x_test"], problem["y_test"]) == cert
    with np.load(path, allow_pickle=False) as file:
        assert {"images", "inputs", "labels", "lam", "weights", "meta"} <= set(file.files)
        assert file["inputs"].dtype == np.float32 and file["labels"].dtype == np.float64
        assert json.loads(str(file["meta"]))["features"]["kind"] == "network"
    assert [p.name for p in path.parent.iterdir()] == ["small.npz"]


def test_a_stranger_trains_from_the_file_with_scikit_learn(models, tmp_path):
    path = jd.distill(models["linear"], ipc=1, labels="soft", key=KEY).save(tmp_path / "s.npz")
    with np.load(path, allow_pickle=False) as file:
        ridge = Ridge(alpha=float(file["lam"]), fit_intercept=False).fit(file["inputs"], file["labels"])
        np.testing.assert_allclose(ridge.coef_.T, file["weights"], rtol=1e-8, atol=1e-10)


def rewrite(path, **changes):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **arrays)


def test_damaged_altered_foreign_and_newer_files_are_refused(saved, tmp_path):
    small, _, path = saved
    with pytest.raises(errors.ArtifactError, match="does not exist"):
        jd.DistilledSet.load(tmp_path / "none.npz")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(errors.ArtifactError, match="damaged"):
        jd.DistilledSet.load(path)
    path.write_bytes(content)
    rewrite(path, labels=small.y * 1.0001)
    with pytest.raises(errors.ArtifactError, match="altered"):
        jd.DistilledSet.load(path)
    path.write_bytes(content)
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
    rewrite(path, meta=np.array(json.dumps(meta | {"format": meta["format"] + 1})))
    with pytest.raises(errors.ArtifactError, match="upgrade"):
        jd.DistilledSet.load(path)
    np.savez(path, meta=np.array([{}], dtype=object))
    with pytest.raises(errors.ArtifactError, match="pickled"):
        jd.DistilledSet.load(path)
    np.savez(path, a=np.ones(3))
    with pytest.raises(errors.ArtifactError, match="no 'meta'"):
        jd.DistilledSet.load(path)


def test_output_that_cannot_be_written_and_a_foreign_certificate(saved, models, tmp_path):
    small, cert, _ = saved
    with pytest.raises(errors.OutputError, match="cannot write"):
        small.save(tmp_path / "no" / "folder.npz")
    other = jd.distill(models["network"], ipc=2, key=KEY)
    with pytest.raises(errors.ArtifactError, match="another set"):
        other.with_certificate(cert)


def test_certify_refuses_what_does_not_fit(models, problem):
    small = jd.distill(models["linear"], ipc=1, key=KEY)
    with pytest.raises(errors.InputError, match="distilled"):
        jd.certify(models["network"], small)
    with pytest.raises(errors.InputError, match="x_test"):
        jd.certify(models["linear"], small, problem["x_test"][:, :3])
    with pytest.raises(errors.InputError, match="y_test"):
        jd.certify(models["linear"], small, problem["x_test"], np.zeros(3, int))
