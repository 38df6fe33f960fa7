"""``jaxdistill plan``: operations counted as they are, seconds at the rates measured, what is not counted."""

import json

import numpy as np
import pytest

import jaxdistill as jd
from jaxdistill.cli.main import main
from jaxdistill.distill.cost import job_cost
from jaxdistill.numerics import rates as rates_module
from jaxdistill.numerics.rates import Rates


@pytest.fixture
def known_rates(monkeypatch):
    monkeypatch.setattr(rates_module, "measure_rates", lambda: Rates(1e9, 5e8, 1e8))


def test_a_job_is_counted_and_timed_and_nothing_is_written(capsys, known_rates, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--json", "--validation", "0.1", "--ipc", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [report[name] for name in ("n", "d", "p", "k", "m")] == [1438, 64, 64, 10, 20]
    by_name = {stage["name"]: stage for stage in report["stages"]}
    gram = by_name["Gram matrix"]
    assert gram["operations"] == 1294 * 2 * 64 * (64 + 10)
    assert gram["seconds"] == pytest.approx(gram["operations"] / 5e8)  # cheap, and so in float64
    assert by_name["eigendecomposition"]["seconds"] == pytest.approx(9 * 64**3 / 1e8)
    assert report["passes"] == pytest.approx(1.1, abs=0.01)
    assert report["seconds"] == pytest.approx(sum(stage["seconds"] for stage in report["stages"]))
    assert report["bytes"] < report["bytes_free"] and not report["solver"]
    assert list(tmp_path.iterdir()) == []
    main(["plan"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "job          digits, linear: n = 1438, d = 64, p = 64, k = 10, m = 10"
    assert any(line.startswith("in all ") for line in lines)


@pytest.mark.parametrize("words", [["--features", "rbf"], ["--features", "encoder"]])
def test_what_data_decide_is_not_guessed(capsys, words):
    assert main(["plan", *words]) == 2
    told = capsys.readouterr().err
    assert "plan counts jobs of feature maps, and not of" in told and told.count("\n") == 1


def test_operations_of_a_network_are_those_of_its_products():
    phi = jd.features.RandomNetwork.create(32, widths=(48,), key=np.array([0, 1], np.uint32))
    cost = job_cost(phi, num_rows=100, num_targets=2, size=2, lam=1.0)
    first = cost.stages[0].operations
    assert 100 * 2 * 32 * 48 <= first < 1.2 * 100 * 2 * 32 * 48
    few = job_cost(phi, num_rows=20, num_targets=2, size=2, lam=1.0)  # of fewer rows than features
    assert "Gram matrix of examples" in [stage.name for stage in few.stages]
