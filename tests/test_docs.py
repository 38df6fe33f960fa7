"""What is written about the package is true: blocks run, links lead somewhere, files stay small."""

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdistill as jd
from jaxdistill.cli.main import _parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SOURCES = sorted(
    path
    for folder in ("jaxdistill", "tests", "experiments", "notebooks")
    for path in (ROOT / folder).rglob("*.py")
)
PAGES = [ROOT / "README.md", ROOT / "experiments" / "README.md"]
TEXTS = [*SOURCES, *PAGES, ROOT / "pyproject.toml", ROOT / ".ci" / "run"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def inline_commands():
    found = [c for page in PAGES for c in re.findall(r"`(jaxdistill [a-z]+ [^`]+)`", page.read_text())]
    return [command for command in found if "--help" not in command]


@pytest.mark.long
def test_the_python_blocks_of_the_readme_run_in_order(tmp_path):
    code = "\n".join(blocks("python"))
    assert code.count("import jaxdistill as jd") == 1
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True)


def test_every_command_of_the_readme_is_one_that_the_parser_takes():
    commands = [
        line for block in blocks("bash") for line in block.splitlines() if line.startswith("jaxdistill")
    ]
    assert len(commands) >= 6 and inline_commands()
    for line in [*commands, *inline_commands()]:
        _parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_two_promised_commands_are_there():
    assert "python -m pip install -e . && jaxdistill distill" in README.splitlines()
    assert "python -m pip install -e '.[test]' && python -m pytest" in README.splitlines()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_scripts_that_a_page_names_exist(page):
    text = page.read_text()
    targets = [page.parent / t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    targets += [ROOT / t for t in re.findall(r"python ((?:experiments|tests)/\S+\.py)", text)]
    assert len(targets) >= 5
    assert [t for t in targets if not t.exists()] == []


def test_every_experiment_is_on_their_page():
    folder = ROOT / "experiments"
    scripts = {p.name for p in folder.glob("*.py") if "__main__" in p.read_text()}
    assert scripts == set(re.findall(r"^\| `(\w+\.py)`", (folder / "README.md").read_text(), re.M))


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small_and_speak_of_the_project_alone(path):
    text = path.read_text()
    assert text.count("\n") <= 450
    # Assembled, so that this file does not name them.
    for word in ("/" + "work" + "/", "/" + "tmp" + "/w", "help" + "er-", "/" + "root" + "/"):
        assert word not in text


def public_objects():
    for module in (jd, jd.features, jd.kernels):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                yield f"{module.__name__}.{name}", value


@pytest.mark.parametrize("value", [pytest.param(value, id=name) for name, value in public_objects()])
def test_public_names_are_documented_with_an_example(value):
    text = inspect.getdoc(value) or ""
    assert re.match(r"[A-Z`].*[.:]$", text.splitlines()[0]), "one line first"
    if inspect.isabstract(value) or (inspect.isclass(value) and issubclass(value, Exception)):
        return
    assert ">>>" in text, "a runnable example"
