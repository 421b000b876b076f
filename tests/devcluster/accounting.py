"""Accounting of a site: a MariaDB of its own without a port, and slurmdbd on it."""

import getpass
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.devcluster.shapes import Placement, Shape

PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "mariadb")
SMALL = (
    "--innodb-buffer-pool-size=64M",
    "--innodb-log-file-size=8M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-doublewrite=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--skip-log-bin",
)


class Daemons(Protocol):
    """What is needed of a site."""

    dir: Path
    shape: Shape

    def ask(self, *words: str) -> str: ...
    def start_daemon(self, command: list[str], *, log: Path | None = None, **variables: str) -> None: ...
    def wait(self, holds: Callable[[], object], *, name: str) -> None: ...


def render_conf(place: Placement) -> str:
    """Give slurmdbd.conf."""
    settings = {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={place.dir}/run/munge.sock",
        "DbdHost": place.host,
        "DbdAddr": "127.0.0.1",
        "DbdPort": place.ports[1],
        "SlurmUser": place.user,
        "PidFile": f"{place.dir}/run/slurmdbd.pid",
        "LogFile": f"{place.dir}/log/slurmdbd.log",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "localhost",
        "StorageUser": place.user,
        "StorageLoc": "slurm_acct",
        **place.plugins,
    }
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def start(site: Daemons) -> None:
    """Start both, and make the accounts of the site."""
    log, socket_path, user = site.dir / "log", site.dir / "run" / "mysql.sock", getpass.getuser()
    data = ["--no-defaults", f"--datadir={site.dir}/db", f"--user={user}"]
    rights = ["--skip-test-db", "--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}"]
    site.start_daemon(["mariadb-install-db", *data, *rights], log=log / "install-db.log")
    where = ["--skip-networking", f"--socket={socket_path}", "--innodb-lock-wait-timeout=900"]
    site.start_daemon(["setsid", "--fork", "mariadbd", *data, *SMALL, *where], log=log / "mariadbd.log")
    client = ["mariadb", "--no-defaults", "-u", user, "-S", str(socket_path), "-e", "select 1"]
    site.wait(lambda: site.ask(*client), name="mariadbd")
    site.start_daemon(["slurmdbd"], MYSQL_UNIX_PORT=str(socket_path))
    site.wait(lambda: [site.ask("sacctmgr", "-n", "show", "cluster")], name="slurmdbd")
    for words in (f"add cluster {site.shape.name}", *site.shape.accounts):
        site.ask("sacctmgr", "-n", "-i", *words.split())
