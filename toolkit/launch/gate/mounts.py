"""Which file systems other machines see, judged by their kind in the mount table: pure."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

MOUNT_TABLE = Path("/proc/self/mountinfo")

_SHARED = (
    "nfs", "nfs4", "lustre", "gpfs", "mmfs", "beegfs", "ceph", "glusterfs", "cifs", "smb3", "smbfs", "afs",
    "auristorfs", "pvfs2", "orangefs", "wekafs", "panfs", "9p", "virtiofs", "gfs2", "ocfs2", "daos", "quobyte",
    "moosefs", "juicefs", "cvmfs", "cvmfs2", "sshfs", "s3fs", "acfs", "dvs", "vastnfs",
)  # fmt: skip
_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "vfat", "bcachefs")
_MEMORY = ("tmpfs", "ramfs", "devtmpfs", "overlay", "squashfs", "rootfs", "proc", "sysfs")
_OWN_DIRS = ("/tmp", "/var/tmp", "/dev/shm", "/run")


@dataclass(frozen=True, slots=True)
class Mount:
    """A file system and where it is mounted."""

    point: str
    kind: str
    source: str


def read_mounts(text: str) -> tuple[Mount, ...]:
    """Read /proc/self/mountinfo.

    Source: proc(5); fields after the lone `-` are kind, source, options; blanks are written as octal numbers.
    """
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(" - ")
        if len(before.split()) > 4 and len(after.split()) > 1:
            mounts.append(Mount(_unescape(before.split()[4]), after.split()[0], _unescape(after.split()[1])))
    return tuple(mounts)


def find_mount(path: PurePath, mounts: Sequence[Mount]) -> Mount | None:
    """Find what holds an absolute path without links: the deepest mount, of several on one place the last."""
    holders = [mount for mount in mounts if path.is_relative_to(mount.point)]
    return (
        max(enumerate(holders), key=lambda pair: (len(PurePath(pair[1].point).parts), pair[0]))[1] if holders else None
    )


def is_shared(mount: Mount) -> bool:
    """Whether a file system is made for many machines."""
    return mount.kind.removeprefix("fuse.") in _SHARED or mount.kind.startswith("fuse.ceph")


def find_own_place(path: PurePath, mount: Mount) -> str | None:
    """Say why a path is certainly another one on each machine: memory, a container's layer, a /tmp on a disk.

    Returns:
        `in /tmp`, `on tmpfs at /scratch`; None: it is not certain.
    """
    if is_shared(mount):
        return None
    own = next((place for place in _OWN_DIRS if path.is_relative_to(place)), None)
    if own is not None:
        return f"in {own}"
    return f"on {mount.kind} at {mount.point}" if mount.kind in _MEMORY else None


def is_a_disk(mount: Mount) -> bool:
    """Whether it is a disk of this machine; other machines see it only where this one serves it to them."""
    return mount.kind in _DISKS


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)
