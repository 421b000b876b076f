"""Where the ranks of an attempt meet: a store at rank 0, and what makes a note in it believed.

torch's store carries out what anybody asks who reaches its port, and tells him the names of all notes. So it listens
only at the address that the ranks use, and a note counts only when it is sealed: with its HMAC under a secret that
the job script makes for each attempt and hands to the ranks alone.
"""

import hashlib
import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Protocol

from torch._C._distributed_c10d import TCPStore

log = logging.getLogger(__name__)

PROOF_BYTES = 32
_BACKLOG = 4096  # all ranks connect at once; the kernel takes net.core.somaxconn where that is less


class _Store(Protocol):
    """What notes need of torch's store."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


class Seal:
    """Tells what ranks of the attempt have written from what others have."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._told: set[str] = set()

    def put_on(self, key: str, note: str) -> str:
        """Seal a note for its key; under another one it is not valid."""
        return f"{self._sign('note', key, note)} {note}"

    def take_off(self, key: str, sealed: str) -> str | None:
        """Give the note under a seal; None: nobody of this attempt has written it, which is said once a key."""
        sign, _, note = sealed.partition(" ")
        if hmac.compare_digest(sign.encode(), self._sign("note", key, note).encode()):
            return note
        if key not in self._told:
            self._told.add(key)
            log.warning("a note that no rank of this attempt has written is ignored: %s", key)
        return None

    def prove(self, rank: int, nonces: Sequence[bytes]) -> bytes:
        """Give the proof that a rank knows the secret, `PROOF_BYTES` long; the nonces are the ranks', in order."""
        return bytes.fromhex(self._sign("proof", str(rank), *(nonce.hex() for nonce in nonces)))

    def _sign(self, *parts: str) -> str:
        # the lengths keep ("a", "bc") and ("ab", "c") apart
        message = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.new(self._secret, message.encode(), hashlib.sha256).hexdigest()


class Notes:
    """Sealed notes in a store."""

    def __init__(self, store: _Store, seal: Seal) -> None:
        self._store = store
        self._seal = seal

    def post(self, key: str, note: str) -> None:
        """Leave a note; a former one under the same key is replaced.

        Raises:
            RuntimeError: the store is gone or does not answer.
        """
        self._store.set(key, self._seal.put_on(key, note))

    def read(self, key: str) -> str | None:
        """Read a note; None: no rank of the attempt has left it yet.

        Raises:
            RuntimeError: the store is gone or does not answer.
        """
        if not self._store.check([key]):
            return None
        return self._seal.take_off(key, self._store.get(key).decode(errors="replace"))


def find_strangers(seal: Seal, *, rank: int, size: int, exchange: Callable[[bytes], Sequence[bytes]]) -> list[int]:
    """List the ranks that do not know the secret of the attempt; all ranks call it together.

    Args:
        seal: of this rank.
        rank: of this process.
        size: number of ranks.
        exchange: gives the bytes of all ranks, in order, for those of this one (as many on each).
    """
    nonces = exchange(secrets.token_bytes(PROOF_BYTES))
    proofs = exchange(seal.prove(rank, nonces))
    return [other for other in range(size) if not hmac.compare_digest(proofs[other], seal.prove(other, nonces))]


def open_store(host: str, port: int, *, size: int, num_nodes: int, timeout_s: float) -> TCPStore:
    """Open the store on rank 0, and wait for the others.

    Raises:
        OSError: the port is in use.
        RuntimeError: as torch has it.
    """
    listener = _listen(host, port, num_nodes=num_nodes)
    return TCPStore(
        host,
        port,
        size,
        is_master=True,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )


def _listen(host: str, port: int, *, num_nodes: int) -> socket.socket:
    address = _find_address(host, port, num_nodes=num_nodes)
    if address is not None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return socket.create_server((address, port), family=family, backlog=_BACKLOG)
    log.info("the store listens at all addresses: it is not clear which one the other nodes have for %s", host)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=_BACKLOG, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=_BACKLOG)


def _find_address(host: str, port: int, *, num_nodes: int) -> str | None:
    """Find the address at which the other ranks look for rank 0; None: this node cannot tell.

    A name may mean another address here than elsewhere: Debian gives a host's own name as 127.0.1.1.
    """
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError:
        return None
    if len(found) != 1:
        return None
    address = found.pop()
    is_misleading = address != host and num_nodes > 1 and ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return None if is_misleading or not _is_own(address) else address


def _is_own(address: str) -> bool:
    """Whether this node has an address; one may stand for a name that leads through a gateway."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
