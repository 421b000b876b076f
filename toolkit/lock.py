"""Locks on files, between processes and machines: whoever finds one taken is told who holds it, and since when.

POSIX locks (lockf) are the ones that NFS passes on. The kernel gives them back when a process ends, whatever ends it,
so a file that is left says nothing. They hold off other processes only: those of this one are kept in `_held`.
"""

import errno
import fcntl
import functools
import logging
import os
import pwd
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit import remote
from toolkit.errors import HeldError

log = logging.getLogger(__name__)

_TAKEN = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
"""What file systems say that have no locks, as Lustre mounted without `flock`, or NFS without its lock service."""
_SHORT_S = 10.0
_SHOWN = 200  # characters of what a lock file says

_held: dict[str, int] = {}  # the descriptor by the path; a second one that is closed would give the lock back
_guard = threading.Lock()


@contextmanager
def hold(path: Path, *, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file, and remove it at the end; where the file system has no locks, go on without.

    Args:
        path: the lock file; its directory exists.
        what: what the holder does, as a sentence without its end: `OUT is being prepared`.
        wait_s: how long to wait for another holder.

    Raises:
        HeldError: another one holds it; the text says who.
        StorageError: the lock file cannot be written.
    """
    key = _take(path, wait_s=wait_s)
    if key is None:
        raise HeldError(
            f"{what} by another process: {_read_holder(path)}\n"
            f"  one at a time: it holds {path}\n"
            "  wait until it has ended, or end it"
        )
    try:
        yield
    finally:
        _give_back(key)


@contextmanager
def hold_briefly(path: Path) -> Iterator[None]:
    """Hold a lock file for a change of milliseconds; after ten seconds of waiting the change is made without.

    Raises:
        StorageError: the lock file cannot be written.
    """
    key = _take(path, wait_s=_SHORT_S)
    if key is None:
        log.warning("%s is held by another process (%s); writing without it", path, _read_holder(path))
    try:
        yield
    finally:
        if key is not None:
            _give_back(key)


def _take(path: Path, *, wait_s: float) -> str | None:
    """Take a lock within some time; None: another one has it."""
    key = os.path.realpath(path)
    deadline = time.monotonic() + wait_s
    while not _try_take(key):
        if time.monotonic() >= deadline:
            return None
        time.sleep(random.uniform(0.005, 0.02))
    return key


def _try_take(key: str) -> bool:
    with _guard, remote.telling(key):
        if key in _held:
            return False
        descriptor = os.open(key, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            is_taken = _try_lock(descriptor, key)
            if is_taken:
                _write_holder(descriptor)
                _held[key] = descriptor
        finally:
            if key not in _held:
                os.close(descriptor)
        return is_taken


def _try_lock(descriptor: int, key: str) -> bool:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        _tell_no_locks(os.path.dirname(key), error.strerror)
        return True
    # The one who held it removed it: a lock on a file that has lost its name holds nobody off.
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(key))
    except FileNotFoundError:
        return False


def _give_back(key: str) -> None:
    with _guard:
        descriptor = _held.pop(key)
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(key)):
                os.unlink(key)
        except OSError as error:  # the directory was renamed or removed, which the holder may do
            log.debug("%s is left: %s", key, error)
        finally:
            os.close(descriptor)


@functools.cache
def _tell_no_locks(folder: str, reason: str) -> None:
    """Say it once a directory."""
    log.warning("%s has no locks (%s): two at once are not told apart there", folder, reason)


def _write_holder(descriptor: int) -> None:
    since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    text = f"host {os.uname().nodename}, pid {os.getpid()}, user {_user()}, since {since}\n"
    with suppress(OSError):  # on a full disk it is held all the same, by an unknown one
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may know no names
        return str(os.getuid())


def _read_holder(path: Path) -> str:
    with _guard:
        if (descriptor := _held.get(os.path.realpath(path))) is not None:
            data = os.pread(descriptor, _SHOWN, 0)
        else:
            try:
                data = path.read_bytes()[:_SHOWN]
            except OSError:
                data = b""
    text = "".join(letter if letter.isprintable() else " " for letter in data.decode(errors="replace"))
    return " ".join(text.split()) or "it has not said which"
