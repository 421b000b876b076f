"""File systems behind URLs, through fsspec: each call has a deadline, bounded retries and one clear sentence.

HDFS needs no Java: hdfs-native speaks its protocol. It reads the site's Hadoop files from HADOOP_CONF_DIR (or
HADOOP_HOME/etc/hadoop): name services with several name nodes, security, viewfs mounts. Without Kerberos,
HADOOP_USER_NAME says who is asking. With it (hadoop.security.authentication=kerberos), a ticket must be there
before the program starts (`kinit`; KRB5CCNAME names its cache), and libgssapi_krb5 must be installed.

What follows the service in a URL is a name: `#`, `?`, `;`, `%`, `*` and `::` stand for themselves, and nothing is
decoded, as `hadoop fs` takes it. `resolve` is the one place where a URL becomes a path.
"""

import errno
import functools
import io
import itertools
import logging
import os
import queue
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import fsspec

from toolkit.errors import StorageError
from toolkit.redact import redact

log = logging.getLogger(__name__)

T = TypeVar("T")
Act = Callable[[Any, str], T]
"""What is done with a file system and the path in it."""

_TROUBLE = (OSError, ValueError, RuntimeError, ImportError)
"""What file systems raise; hdfs-native says RuntimeError where it has no better word."""
_PASSING_ERRNO = (None, errno.EIO, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH)
"""Remote clients give no number."""
_PASSING_DATA = ("DataTransferError", "ChecksumError", "BlocksNotFound")
_PASSING_NATIVE = (*_PASSING_DATA, "InternalError", "OperationFailed")
_PASSING_JAVA = ("SafeModeException", "RetriableException", "StandbyException", "ConnectException", "EOFException")
_KERBEROS = ("GSSAPI", "libgssapi", "SASL")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_PLACE = re.compile(r"(?P<host>.*?)(?::(?P<port>\d+))?")
_NO_TAKER = "could only be written to"  # also for some seconds after a name node has started

_CLIENT_TRIES = {
    # Few, and tried again here: the client's own tries do not tell what was wrong.
    "calls": {"dfs.client.failover.max.attempts": "3", "dfs.client.failover.sleep.base.millis": "100"},
    # About 60 s: what was sent of a file cannot be sent again.
    "writing": {"dfs.client.failover.sleep.max.millis": "5000"},
}

_patience_s: ContextVar[float] = ContextVar("patience_s", default=60.0)
_SILENT_PART = 3  # a call that only reads is asked again when it is silent for this part of the patience
_READ_BYTES = 8 << 20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Set how long calls inside wait for a service; else 60 s, which outlasts a name-node failover."""
    token = _patience_s.set(seconds)
    try:
        yield
    finally:
        _patience_s.reset(token)


def is_local(url: str) -> bool:
    """Whether a path names a file of this machine (or of a mounted file system)."""
    return not _SCHEME.match(url) or url.startswith("file://")


def ask(url: str, act: Act[T]) -> T:
    """Carry out what only reads, or can be repeated without harm.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: anything else, in one sentence.
    """
    return _call(url, act, silent_part=_SILENT_PART)


def order(url: str, act: Act[T]) -> T:
    """Carry out what changes something: never given up while it may still happen, so it cannot happen late.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: anything else, in one sentence.
    """
    return _call(url, act, silent_part=1)


def is_hadoop(url: str) -> bool:
    """Whether hdfs-native serves a URL."""
    return url.startswith(("hdfs://", "viewfs://"))


def is_passing(error: BaseException | None) -> bool:
    """Whether trying again may help: the service was away, or a replica was bad."""
    if isinstance(error, RuntimeError):
        text = str(error)
        if any(word in text for word in _KERBEROS):
            return False
        java_class = text.split('", ')[0]
        return text.startswith(_PASSING_NATIVE) or java_class.endswith(_PASSING_JAVA) or _NO_TAKER in text
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return type(error) is OSError and error.errno in _PASSING_ERRNO


@contextmanager
def telling(url: str) -> Iterator[None]:
    """Turn a file system's trouble into one sentence with a remedy: HDFS answers with a Java stack."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: there is no such file") from error
    except _TROUBLE as error:
        rule, remedy = _advice(url, error)
        raise StorageError(f"{url}: {first_line(error)}\n  {rule}\n  {remedy}") from error


