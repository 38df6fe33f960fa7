"""Settings that are chosen by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from jaxdistill.errors import InputError


def check_choice(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise unless a setting is one of the known, with the nearest of them.

    Raises:
        InputError: names the setting, the value and the nearest known one.

    Example:
        >>> check_choice("labels", "fixd", ("fixed", "learned"))
        Traceback (most recent call last):
        jaxdistill.errors.InputError: unknown labels 'fixd'; did you mean 'fixed'?
    """
    known = list(known)
    if isinstance(value, str) and value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of " + ", ".join(known)
    raise InputError(f"unknown {name} {value!r:.60}; {hint}")
