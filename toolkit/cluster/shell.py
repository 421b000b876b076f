"""Lines of bash that every script of a job begins with, whatever the values in them. Pure.

What a value may be is said in `config/kinds.py`, and held once more by JobSpec; here it is quoted.
"""

import shlex
from collections.abc import Mapping, Sequence

_GUARD = (
    'trap \'code=$?; [ $code != 0 ] || echo "error: the shell ended before the ranks started: see cluster.setup" >&2; '
    "exit $((code ? code : 2))' EXIT"
)
"""An `exit 0` in a line of the site, or in what it sources, would be a job that is COMPLETED without a step."""


def write_setup(setup: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """Write the variables and lines of a site; a shell that ends in them has failed."""
    # the empty line ends a last one that a backslash would join with ours
    return ["set -eo pipefail", _GUARD, *write_exports(env), *setup, "", "trap - EXIT"]


def write_exports(env: Mapping[str, str]) -> list[str]:
    """Write variables for bash."""
    return [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
