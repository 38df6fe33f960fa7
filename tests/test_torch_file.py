"""Files of torch are read without unpickling; what is no array is refused, in one line."""

import io
import os
import pickle
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from efficientnet_lite import STEM, Depthwise, Stem, folded, parameters
from helpers import compiled, relative
from torch_file import LAYOUT, MAGIC, read_torch_arrays

from jaxdistill.errors import ArtifactError

SYSTEM = {"protocol_version": LAYOUT, "little_endian": True, "type_sizes": {"int": 4}}


class Tensor:
    """What torch's pickler makes of a tensor: a call, with a persistent id for the numbers."""

    def __init__(self, storage, offset, shape, strides):
        self.parts = storage, offset, shape, strides

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, {})


class Storage:
    def __init__(self, key, numbers):
        self.key, self.numbers = key, numbers


class Pickler(pickle.Pickler):
    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        kind = {"f": "FloatStorage", "i": "LongStorage"}[obj.numbers.dtype.kind]
        return "storage", getattr(sys.modules["torch"], kind), obj.key, "cpu", len(obj.numbers), None


@pytest.fixture(autouse=True)
def torch(monkeypatch):
    """Just the names that a file refers to."""
    module, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "LongStorage"):
        setattr(module, name, type(name, (), {"__module__": "torch"}))
    exec("def _rebuild_tensor_v2(): pass", inner.__dict__)
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)


def written(tmp_path, state, storages=(), *, magic=MAGIC, cut=None):
    stream = io.BytesIO()
    for value in (magic, LAYOUT, SYSTEM, state, [storage.key for storage in storages]):
        Pickler(stream, protocol=2).dump(value)
    for storage in storages:
        stream.write(len(storage.numbers).to_bytes(8, "little") + storage.numbers.tobytes())
    path = tmp_path / "some.pth"
    path.write_bytes(stream.getvalue()[:cut])
    return path


def refused(path):
    with pytest.raises(ArtifactError) as caught:
        read_torch_arrays(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_tensors_come_back_views_and_whole_numbers_too(tmp_path):
    floats, whole = Storage("1", np.arange(24, dtype="<f4")), Storage("2", np.array([7], "<i8"))
    state = {"a": Tensor(floats, 4, (2, 3), (1, 4)), "b": Tensor(whole, 0, (), ())}
    read = read_torch_arrays(written(tmp_path, state, (floats, whole)))
    expected = np.arange(24)[4:].reshape(5, 4)[:3, :2].T
    assert list(read) == ["a", "b"] and read["b"] == 7
    assert read["a"].dtype == np.float32 and np.array_equal(read["a"], expected)


class Call:
    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def test_a_file_that_would_call_anything_calls_nothing(tmp_path):
    mark = tmp_path / "called"
    for state in ({"a": Call(os.mkdir, str(mark))}, Call(eval, f"__import__('os').mkdir({str(mark)!r})")):
        told = refused(written(tmp_path, state))
        assert ("posix.mkdir" in told or "eval" in told) and not mark.exists()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((5, 5), (5, 1)), ((4, 6), (6, 2)), ((10**9,), (0,)), ((-1, 4), (4, 1)), ((2,), ())],
)
def test_an_array_that_its_numbers_do_not_hold_is_refused(tmp_path, shape, strides):
    numbers = Storage("1", np.zeros(24, "<f4"))
    refused(written(tmp_path, {"a": Tensor(numbers, 0, shape, strides)}, (numbers,)))


def test_damage_and_other_files_are_refused(tmp_path):
    numbers = Storage("1", np.zeros(24, "<f4"))
    state = {"a": Tensor(numbers, 0, (24,), (1,))}
    whole = written(tmp_path, state, (numbers,)).read_bytes()
    for cut in (*range(0, len(whole) - 1, 7), len(whole) - 1):
        refused(written(tmp_path, state, (numbers,), cut=cut))
    refused(written(tmp_path, state, (numbers,), magic=1))
    assert "no array" in refused(written(tmp_path, {"a": 3}))
    assert "no array" in refused(written(tmp_path, {"a": numbers}, (numbers,)))
    assert "FRAME" in refused(_raw(tmp_path, pickle.dumps({"a": 1}, protocol=4)))
    assert "zip" in refused(_raw(tmp_path, b"PK\x03\x04"))
    assert "name a .pth file" in refused(tmp_path / "none.pth")


def _raw(tmp_path, content):
    path = tmp_path / "raw.pth"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("size", "stride", "side"), [(3, 1, 5), (5, 2, 7)])
def test_convolutions_of_shifts_are_those_of_the_compiler(size, stride, side):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, side, side, 3)), jnp.float32)
    kernel, bias = rng.standard_normal((size**2, 3)), rng.standard_normal(3)
    tree = {"params": {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}}
    found = compiled(Depthwise(size, stride).apply)(tree, x)
    assert relative(found, _convolved(x, kernel.reshape(size, size, 1, 3), stride, 3) + bias) < 1e-6


def test_batch_normalisation_is_folded_into_the_convolution_before_it():
    rng = np.random.default_rng(1)
    arrays = {"_conv_stem.weight": rng.standard_normal((STEM, 3, 3, 3))}
    for part in ("weight", "bias", "running_mean", "running_var"):
        arrays[f"_bn0.{part}"] = rng.uniform(0.5, 2, STEM)
    with pytest.raises(ArtifactError, match=r"_blocks.0._depthwise_conv does not fit"):
        parameters(arrays)
    x = jnp.asarray(rng.standard_normal((2, 6, 6, 3)), jnp.float32)
    tree = {"params": {"Dense_0": folded(arrays, "_conv_stem", "_bn0", (27, STEM))}}
    plain = _convolved(x, np.moveaxis(arrays["_conv_stem.weight"], (0, 1), (3, 2)), 2, 1)
    scale = arrays["_bn0.weight"] / np.sqrt(arrays["_bn0.running_var"] + 1e-3)
    expected = (plain - arrays["_bn0.running_mean"]) * scale + arrays["_bn0.bias"]
    assert relative(compiled(Stem(STEM).apply)(tree, x), expected) < 1e-6


def _convolved(x, kernel, stride, groups):
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel, x.dtype),
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision="highest",
    )