def first_line(error: BaseException) -> str:
    """Give the sentence of an error without its stack, `PermissionError: ...` for a Java exception."""
    text = str(error).strip()
    # Where hdfs-native has no exception: Kind("sentence"), RPCError("java.Class", "sentence"), Kind(..., "sentence").
    native = re.match(r'\w+\((?:"(?:\w+\.)*([\w$]+)", |.*, )?"(.*?)(?:"\)|\\n|$)', text)
    if native:
        text = ": ".join(filter(None, native.groups()))
    return text.split("\n")[0] or type(error).__name__


class RemoteReader(io.RawIOBase):
    """A remote file; after passing trouble it is opened again where it stood."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._position = 0
        self._handle: Any = None
        self._num_bytes = ask(url, lambda fs, path: int(fs.size(path)))
        self._read(0)

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read anywhere."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; only the next reading asks the service."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._num_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """Give the place of the next byte."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill as much as the file still has."""
        data = self._read(min(len(buffer), max(0, self._num_bytes - self._position)))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        """Read the rest; the default asks for 8 KiB at a time."""
        return b"".join(iter(lambda: self.read(_READ_BYTES) or b"", b""))

    def _read(self, count: int) -> bytes:
        def act(fs: Any, path: str) -> bytes:
            # A handle belongs to one call: one that was given up may still be reading from its own.
            handle, self._handle = self._handle or fs.open(path, "rb"), None
            if handle.tell() != self._position:
                handle.seek(self._position)
            data = bytes(handle.read(count)) if count else b""
            if len(data) != count:
                raise OSError(f"{len(data)} bytes came instead of {count}: the file is changing")
            self._handle = handle
            return data

        return ask(self.name, act)


class RemoteWriter(io.RawIOBase):
    """A new remote file; whoever writes it repeats the whole when a write fails."""

    def __init__(self, url: str) -> None:
        self.name = url

        def make_dirs(fs: Any, path: str) -> None:
            fs.makedirs(os.path.dirname(path), exist_ok=True)

        ask(url, make_dirs)
        fs, path = resolve(url, kind="writing")
        with telling(url):
            self._handle = _within(_patience_s.get(), lambda: fs.open(path, "wb"))

    def writable(self) -> bool:
        """It can be written."""
        return True

    def write(self, data: Any) -> int:
        """Send bytes; they count as written only once the file is closed."""
        copied = bytes(data)  # the caller's buffer may change while a call that was given up still sends it
        with telling(self.name):
            _within(_patience_s.get(), lambda: self._handle.write(copied))
        return len(copied)

    def close(self) -> None:
        """Complete the file."""
        if self.closed:
            return
        super().close()
        with telling(self.name):
            _within(_patience_s.get(), self._handle.close)


def resolve(url: str, *, kind: str = "calls") -> tuple[Any, str]:
    """Give the file system of a URL and the path in it; `kind` is one of `_CLIENT_TRIES`.

    Raises:
        StorageError: there is no such file system, or nothing in it can have that name.
    """
    assert not is_local(url), f"{url} is local"
    _check_name(url)
    _refuse_secret(url)
    protocol, _, rest = url.partition("://")
    with telling(url):
        if not is_hadoop(url):
            # Not by url_to_fs: to it, `::` chains file systems.
            known = fsspec.get_filesystem_class(protocol)
            root, path = known.root_marker, known._strip_protocol(url)
            return known(**known._get_kwargs_from_urls(url)), path if path.startswith(root) else root + path
        place, _, path = rest.partition("/")
        if os.getpid() != _first_pid():
            # Measured: with its parent's client for ever, with one of its own for 20 s or more, not always.
            raise ValueError("this process was forked after HDFS was used, the client would hang; start it by spawn")
        return _hadoop(protocol, place, kind), "/" + "/".join(filter(None, path.split("/")))


def _check_name(url: str) -> None:
    """Refuse names that no file can have, or that a file system would take for another one."""
    names = url.split("/")[3:]
    wrong = None
    if "." in names or ".." in names:
        wrong = "`.` and `..` stand for other directories"
    elif "\0" in url or any("\ud800" <= letter <= "\udfff" for letter in url):
        wrong = "a name is UTF-8 without a zero byte"
    elif is_hadoop(url) and any(":" in name for name in names):
        wrong = "HDFS has no names with a colon"
    if wrong:
        raise StorageError(f"{url!r} names no file\n  {wrong}\n  choose another name")


