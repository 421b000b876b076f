"""What a site's directory holds before its daemons start."""

import dataclasses
import getpass
import json
import os
import pwd
import socket
from pathlib import Path

from tests.devcluster import accounting, releases
from tests.devcluster.shapes import Placement, Shape, render_files
from tests.devcluster.views import Host, plan_host

LOG_IN = "login"


def num_ports(shape: Shape) -> int:
    """Count the ports of a site: of the controller, of slurmdbd, of each node."""
    return 2 + len(shape.node_names())


def plan_site_host(shape: Shape, name: str, directory: Path) -> Host:
    """Plan a host of a site."""
    place = directory / "hosts" / name
    if shape.user is None:
        return Host(name=name, dir=place)
    programs = [releases.root_dir(shape.release)] if shape.release else []
    return plan_host(name, place, user=shape.user, writable=directory, programs=programs)


def make(shape: Shape, directory: Path, *, ports: tuple[int, ...]) -> None:
    """Write what a site consists of."""
    for name in ("", "etc", "run", "log", "spool", "dev", "home", "state", "munge", "db", "hosts"):
        (directory / name).mkdir(parents=True, exist_ok=True)
        (directory / name).chmod(0o700 if name in {"state", "munge", "db", "hosts"} else 0o755)
    kept = {"shape": dataclasses.asdict(shape), "ports": ports}
    write_file(directory / "site.json", json.dumps(kept))
    place = Placement(
        dir=directory,
        host=socket.gethostname().split(".")[0],
        log_in=LOG_IN,
        user=getpass.getuser(),
        ports=ports,
        nodes_are_hosts=os.geteuid() == 0,
        plugins={"PluginDir": releases.plugin_dir(shape.release)} if shape.release else {},
    )
    for name, text in render_files(shape, place).items():
        write_file(directory / "etc" / name, text)
    if shape.accounts:
        write_file(directory / "etc" / "slurmdbd.conf", accounting.render_conf(place), mode=0o600)
    write_file(directory / "munge" / "key", os.urandom(64).hex(), mode=0o400)
    for number in range(max(group.gpus for group in shape.nodes)):
        (directory / "dev" / f"nvidia{number}").symlink_to("/dev/null")
    if shape.user:
        entry = pwd.getpwnam(shape.user)
        os.chown(directory / "home", entry.pw_uid, entry.pw_gid)
    for name in (LOG_IN, *shape.node_names()):
        plan_site_host(shape, name, directory).make((directory / "etc" / "hosts").read_text(encoding="utf-8"))


def write_file(path: Path, text: str, *, mode: int = 0o644) -> None:
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")
    path.chmod(mode)
