"""The one exception for a user's mistake: one clear line and exit code 2 (3 where hardware or a backend is missing)."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Any, Callable

# the operating system's refusals that a user can mend
REFUSED = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EROFS, errno.ENOSPC, errno.ENOTDIR)


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

    So does what the operating system refuses about a named file. A bug keeps its traceback. Ctrl-C exits with 130;
    SIGTERM and SIGHUP with 128 + their number, through every `finally`, so that no temporary file stays.
    """
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit_cleanly)
    try:
        code = main()
    except GradsegError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        if error.errno not in REFUSED or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; check the path and its permissions", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _exit_cleanly(number: int, _frame: Any) -> None:
    sys.exit(128 + number)