def _refuse_secret(url: str) -> None:
    """Refuse a URL with a password or a signature: manifests, plans and command lines tell URLs."""
    if not is_local(url) and redact(url) != url:
        raise StorageError(
            f"{url}: the URL holds a secret\n  URLs are written to logs and manifests; all see command lines\n"
            "  export FSSPEC_<PROTOCOL>_<OPTION> (FSSPEC_FTP_PASSWORD); see docs/security.md"
        )


@functools.cache
def _first_pid() -> int:
    """Remember the process that used HDFS first."""
    return os.getpid()


@functools.cache
def _hadoop(protocol: str, place: str, kind: str) -> Any:
    """Open one client a service; fsspec would keep one a thread, and make the name of a service small letters."""
    found = _PLACE.fullmatch(place)
    host, port = (found["host"] or None, found["port"]) if found else (place, None)
    where = {"host": host, "port": int(port) if port else None}
    fs = fsspec.filesystem(protocol, skip_instance_cache=True, **where, **_CLIENT_TRIES[kind])
    fs._strip_protocol = str  # its own takes each path for a URL, and cuts it at `#`, `?` and `;`
    return fs


def _call(url: str, act: Act[T], *, silent_part: int) -> T:
    fs, path = resolve(url)
    with telling(url):
        return _persist(url, lambda: act(fs, path), silent_part=silent_part)


def _persist(url: str, act: Callable[[], T], *, silent_part: int) -> T:
    """Try again after passing trouble, with growing pauses, until the patience is at its end."""
    patience_s, started = _patience_s.get(), time.monotonic()
    told: BaseException | None = None
    for tries in itertools.count(1):
        left_s = started + patience_s - time.monotonic()
        try:
            return _within(min(left_s, patience_s / silent_part), act)
        except _TROUBLE as error:
            if not is_passing(error):
                raise
            if told is None or not isinstance(error, TimeoutError):  # silence says less
                told = error
            pause_s = min(_FIRST_PAUSE_S * 2 ** (tries - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
            if time.monotonic() + pause_s >= started + patience_s:
                raise TimeoutError(f"{first_line(told)} ({tries} tries in {patience_s:g} s)") from error
            log.warning("%s: %s; trying again in %.1f s", url, first_line(error), pause_s)
            time.sleep(pause_s)
    raise AssertionError("the loop ends by returning or raising")


def _within(seconds: float, act: Callable[[], T]) -> T:
    """Give up waiting for a call after some time; the thread that carries it out cannot be stopped."""
    answer: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def carry_out() -> None:
        try:
            answer.put((act(), None))
        except BaseException as error:  # handed to the thread that waits
            answer.put((None, error))

    threading.Thread(target=carry_out, name="storage", daemon=True).start()
    try:
        result, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer in {seconds:.1f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


def _advice(url: str, error: BaseException) -> tuple[str, str]:
    """Say what must hold and what to do."""
    service = url if is_local(url) else "/".join(url.split("/", 3)[:3])
    text = str(error)
    if "No NameNode hosts" in text or "No fs.defaultFS" in text:
        name = urllib.parse.urlsplit(url).netloc or "the default file system"
        rule = f"{name} has no port, and no Hadoop configuration names its hosts"
        return rule, "write hdfs://HOST:PORT/..., or export HADOOP_CONF_DIR with core-site.xml and hdfs-site.xml"
    if any(word in text for word in _KERBEROS):
        rule = f"{service} asks for Kerberos"
        return (
            rule,
            "type kinit (klist shows the ticket); libgssapi_krb5 must be installed (libgssapi-krb5-2, krb5-libs)",
        )
    if "AccessControlException" in text or isinstance(error, PermissionError):
        return (
            "whoever asks must have the right",
            "change the owner or the mode, or ask as another user (HADOOP_USER_NAME)",
        )
    if _NO_TAKER in text:
        rule = f"no data node of {service} would take the data"
        return rule, "check that they live and have space (hdfs dfsadmin -report), then start again"
    if text.startswith(_PASSING_DATA):
        rule = f"no data node of {service} could send or take the data whole"
        return rule, "check them (hdfs fsck PATH -files -blocks -locations), then start again"
    if is_passing(error) and not is_local(url):
        return f"{service} must answer", "check that it runs and can be reached from this host, then start again"
    return "the file system refused", "check the path, its owner and free space"
