"""Targets say what they are: classes are counted, real values measured, anything else is told."""

import jax
import numpy as np
import pytest
from encodings_of_arrays import LAYOUTS, laid_out
from hypothesis import given
from hypothesis import strategies as st

import jaxdistill as jd
from jaxdistill.errors import InputError
from jaxdistill.evaluate.scores import accuracy, agreement, classes_of, read_test_targets, squared_error

KEY = jax.random.key(0)
K = 3


@given(
    dtype=st.sampled_from(["i1", "u1", ">i2", "i8", ">u8"]),
    layout=st.sampled_from(["C", "reversed", "read-only"]),
    classes=st.lists(st.integers(0, K - 1), min_size=1, max_size=9),
)
def test_class_numbers_of_every_integer_type_are_counted(dtype, layout, classes):
    y = np.array(classes).astype(dtype)
    y = y[::-1].copy()[::-1] if layout == "reversed" else y
    y.flags.writeable = layout != "read-only"
    found = read_test_targets(y, len(y), K, real=False)
    assert found.rows is None and found.classes.tolist() == classes
    assert accuracy(np.eye(K)[classes], found) == 1.0 and squared_error(np.eye(K)[classes], found) is None


@given(
    dtype=st.sampled_from(["?", "u1", ">i4", "f2", "f4", ">f8", "longdouble"]),
    layout=st.sampled_from(LAYOUTS),
    centred=st.booleans(),
    classes=st.lists(st.integers(0, K - 1), min_size=1, max_size=9),
)
def test_class_rows_of_every_type_have_both_scores(dtype, layout, centred, classes):
    rows = np.eye(K)[classes]
    if centred and dtype in (">f8", "longdouble"):
        rows = rows - 1 / K
    y = laid_out(rows.astype(dtype), layout)
    found = read_test_targets(y, len(y), K, real=False)
    assert found.classes.tolist() == classes
    np.testing.assert_allclose(found.rows, rows, atol=1e-15)
    assert accuracy(rows, found) == 1.0 and squared_error(rows, found) < 1e-30


@given(seed=st.integers(0, 2**16), width=st.integers(1, 4), dtype=st.sampled_from(["f4", ">f8", "i4"]))
def test_real_values_have_squared_errors_and_never_an_accuracy(seed, width, dtype):
    rng = np.random.default_rng(seed)
    y = (10 * rng.standard_normal((8, width))).astype(dtype)
    found = read_test_targets(y, 8, width, real=True)
    outputs = rng.standard_normal((8, width))
    assert accuracy(outputs, found) is None and agreement(outputs, outputs, real=True) is None
    np.testing.assert_allclose(squared_error(outputs, found), np.mean((outputs - y.astype("f8")) ** 2))


def test_two_real_outputs_are_no_classes():
    y = np.array([[1.5, -0.5], [0.2, 0.9], [3.0, 4.0]])
    for real in (False, True):
        assert read_test_targets(y, 3, 2, real=real).classes is None
    assert classes_of(y) is None
    # Real values that happen to be one-hot rows stay real values.
    assert read_test_targets(np.eye(2), 2, 2, real=True).classes is None


@pytest.mark.parametrize("y", [[0.5, 2.0], [1, 2], np.array([[0.5], [2.0]])])
def test_values_of_a_single_output_may_be_a_vector(y):
    found = read_test_targets(y, 2, 1, real=True)
    assert found.classes is None
    np.testing.assert_array_equal(found.rows, np.reshape(y, (2, 1)))


@pytest.mark.parametrize(
    ("y", "words"),
    [
        ([0, 3, 1], r"y_test\[1\] is 3, outside 0..2"),
        ([0, 1, -1], r"y_test\[2\] is -1, outside 0..2"),
        (["cat", "dog", "cat"], "y_test is 'cat'; number the classes"),
        ([0.0, 1.0, 2.0], r"y_test\[0\] is 0.0, no integer"),
        ([0.5, np.nan, 2.0], r"y_test\[0\] is 0.5, no integer"),
        ([True, False, True], r"y_test\[0\] is True, a truth value"),
        (np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool), r"y_test\[1\] holds 2 true values"),
        ([0, 1], r"shape \(2,\), expected \(3, 3\) or classes \(3,\)"),
        (np.eye(3)[:, :2], r"shape \(3, 2\)"),
        (np.zeros((3, 1), int), r"shape \(3, 1\)"),
        (np.zeros((3, 3, 1)), r"shape \(3, 3, 1\)"),
        (2, r"shape \(\)"),
        ([None, 0, 1], "Python objects"),
        (np.array([0, 1, 2], complex), "type complex128"),
    ],
)
def test_what_names_no_target_is_told_in_one_line(y, words):
    with pytest.raises(InputError, match=words) as caught:
        read_test_targets(y, 3, K, real=False)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 5))
    return x, x @ rng.standard_normal((5, 2)) + 0.1 * rng.standard_normal((40, 2))


def test_certificates_of_a_regression_have_no_classes(regression):
    x, y = regression
    model = jd.fit_ridge(jd.features.Linear(5), x, y, lam=1.0)
    small = jd.distill(model, size=2, key=KEY)
    kernel_model = jd.fit_kernel_ridge(jd.kernels.RBF(2.0), x, y, lam=1.0)
    kernel_small = jd.distill_kernel(kernel_model, x, y, size=5, key=KEY)
    for certificate in (jd.certify(model, small, x, y), jd.certify(kernel_model, kernel_small, x, y)):
        told = certificate.to_dict()
        assert {told[n] for n in told if n.startswith(("accuracy", "agreement"))} == {None}
        assert certificate.squared_error_full > 0 and certificate.squared_error_distilled > 0
    found = jd.transfer(small, jd.kernels.RBF(2.0), x, y)
    assert found.accuracy is None and found.agreement is None and found.squared_error > 0


@pytest.mark.parametrize("y", [np.arange(60) % 4, np.array(["a"] * 60), np.linspace(0, 1, 60)])
def test_every_judge_refuses_labels_that_are_none(problem, y):
    model = jd.fit_ridge(jd.features.Linear(12), problem["x"], problem["y"], lam=1.0)
    small = jd.distill(model, ipc=1, key=KEY)
    for judge in (
        lambda: jd.certify(model, small, problem["x_test"], y),
        lambda: jd.transfer(small, jd.kernels.RBF(2.0), problem["x_test"], y),
    ):
        with pytest.raises(InputError, match="y_test"):
            judge()
