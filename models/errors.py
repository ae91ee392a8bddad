"""The one exception for a user's mistake: one clear line and exit code 2 (3 where hardware or a backend is missing)."""

from __future__ import annotations

import sys
from typing import Callable


class GradsegError(Exception):
    """A mistake the user can mend. The message says what was found, where, and what to do next.

    Args:
        message: one line; newlines are folded into spaces so that it stays one line.
        exit_code: the process exit code, 2 for bad input, 3 for a backend or device that is not there.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(" ".join(message.split()))
        self.exit_code = exit_code


def run_main(main: Callable[[], int]) -> None:
    """Runs a script's `main`, turns a `GradsegError` into one line on stderr, and exits.

    A bug keeps its traceback. Ctrl-C exits with 130.
    """
    try:
        code = main()
    except GradsegError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)
