"""How a script ends: with its own code, or with a sentence in place of a trace."""

import signal
import sys
from collections.abc import Callable

from toolkit.errors import EXIT_USAGE, ToolkitError


def run(main: Callable[[], int]) -> int:
    """Run the main function of a script of `data_prep`, and give the exit code."""
    try:
        return main()
    except ToolkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except FileNotFoundError as error:
        print(f"{error}\n  it was there, or should have been\n  check the path, and start again", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(
            "stopped\n  OUT.partial keeps what is done\n  start the same command again: it goes on there",
            file=sys.stderr,
        )
        return 128 + signal.SIGINT
