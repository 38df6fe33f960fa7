"""Some hundred damaged and forged artifacts, by the script that loads a million of them."""

import json
import re
import signal
from collections import Counter
from functools import reduce
from operator import getitem

import mutated_artifacts
import numpy as np
import pytest
from mutants import (
    KINDS,
    array_of,
    bombed,
    forged_array,
    members_of,
    mutant,
    npy,
    packed,
    places_of,
    sealed,
)

import jaxdistill as jd
from jaxdistill.errors import ArtifactError


@pytest.fixture(scope="module")
def trial(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mutants")
    before = signal.signal(signal.SIGALRM, mutated_artifacts.raise_too_long)
    yield mutated_artifacts.Trial(mutated_artifacts.originals(folder, ("linear", "network")), folder, seed=1)
    signal.signal(signal.SIGALRM, before)


def test_none_crashes_hangs_or_loads_as_something_else(trial):
    outcomes = [trial.run(number) for number in range(300)]
    assert [(number, *o) for number, o in enumerate(outcomes) if o[2].startswith("FAILED")] == []
    counts = Counter(outcome for _, _, outcome in outcomes)
    assert counts["refused"] > 150 and counts["loaded"] > 10
    assert {kind for _, kind, _ in outcomes} == set(KINDS)


def test_what_loads_as_something_else_would_be_found(trial, monkeypatch):
    monkeypatch.setattr(trial, "expected", dict.fromkeys(trial.expected, "another set"))
    assert "FAILED: it loads as something else" in {trial.run(number)[2] for number in range(60)}


def test_the_same_number_is_the_same_file(trial):
    for number in range(20):
        drawn = [mutant(np.random.default_rng([1, number]), "linear", trial.contents) for _ in range(2)]
        assert drawn[0] == drawn[1]


@pytest.fixture
def refused(tmp_path):
    """Refusal of a content, as its line."""

    def line(content):
        (tmp_path / "s.npz").write_bytes(content)
        with pytest.raises(ArtifactError) as caught:
            jd.load_set(tmp_path / "s.npz")
        return str(caught.value)

    return line


def test_a_bomb_and_a_compressed_archive_are_refused_unopened(trial, refused):
    members = members_of(trial.contents["network"])
    for number in range(5):
        said = refused(bombed(np.random.default_rng(number), members))
        assert "compressed" in said or "damaged" in said
    assert "compressed" in refused(packed(members, method=8))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"inputs": np.zeros((6, 3), np.float32)}, "features of"),
        ({"inputs": np.zeros(12, np.float32)}, "inputs of shape"),
        ({"inputs": np.zeros((6, 12), np.int32)}, "inputs of shape"),
        ({"labels": np.zeros((5, 3))}, "labels of shape"),
        ({"lam": np.zeros(1)}, "lam of shape"),
        ({"lam": np.float64(-1)}, "penalty -1"),
        ({"lam": np.float64(np.nan)}, "penalty nan"),
        ({"weights": np.zeros((9, 2))}, "weights of shape"),
        ({"class_names": np.array(["a"])}, "1 classes"),
        ({"features/weights_9": np.zeros(2)}, "nothing reads: weights_9"),
        ({"features/weights_0": np.zeros((12, 12))}, "float64.*enable_x64"),
        ({"preprocess/mean": np.zeros(3, np.float32)}, "mean in float32"),
        ({"preprocess/mean": np.zeros(5)}, "mean of shape"),
        ({"meta": np.array("[" * 100_000)}, "metadata"),
        ({"meta": np.array(b"{}")}, "type"),
    ],
)
def test_parts_that_do_not_fit_are_named_although_the_digest_fits(trial, refused, change, says):
    members = members_of(trial.contents["network"])
    said = refused(sealed(members | {name: npy(value) for name, value in change.items()}))
    assert "\n" not in said
    assert re.search(says, said), said


TEXT, LIST = "\u00e4" * 5000, [1.5] * 5000


@pytest.mark.parametrize(
    ("kind", "long"),
    [
        *((kind, long) for kind in ("linear", "network", "kernel") for long in (TEXT, LIST)),
        pytest.param("encoder", TEXT, marks=pytest.mark.long),
    ],
    ids=lambda value: value if len(value) < 10 else type(value).__name__,
)
def test_whatever_the_file_says_is_quoted_in_part(kind, long, tmp_path):
    members = members_of(mutated_artifacts.originals(tmp_path, (kind,))[kind])
    path, said = tmp_path / "s.npz", []
    meta = str(array_of(members["meta"]))
    for place in filter(None, places_of(json.loads(meta))):
        forged = json.loads(meta)
        reduce(getitem, place[:-1], forged)[place[-1]] = long
        path.write_bytes(sealed(members | {"meta": npy(np.array(json.dumps(forged)))}))
        try:
            jd.load_set(path)
        except ArtifactError as error:
            said.append(str(error))
    assert len(said) > 10
    assert [line for line in said if "\n" in line or len(line) > 600] == []


def test_forgeries_differ(trial):
    members = members_of(trial.contents["linear"])
    assert len({forged_array(np.random.default_rng(number), members) for number in range(20)}) > 10
