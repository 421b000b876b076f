"""Deadlines, retries and sentences, on file systems that misbehave as they are told."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from toolkit import remote, storage
from toolkit.errors import StorageError

NATIVE = (
    'RPCError("org.apache.hadoop.security.AccessControlException", "Permission denied: user=x\\n\\tat org.a.B(C:1)")'
)
NO_TICKET = (
    'GSSAPIError(GssMajorCodes { raw: "0x00070000", routine_error: "GSS_S_NO_CRED" }, 2529639053, '
    '"No credentials were supplied: No Kerberos credentials available (default cache: FILE:/tmp/krb5cc_0)")'
)


class Shaky(MemoryFileSystem):
    """Raises what stands in `troubles`, one a call, before it works."""

    protocol = "shaky"
    store: dict[str, Any] = {}  # noqa: RUF012
    troubles: list[BaseException] = []  # noqa: RUF012
    silent_s = 0.0

    def info(self, path: str, **kwargs: Any) -> Any:
        if self.troubles:
            raise self.troubles.pop(0)
        time.sleep(self.silent_s)
        return super().info(path, **kwargs)


@pytest.fixture
def shaky() -> Iterator[type[Shaky]]:
    fsspec.register_implementation("shaky", Shaky, clobber=True)
    storage.write_atomic("shaky://file", b"1234")
    yield Shaky
    Shaky.store.clear()
    Shaky.troubles, Shaky.silent_s = [], 0.0


@pytest.mark.parametrize(
    "trouble",
    [
        ConnectionRefusedError(111, "Connection refused"),
        OSError("Connection reset by peer (os error 104)"),
        RuntimeError(
            'RPCError("org.apache.hadoop.hdfs.server.namenode.SafeModeException", "Name node is in safe mode")'
        ),
        RuntimeError('DataTransferError("All DataNodes failed")'),
    ],
)
def test_passing_trouble_is_tried_again(shaky: type[Shaky], trouble: BaseException) -> None:
    shaky.troubles = [trouble]
    assert storage.size("shaky://file") == 4
    assert shaky.troubles == []


@pytest.mark.parametrize(
    "trouble",
    [
        PermissionError(13, "no"),
        RuntimeError(NATIVE),
        RuntimeError(NO_TICKET),
        RuntimeError('OperationFailed("Failed to load libgssapi_krb")'),
        ValueError("bad name"),
    ],
)
def test_lasting_trouble_is_told_at_once(shaky: type[Shaky], trouble: BaseException) -> None:
    shaky.troubles = [trouble, trouble]
    with pytest.raises(StorageError, match=r"shaky://file: "):
        storage.size("shaky://file")
    assert shaky.troubles == [trouble]


def test_trouble_that_stays_is_told_when_the_patience_is_used_up(shaky: type[Shaky]) -> None:
    shaky.troubles = [ConnectionRefusedError(111, "Connection refused")] * 99
    with storage.patience(0.5), pytest.raises(StorageError, match=r"Connection refused \(\d tries in 0.5 s\)"):
        storage.size("shaky://file")


def test_a_silent_service_is_given_up(shaky: type[Shaky]) -> None:
    shaky.silent_s = 3.0
    with storage.patience(0.1), pytest.raises(StorageError, match=r"no answer in .* s"):
        storage.size("shaky://file")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (NATIVE, "AccessControlException: Permission denied: user=x"),
        ('InvalidArgument("No NameNode hosts found")', "No NameNode hosts found"),
        ('DataTransferError("All DataNodes failed: [a, b]")', "All DataNodes failed: [a, b]"),
        (
            NO_TICKET,
            "No credentials were supplied: No Kerberos credentials available (default cache: FILE:/tmp/krb5cc_0)",
        ),
        ("File does not exist: /x\n\tat org.apache.hadoop.X", "File does not exist: /x"),
        ("Connection refused (os error 111)", "Connection refused (os error 111)"),
        ("", "RuntimeError"),
    ],
)
def test_a_java_stack_becomes_one_sentence(text: str, sentence: str) -> None:
    assert remote.first_line(RuntimeError(text)) == sentence


def test_a_name_service_without_configuration_is_told_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("HADOOP_HOME", raising=False)
    with pytest.raises(StorageError, match=r"Site has no port, (.|\n)*HADOOP_CONF_DIR"):
        storage.exists("hdfs://Site/path")


def test_a_missing_ticket_is_told_with_what_to_type(shaky: type[Shaky]) -> None:
    shaky.troubles = [RuntimeError(NO_TICKET)]
    with pytest.raises(StorageError, match=r"asks for Kerberos\n  type kinit(.|\n)*libgssapi_krb5"):
        storage.size("shaky://file")


def test_a_reader_goes_on_where_it_stood_after_trouble(shaky: type[Shaky], monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(3 << 20)
    storage.write_atomic("shaky://long", data)
    with storage.open_file("shaky://long", "rb") as file:
        first = file.read(1 << 20)
        monkeypatch.setattr(file.raw, "_handle", Broken())
        assert first + file.read() == data


class Broken:
    def tell(self) -> int:
        raise ConnectionResetError(104, "Connection reset by peer")


def test_a_full_disk_is_told_with_the_name_of_the_file() -> None:
    with pytest.raises(StorageError, match=r"/dev/full: .*No space left"), storage.open_file("/dev/full", "wb") as file:
        file.write(b"x" * (2 << 20))


def test_a_directory_that_takes_no_files_is_told_with_the_name_of_the_file() -> None:
    with pytest.raises(StorageError, match="/proc/x cannot be written"):
        storage.open_file("/proc/x", "wb")


def test_a_local_error_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/below"):
        storage.write_atomic(str(tmp_path / "file" / "below"), b"")
