"""Packages that are not installed: one line with the `pip install` that works from where the user stands."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

from gradseg.base.errors import GradsegError
from gradseg.commands import ROOT

NEWER = ("export", "train", "peers")  # extras of workstations
OLDEST = (3, 10)  # Python that they need


def need(where: object, extra: str, *modules: str, instead: str = "") -> None:
    """Raises GradsegError with exit code 3, saying how to install them, unless all these modules can be imported.

    where: what needs them, a file or a command. extra: of pyproject.toml, which brings them. instead: another way.
    """
    missing = [name for name in modules if not importable(name)]
    if missing:
        how = f"{install(extra, *missing)}{'; or ' if instead else ''}{instead}"
        raise GradsegError(f"{where}: this needs {', '.join(missing)}, not installed here: {how}", 3)


def importable(module: str) -> bool:
    """Whether a module can be imported; it is."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def install(extra: str, *modules: str) -> str:
    """The command that brings an extra: to the clone that this runs from, else its requirements one by one.

    modules: what to ask for where not even the package's own requirements are known.
    """
    if extra in NEWER and sys.version_info < OLDEST:
        if modules and not {"torch", "lightning_fabric"} & set(modules):
            return " ".join(["pip install", *modules])
        return f"use Python {'.'.join(map(str, OLDEST))} or newer, this is {sys.version.split()[0]}"
    if (ROOT / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(('.' if Path.cwd() == ROOT else str(ROOT)) + f'[{extra}]')}"
    from importlib import metadata  # slow to import, and rarely needed

    try:
        listed = metadata.requires("gradseg") or []
    except metadata.PackageNotFoundError:
        listed = []
    wanted = [each.partition(";")[0].strip() for each in listed if re.search(rf"extra == ['\"]{extra}['\"]", each)]
    return " ".join(["pip install", *map(shlex.quote, wanted or modules)])
