"""The house: which room may rest on which, and that no file rests on one that rests on it."""

import ast
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "jaxdistill"

# From the top floor down. A room may import rooms that stand further down, and no other.
FLOORS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("kip", "pipeline", "plots", "privacy"),
    ("evaluate",),
    ("distill",),
    ("sets", "solve"),
    ("ridge",),
    ("kernels",),
    ("features",),
    ("networks",),
    ("data",),
    ("numerics",),
    ("errors",),
)
FLOOR = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    """Dotted name of a file, and "package.__init__" for what a package says of itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


NAMES = {name_of(path) for path in FILES}


def room_of(name):
    return name.split(".")[0]


def imported(path):
    """Files of the package that a file imports, at its top or inside a function; not for types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        seen = set()
        for module in modules:
            if module.split(".")[0] != "jaxdistill":
                continue
            inner = module.removeprefix("jaxdistill").removeprefix(".")
            candidates = (inner, f"{inner}.__init__".lstrip("."))
            found = next((c for c in candidates if c in NAMES), None)
            # `from room import file` names the file; the room's own words come with every import.
            if found and not (found.endswith("__init__") and seen):
                seen.add(found)
                yield found


@cache
def arrows():
    return {name_of(path): set(imported(path)) - {name_of(path)} for path in FILES}


def test_every_room_has_a_floor_and_every_floor_a_room():
    assert {room_of(name) for name in NAMES} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_no_arrow_runs_up(name):
    own = room_of(name)
    # The package's own __init__ is its face: it may show every room below the command line.
    up = sorted(n for n in arrows()[name] if room_of(n) != own and FLOOR[room_of(n)] >= FLOOR[own])
    assert up == [], f"{name} rests on {up}, which stand on its own floor or above"


def test_there_are_no_circles():
    # Raises CycleError, which names the files.
    assert list(TopologicalSorter(arrows()).static_order())


@pytest.mark.parametrize("room", sorted(p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()))
def test_every_room_says_what_lives_there_and_where_to_begin(room):
    text = ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text())) or ""
    assert len(text.splitlines()) >= 3
    assert "Begin with" in text and "nows" in text
