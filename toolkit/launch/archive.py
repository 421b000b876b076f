"""A run's directory, copied to a URL while the run goes on or after it."""

from collections.abc import Callable
from pathlib import Path

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.checkpoint.upload import upload_checkpoint
from toolkit.errors import RunError
from toolkit.rundir import RunDir

_PASSING = (".lock", ".partial")  # of files that are there for moments, while something else is written


def upload_run(run_dir: RunDir, url: str, *, report: Callable[[int], None]) -> list[str]:
    """Copy all files of a run below a URL: its complete checkpoints, then everything else.

    A second call brings what has changed up to date; checkpoints that are there already are not copied again.

    Args:
        run_dir: the run.
        url: directory of the copy.
        report: told the bytes of each piece that was copied; called from several threads.

    Returns:
        The names of the files beside checkpoints.

    Raises:
        RunError: there is no such run.
        StorageError: a file could not be copied.
    """
    if not run_dir.config_path.is_file():
        raise RunError(f"{run_dir.root} is no run\n  a run has a {run_dir.config_path.name}\n  check the name")
    checkpoints = Path(run_dir.checkpoints_dir.name)
    for step in layout.list_steps(run_dir.checkpoints_dir):
        upload_checkpoint(layout.step_dir(run_dir.checkpoints_dir, step=step), storage.join(url, checkpoints.name))
    found = [name for name in storage.file_sizes(str(run_dir.root)) if not Path(name).is_relative_to(checkpoints)]
    names = [name for name in found if not name.endswith(_PASSING)]
    storage.copy_files(str(run_dir.root), url, names, xxh3={}, report=report)
    return names
