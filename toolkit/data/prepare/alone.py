"""One at a time makes a directory, or a part of it: another one is told who does. At a URL there are no locks."""

from contextlib import AbstractContextManager, nullcontext

from toolkit import storage
from toolkit.errors import HeldError
from toolkit.lock import hold


def hold_out(out: str, *, what: str, wait_s: float = 0.0) -> AbstractContextManager[None]:
    """Hold a directory that is made, by `OUT.lock` beside it, which goes at the end.

    Args:
        out: path or URL of the directory, there or not.
        what: what the holder does, as a sentence without its end.
        wait_s: how long to wait for another holder.

    Raises:
        HeldError: another one holds it; the text says who.
    """
    if not storage.is_local(out):
        return nullcontext()
    path = storage.local_path(out.rstrip("/") + ".lock")
    storage.make_dirs(str(path.parent))
    return hold(path, what=what, wait_s=wait_s)


def hold_span(partial_dir: str, number: int) -> AbstractContextManager[None]:
    """Hold one span of an unfinished dataset: several processes may make it, each another span.

    Raises:
        HeldError: another one holds it, or has finished the dataset.
    """
    if not storage.is_local(partial_dir):
        return nullcontext()
    folder = storage.local_path(partial_dir)
    if not folder.is_dir():  # never made anew: it would be left
        raise HeldError(
            f"{partial_dir} is gone\n  another process has completed it, or somebody has deleted it\n"
            "  start the same command again: it says what stands there"
        )
    return hold(folder / f"span-{number:05d}.lock", what=f"{partial_dir} is being made (its span {number})")
