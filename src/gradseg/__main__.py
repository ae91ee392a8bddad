"""`gradseg COMMAND …`, also `python -m gradseg`: imports nothing but the command that is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import List, Sequence

import gradseg
from gradseg.base.errors import GradsegError, run_main
from gradseg.commands import COMMANDS, NEWER, module_of


def main() -> None:
    """The console command."""
    run_main(lambda: dispatch(sys.argv[1:]))


def dispatch(words: Sequence[str]) -> int:
    """Runs the command that the words begin with; lists commands where none is named."""
    for count in (2, 1):
        name = " ".join(words[:count])
        if name in COMMANDS:
            if sys.version_info < (3, 10) and COMMANDS[name][0].startswith(NEWER):
                version = sys.version.split()[0]
                raise GradsegError(f"gradseg {name}: needs Python 3.10 or newer, this is {version}", 3)
            found = importlib.import_module(module_of(COMMANDS[name][0]))
            return int(found.main(list(words[count:])))
    if list(words) == ["--version"]:
        print(f"gradseg {gradseg.__version__}")
        return 0
    named = [word for word in words if word not in ("-h", "--help")]
    group = [name for name in COMMANDS if not named or name.startswith(f"{named[0]} ")]
    if not group or len(named) > 1:
        raise _unknown(named, group)
    print("\n".join(listing(" ".join(["gradseg", *named]), group)))
    return 0


def listing(start: str, names: Sequence[str]) -> List[str]:
    """The commands with what they do, for people."""
    rows = [f"  {name:<18} {COMMANDS[name][1]}" for name in names]
    return [f"usage: {start} COMMAND …", "", *rows, "", "gradseg COMMAND --help shows a command's options."]


def _unknown(named: Sequence[str], group: Sequence[str]) -> GradsegError:
    """One line with the nearest command: of the group, if the first word names one."""
    given = " ".join(named[: 2 if group else 1])
    near = difflib.get_close_matches(given, group or [*COMMANDS, *(name.split()[0] for name in COMMANDS)], 1)
    meant = f"did you mean gradseg {near[0]}? " if near else ""
    return GradsegError(f"gradseg {given}: no such command; {meant}gradseg --help lists them all")


if __name__ == "__main__":
    main()
