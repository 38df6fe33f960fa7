"""KIP: runs that are killed and go on, and every refusal."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kip_runs import rbf, run, setting_of

from jaxdistill import kip
from jaxdistill.errors import CheckpointError, DivergenceError, InputError
from jaxdistill.kip.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def setting(problem, maps):
    return setting_of(problem, maps["network"])


# --- restarts --------------------------------------------------------------------------------------

SCRIPT = """
import sys, jax, numpy as np, jaxdistill as jd
from jaxdistill import kip
rng = np.random.default_rng(0)
x = rng.standard_normal((400, 20)).astype(np.float32)
y = jd.one_hot(np.arange(400) % 4, 4, centred=True)
phi = jd.features.RandomNetwork.create(20, widths=(16,), key=jax.random.key(0))
model = jd.fit_ridge(phi, x, y, lam=1.0)
config = kip.KipConfig(ipc=2, steps=200, batch=100, labels="learned", seeds=2, block=5, checkpoint_every=20,
                       evaluate_every=20)
result = kip.train(model, x, y, config, key=jax.random.key(1), validation=0.2, checkpoint=sys.argv[1])
result.small.save(sys.argv[2])
history = result.history
np.savez(sys.argv[2] + ".all.npz", x=result.x, y=result.y, loss=history.loss, val=history.accuracy)
"""


def start_script(folder, out):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(out)], env=environment)


def checkpoints(folder: Path):
    return [p for p in folder.glob("*") if p.name.isdigit()] if folder.exists() else []


@pytest.mark.long
def test_killed_and_resumed_is_bit_for_bit_unbroken(tmp_path):
    whole, broken = tmp_path / "whole.npz", tmp_path / "broken.npz"
    unbroken = start_script(tmp_path / "a", whole)
    killed = start_script(tmp_path / "b", broken)
    while len(checkpoints(tmp_path / "b")) < 2 and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and not broken.exists()
    # What a kill in the middle of writing leaves behind, at worst.
    (tmp_path / "b" / "195.orbax-checkpoint-tmp").mkdir()
    again = start_script(tmp_path / "b", broken)
    assert again.wait() == 0 and unbroken.wait() == 0
    assert not (tmp_path / "b" / "195.orbax-checkpoint-tmp").exists()
    assert whole.read_bytes() == broken.read_bytes()
    with np.load(f"{whole}.all.npz") as first, np.load(f"{broken}.all.npz") as second:
        for name in ("x", "y", "loss", "val"):
            assert first[name].tobytes() == second[name].tobytes()


def test_a_checkpoint_half_deleted_is_deleted_and_one_half_there_is_not(setting, tmp_path):
    run(setting, checkpoint=tmp_path, steps=4)
    for step in ("1", "9"):
        (tmp_path / step / "state").mkdir(parents=True)
    with Checkpoints(tmp_path, {}):
        assert {path.name for path in checkpoints(tmp_path)} == {"4", "9"}


def test_a_checkpoint_of_another_run_is_refused_by_field(setting, tmp_path):
    run(setting, checkpoint=tmp_path, steps=4)
    same = run(setting, checkpoint=tmp_path, steps=4, block=2)  # no influence on the result
    assert same.steps == 4
    with pytest.raises(CheckpointError, match=r"learning_rate \(0.1 there, 0.2 here\)"):
        run(setting, checkpoint=tmp_path, steps=4, learning_rate=0.2)
    with pytest.raises(CheckpointError, match=r"batch .* steps"):
        run(setting, checkpoint=tmp_path, steps=5, batch=50)
    with pytest.raises(CheckpointError, match="key"):
        run(setting, checkpoint=tmp_path, steps=4, key=jax.random.key(8))
    with pytest.raises(CheckpointError, match="data"):
        run({**setting, "x": setting["x"] * np.float32(2)}, checkpoint=tmp_path, steps=4)
    for part in (tmp_path / "4").rglob("*"):
        if part.is_file():
            part.write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"step 4 .* cannot be read"):
        run(setting, checkpoint=tmp_path, steps=4)


def test_a_checkpoint_that_was_altered_is_never_gone_on_from(tmp_path):
    state = {"x": np.random.default_rng(0).standard_normal((40, 64)), "step": np.int64(20)}
    with Checkpoints(tmp_path / "whole", {"run": 1}) as checkpoints:
        checkpoints.save(20, state)
    files = [p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*") if p.is_file()]
    largest = max(files, key=lambda p: (tmp_path / "whole" / p).stat().st_size)
    outcomes = []
    for place in range(0, 20_000, 1000):  # bits of numbers, which the storage does not check
        broken = tmp_path / str(place)
        shutil.copytree(tmp_path / "whole", broken)
        content = bytearray((broken / largest).read_bytes())
        content[place] ^= 1
        (broken / largest).write_bytes(content)
        with Checkpoints(broken, {"run": 1}) as checkpoints:
            try:
                again = checkpoints.restore(state)
            except CheckpointError as error:
                outcomes.append("altered" if "altered" in str(error) else "unreadable")
                assert "\n" not in str(error)
            else:
                assert again is not None and again["x"].tobytes() == state["x"].tobytes()
    assert outcomes.count("altered") > 5


def test_a_checkpoint_that_does_not_say_its_run_is_refused(tmp_path):
    with Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(1, {"x": np.ones(3)})
    for content in ("[]", "{}", '{"run": 3}'):
        (tmp_path / "1" / "identity" / "metadata").write_text(content)
        with Checkpoints(tmp_path, {}) as checkpoints, pytest.raises(CheckpointError, match="which run"):
            checkpoints.restore({"x": np.ones(3)})


# --- refusals --------------------------------------------------------------------------------------


def test_divergence_names_the_step_and_keeps_the_last_good_state(setting, tmp_path):
    bomb = optax.chain(optax.sgd(1e-3), optax.scale_by_schedule(lambda n: jnp.where(n >= 6, jnp.inf, 1.0)))
    with pytest.raises(
        DivergenceError, match=r"not finite at step 7; the last good state, of step 6"
    ) as caught:
        run(setting, optimiser=bomb, checkpoint=tmp_path)
    assert str(tmp_path / "last_good.npz") in str(caught.value)
    with np.load(tmp_path / "last_good.npz") as good:
        assert np.all(np.isfinite(good["inputs"])) and np.all(np.isfinite(good["labels"]))
    assert isinstance(caught.value.result, kip.KipResult) and caught.value.result.steps == 7
    same = {**setting, "x": np.repeat(setting["x"][:1], 150, axis=0)}
    with pytest.raises(DivergenceError, match="the first: the examples to start from are dependent"):
        run(same, batch=30)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"optimiser": "adm"}, "unknown optimiser 'adm'; did you mean 'adam'"),
        ({"labels": "fixd"}, "unknown labels 'fixd'; did you mean 'fixed'"),
        ({"start": "reel"}, "unknown start 'reel'; did you mean 'real'"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"form": "moment"}, "did you mean 'moments'"),
        ({"batch": 151}, "a batch of 151 is larger than the data, 150 examples"),
        ({"batch": 0}, "whole number >= 1 or 'all'"),
        ({"steps": 0}, "steps is 0"),
        ({"reg": -1.0}, "reg is -1.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"ipc": None}, "give ipc"),
        ({"size": 4}, "either ipc"),
        (
            {"ipc": 51, "labels": "fixed"},
            "150 real examples, 153 are asked for",
        ),
        ({"ipc": 4}, "12 examples have dependent features"),
        ({"patience": 3}, "patience needs data to judge by"),
        ({"form": "moments", "batch": 5}, "takes all targets"),
        ({"augment": kip.Augmentation(flip=True)}, "augmentation changes images"),
    ],
)
def test_bad_settings_are_named(setting, settings, words):
    with pytest.raises(InputError, match=words):
        run(setting, **settings)


@pytest.mark.parametrize(
    ("change", "model", "words"),
    [
        ({"x": np.zeros((150, 5), np.float32)}, None, r"expected \(n, 12\)"),
        ({"y": np.zeros(150, int)}, None, "one_hot"),
        ({"x": np.full((150, 12), np.nan, np.float32)}, None, "not finite"),
        ({}, 3, "model is a int"),
    ],
)
def test_bad_data_are_named(setting, change, model, words):
    with pytest.raises(InputError, match=words):
        run({**setting, **change}, model=model)
    with pytest.raises(InputError, match=r"validation is 1\.5"):
        run(setting, validation=1.5)
    with pytest.raises(InputError, match="moments' needs a feature map"):
        run(setting, model=rbf, form="moments")


def test_the_config_is_frozen_and_says_what_matters():
    config = kip.KipConfig(ipc=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.ipc = 2  # pyright: ignore[reportAttributeAccessIssue]
    assert config.describe() == dataclasses.replace(config, block=3, checkpoint_every=7).describe()


def test_importing_the_package_leaves_optax_and_orbax_alone():
    code = "import sys, jaxdistill; sys.exit(any(n in sys.modules for n in ('optax', 'orbax')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
