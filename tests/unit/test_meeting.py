"""Which notes the ranks of an attempt believe, and where their store listens."""

import socket
from collections.abc import Sequence
from datetime import timedelta

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import TCPStore

from tests.spawn.ranks import free_port
from toolkit.meeting import PROOF_BYTES, Notes, Seal, _listen, find_strangers, open_store

SEAL = Seal("known to the ranks")
WAIT = timedelta(seconds=10)


@pytest.fixture
def store() -> TCPStore:
    return open_store("127.0.0.1", free_port(), size=1, num_nodes=1, timeout_s=10)


def neighbour(store: TCPStore) -> TCPStore:
    """Connect as any process on the network can."""
    return TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False, timeout=WAIT)


def test_a_note_is_read_by_who_has_the_secret(store: TCPStore) -> None:
    Notes(store, SEAL).post("watchdog/alarm/0", "3: größer")
    assert Notes(neighbour(store), Seal("known to the ranks")).read("watchdog/alarm/0") == "3: größer"
    assert Notes(store, Seal("another attempt's")).read("watchdog/alarm/0") is None


@pytest.mark.parametrize("forged", ["1", "", " ", "0" * 64 + " 1", "\x00", "1 " * 1000])
def test_a_note_of_a_neighbour_is_not_there(store: TCPStore, forged: str, caplog: pytest.LogCaptureFixture) -> None:
    neighbour(store).set("watchdog/alarm/0", forged)
    notes = Notes(store, Seal("known to the ranks"))
    assert [notes.read("watchdog/alarm/0") for _ in range(3)] == [None] * 3
    assert caplog.text.count("a note that no rank of this attempt has written is ignored: watchdog/alarm/0") == 1


def test_a_note_counts_under_its_own_key_only(store: TCPStore) -> None:
    Notes(store, SEAL).post("watchdog/verdict/0", "null")
    thief = neighbour(store)
    thief.set("watchdog/verdict/1", thief.get("watchdog/verdict/0").decode())
    assert Notes(store, SEAL).read("watchdog/verdict/1") is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(key=st.text(), note=st.text(), other=st.text(), cut=st.integers(0, 70), put=st.characters())
def test_only_the_very_note_under_the_very_key_is_valid(key: str, note: str, other: str, cut: int, put: str) -> None:
    sealed = SEAL.put_on(key, note)
    assert SEAL.take_off(key, sealed) == note
    assert other == key or SEAL.take_off(other, sealed) is None
    changed = sealed[:cut] + put + sealed[cut + 1 :]
    assert changed == sealed or SEAL.take_off(key, changed) is None


def test_ranks_without_the_secret_are_found() -> None:
    seals = [SEAL, SEAL, Seal("guessed"), SEAL]
    nonces = [bytes([rank]) * PROOF_BYTES for rank in range(4)]
    told: list[Sequence[bytes]] = [nonces, [seal.prove(rank, nonces) for rank, seal in enumerate(seals)]]
    assert find_strangers(SEAL, rank=0, size=4, exchange=lambda own: told.pop(0)) == [2]


def test_a_proof_is_good_for_one_rank_and_one_start() -> None:
    nonces = [b"\x01" * PROOF_BYTES, b"\x02" * PROOF_BYTES]
    assert SEAL.prove(0, nonces) != SEAL.prove(1, nonces)
    assert SEAL.prove(0, nonces) != SEAL.prove(0, [nonces[0], b"\x03" * PROOF_BYTES])
    assert len(SEAL.prove(0, nonces)) == PROOF_BYTES


def listening(port: int) -> list[str]:
    own = psutil.Process().net_connections(kind="tcp")
    return [one.laddr.ip for one in own if one.status == psutil.CONN_LISTEN and one.laddr.port == port]


def test_the_store_listens_at_the_address_that_is_used(store: TCPStore) -> None:
    assert listening(store.port) == ["127.0.0.1"]


@pytest.mark.parametrize("answers", [["127.0.1.1"], ["10.9.9.9", "10.9.9.8"], ["203.0.113.7"], []])
def test_the_store_listens_everywhere_where_a_name_does_not_tell_what_others_see(
    answers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loopback address of a host's own name, several addresses, another machine's, none."""
    real = socket.getaddrinfo

    def look_up(host: str, *rest: object, **more: object) -> list[tuple[object, ...]]:
        if host != "gpu-1":
            return real(host, *rest, **more)  # type: ignore[arg-type,return-value]
        if not answers:
            raise socket.gaierror("Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 1)) for answer in answers]

    monkeypatch.setattr("socket.getaddrinfo", look_up)
    with _listen("gpu-1", 0, num_nodes=2) as everywhere:
        assert everywhere.getsockname()[0] in {"::", "0.0.0.0"}


def test_the_loopback_address_of_a_name_is_enough_for_one_node() -> None:
    with _listen("localhost", 0, num_nodes=1) as one, _listen("127.0.0.1", 0, num_nodes=2) as written:
        assert one.getsockname()[0] in {"127.0.0.1", "::1", "::"}  # localhost may have two
        assert written.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_refused(store: TCPStore) -> None:
    with pytest.raises(OSError, match="in use"):
        open_store("127.0.0.1", store.port, size=1, num_nodes=1, timeout_s=1)
