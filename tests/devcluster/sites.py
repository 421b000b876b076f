#!/usr/bin/env python3
"""A private, real Slurm of a given shape on this machine: its own munged, slurmctld, slurmd for each node, slurmdbd.

  sites.py up SHAPE DIR [--nodes N ...]    start it in a new or empty directory (mini takes options, see `up -h`)
  sites.py run DIR COMMAND...              run a command there, as the site's user on its log-in node
  eval $(sites.py env DIR)                 let Slurm's commands of this shell talk to it
  sites.py down DIR                        end every process of it and remove DIR
Faults:
  sites.py kill-node DIR NODE              it crashes: SIGKILL of its slurmd, its slurmstepds and its tasks
  sites.py pause-node|resume-node DIR NODE it hangs: SIGSTOP of the same processes, and SIGCONT
  sites.py kill-slurmd DIR NODE            only its slurmd dies; the tasks live on
  sites.py start-node DIR NODE             start its slurmd again
  sites.py kill-ctld|start-ctld DIR        the controller dies; start it again
  sites.py mode DIR WORD                   how shape lua treats a job: banner, norequeue, gres, mem, nodep, or nothing

Shapes are data: see shapes.py. Nothing outside DIR is written, ports are free ones, several sites may run at once.
As root each node has its own host name, which resolves; otherwise all share this machine's (shape mini only). Needs
slurmctld, slurmd, slurm-client and munge; shapes with accounting slurmdbd, slurm-wlm-mysql-plugin and mariadb-server.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # as a script it does not see `tests`

from tests.devcluster import accounting, places, processes, releases
from tests.devcluster.shapes import LUA_MODES, SHAPES, NodeGroup, Shape, mini
from tests.devcluster.views import CHECKOUT, Host

PATH = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
LONGEST_DIR = 80  # the path of a socket has 107 characters at most
START_S = 60


class SiteError(Exception):
    """A site could not be made or started."""


def why_not(shape: Shape) -> str | None:
    """Say why this machine cannot start a shape; None: it can."""
    wanted = (*PROGRAMS, *(accounting.PROGRAMS if shape.accounts else ()))
    missing = [name for name in wanted if not shutil.which(name, path=PATH)]
    if missing:
        return f"no real Slurm: {', '.join(missing)} missing; `make test` as root on Debian installs it"
    if shape.release and not releases.is_fetched(shape.release):
        return f"no Slurm of Debian {shape.release}: `make test` fetches it, where apt has Debian's archive"
    if shape.user and os.geteuid() != 0:
        return f"a Slurm of shape {shape.name} needs root: its jobs run as another user, its nodes have their own /tmp"
    return None


class Site:
    """A site that lies in a directory; each command may be a process of its own."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory.resolve()
        if not (self.dir / "site.json").is_file():
            raise SiteError(f"no site in {directory}")
        kept = json.loads((self.dir / "site.json").read_text(encoding="utf-8"))
        groups = tuple(NodeGroup(**group) for group in kept["shape"]["nodes"])
        self.shape = Shape(**{**kept["shape"], "nodes": groups})
        self._ports = tuple(kept["ports"])

    @property
    def conf(self) -> Path:
        return self.dir / "etc" / "slurm.conf"

    @property
    def home(self) -> Path:
        """What its user may write, and all its nodes see."""
        return self.dir / "home"

    def make_home(self) -> Path:
        """Make a directory that its user may write and all its nodes see; another one each time."""
        directory = Path(tempfile.mkdtemp(dir=self.home))
        directory.chmod(0o755)
        if self.shape.user:
            shutil.chown(directory, self.shape.user)
        return directory

    def search_path(self, own: str) -> str:
        """Give the PATH of who uses it: where its Slurm is another one than that of this machine, that comes first."""
        return f"{releases.bin_dir(self.shape.release)}:{own}" if self.shape.release else own

    def log(self, name: str) -> str:
        """Give what a daemon has said."""
        path = self.dir / "log" / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    # -- the user's side

    def command(self, words: list[str], **variables: str) -> list[str]:
        """Give the command that runs another one as the site's user, in an environment of its own."""
        shown = {"SLURM_CONF": str(self.conf), **variables}
        if self.shape.user is None:
            shown = {"PATH": self.search_path(PATH), **shown}
            return ["env", *(f"{key}={value}" for key, value in shown.items()), *words]
        shown = {
            "PATH": self.search_path("/usr/local/bin:/usr/bin:/bin"),
            "HOME": str(self.home),
            "USER": self.shape.user,
            "LOGNAME": self.shape.user,
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "COLUMNS": "160",
            **shown,
        }
        entry = pwd.getpwnam(self.shape.user)
        become = ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--no-new-privs"]
        environ = ["env", "-i", *(f"{key}={value}" for key, value in shown.items())]
        return self._host(places.LOG_IN).enter([*become, *environ, *words], writable=self.dir)

    def run(self, words: list[str], *, timeout_s: float = 100, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as the site's user in the checkout."""
        command = self.command(words, **variables)
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=timeout_s)

    def ask(self, *words: str) -> str:
        """Run one of Slurm's commands as the administrator."""
        done = subprocess.run(words, env=self._environ(), capture_output=True, text=True, check=False, timeout=20)
        if done.returncode:
            raise SiteError(f"{' '.join(words)}: {done.stdout.strip()} {done.stderr.strip()}")
        return done.stdout

    def set_mode(self, word: str) -> None:
        """Choose what the job_submit plugin does; an empty word: nothing."""
        places.write_file(self.dir / "etc" / "mode", word)

    # -- faults

    def kill_node(self, name: str) -> None:
        processes.end(lambda: self._pids_of_node(name))

    def pause_node(self, name: str) -> None:
        processes.send(self._pids_of_node(name), signal.SIGSTOP)

    def resume_node(self, name: str) -> None:
        processes.send(self._pids_of_node(name), signal.SIGCONT)

    def kill_slurmd(self, name: str) -> None:
        self._kill_daemon(f"slurmd-{name}")

    def start_node(self, name: str) -> None:
        self._start_slurmd(name)
        self.wait(lambda: self._are_up([name]), name=f"slurmd-{name}")

    def _start_slurmd(self, name: str) -> None:
        if self._daemon(f"slurmd-{name}") is None:
            command = ["slurmd", "-N", name]
            if self.shape.release:
                command += ["-d", str(releases.bin_dir(self.shape.release) / "slurmstepd")]
            if self._nodes_are_hosts:
                command = self._host(name).enter(command, writable=self.dir)
            self.start_daemon(command, SLURMD_NODENAME=name)

    def kill_controller(self) -> None:
        self._kill_daemon("slurmctld")

    def start_controller(self) -> None:
        if self._daemon("slurmctld") is None:
            self.start_daemon(["slurmctld"])
        self.wait(lambda: self.ask("scontrol", "ping"), name="slurmctld")

    # -- its life

    def start(self) -> None:
        """Start all daemons and wait until the nodes are idle."""
        run, log = self.dir / "run", self.dir / "log"
        files = [f"--key-file={self.dir}/munge/key", f"--seed-file={self.dir}/munge/seed", f"--socket={run}/munge.sock"]
        # by force: a directory above may be closed to others, here but not on the hosts of the site
        self.start_daemon(["munged", "--force", *files, f"--pid-file={run}/munged.pid", f"--log-file={log}/munged.log"])
        if self.shape.accounts:
            accounting.start(self)
        self.start_controller()
        for words in self.shape.gpu_limits:
            self.ask("sacctmgr", "-n", "-i", *words.split())
        names = self.shape.node_names()
        for name in names:
            self._start_slurmd(name)
        self.wait(lambda: self._are_up(names), name="slurmctld")

    def down(self) -> None:
        """End every process of the site and remove its directory."""
        processes.end(self._pids)
        below = f"{self.dir}/"
        mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
        assert not any(place.startswith(below) for place in mounted), f"something is mounted below {self.dir}"
        shutil.rmtree(self.dir)

    def _are_up(self, names: list[str]) -> bool:
        said = self.ask("sinfo", "--all", "-h", "-N", "-n", ",".join(names), "-o", "%N %T").splitlines()
        usable = {name for name, state in map(str.split, said) if not re.search(r"unk|down|\*", state)}
        return usable == set(names)

    # -- processes

    @property
    def _nodes_are_hosts(self) -> bool:
        return os.geteuid() == 0

    def _host(self, name: str) -> Host:
        return places.plan_site_host(self.shape, name, self.dir)

    def _environ(self, **variables: str) -> dict[str, str]:
        """Give the environment of daemons and of the administrator's commands; by SITE_DIR a daemon is known."""
        own = {"PATH": self.search_path(PATH), "SLURM_CONF": str(self.conf), "SITE_DIR": str(self.dir)}
        return {"LANG": "C.UTF-8", **own, **variables}

    def start_daemon(self, command: list[str], *, log: Path | None = None, **variables: str) -> None:
        """Start a daemon, which goes into the background by itself."""
        with (log or self.dir / "log" / "start.log").open("a", encoding="utf-8") as file:
            done = subprocess.run(
                command,
                env=self._environ(**variables),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=START_S,
            )
        if done.returncode:
            raise SiteError(f"{' '.join(command)}: exit code {done.returncode}\n{Path(file.name).read_text()[-2000:]}")

    def wait(self, holds: Callable[[], object], *, name: str) -> None:
        deadline, said = time.monotonic() + START_S, ""
        while time.monotonic() < deadline:
            try:
                if holds():
                    return
            except SiteError as error:
                said = str(error)
            time.sleep(0.1)
        raise SiteError(f"{self.shape.name}: not up after {START_S} s: {said}\n{self.log(name)[-2000:]}")

    def _daemon(self, name: str) -> int | None:
        """Find a daemon that lives, by the file in which it wrote its process id."""
        with contextlib.suppress(OSError, ValueError):
            pid = int((self.dir / "run" / f"{name}.pid").read_text(encoding="utf-8"))
            if pid in self._pids():
                return pid
        return None

    def _kill_daemon(self, name: str) -> None:
        pid = self._daemon(name)
        if pid is None:
            raise SiteError(f"{name} does not run")
        processes.end(lambda: [pid] if processes.is_alive(pid) else [])

    def _pids(self) -> list[int]:
        """Find all processes of the site: its daemons, what they started, and what its user runs."""
        hosts = {name: self._host(name) for name in (places.LOG_IN, *self.shape.node_names())}
        files = [host.hosts_file for host in hosts.values() if host.hosts_file.exists()]
        return processes.find(
            lambda pid: (
                processes.sees(pid, files) or f"SITE_DIR={self.dir}" in processes.environ_of(pid) or self._is_task(pid)
            )
        )

    def _pids_of_node(self, name: str) -> list[int]:
        if self._nodes_are_hosts:
            return processes.find(lambda pid: processes.sees(pid, [self._host(name).hosts_file]))
        return processes.find(lambda pid: self._is_task(pid) and f"SLURMD_NODENAME={name}" in processes.environ_of(pid))

    def _is_task(self, pid: int) -> bool:
        environ = processes.environ_of(pid)
        return f"SLURM_CONF={self.conf}" in environ and any(one.startswith("SLURMD_NODENAME=") for one in environ)


@contextlib.contextmanager
def started(shape: Shape, directory: Path) -> Iterator[Site]:
    """Give a site that runs; nothing of it is left afterwards, also where this process is killed."""
    command = [sys.executable, __file__, "guard", str(directory)]
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    assert guard.stdin is not None, "a pipe was asked for"
    try:
        yield up(shape, directory)
    finally:
        guard.stdin.close()
        guard.wait(timeout=120)


def up(shape: Shape, directory: Path) -> Site:
    """Start a site in a new or empty directory; where it does not start, nothing is left of it."""
    reason = why_not(shape)
    if reason is not None:
        raise SiteError(reason)
    directory = directory.resolve()
    if any(map(str.isspace, str(directory))) or len(str(directory)) > LONGEST_DIR:
        raise SiteError(f"{directory}: the directory must have no white space and {LONGEST_DIR} characters at most")
    if directory.exists() and any(directory.iterdir()):
        raise SiteError(f"{directory} is not empty")
    with contextlib.ExitStack() as held, _umask(0o022):
        ports = [held.enter_context(reserved) for reserved in processes.reserve_ports(places.num_ports(shape))]
        places.make(shape, directory, ports=tuple(one.getsockname()[1] for one in ports))
        site = Site(directory)
        try:
            site.start()
        except BaseException:
            site.down()
            raise
    return site


@contextlib.contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser("up", help="start a site")
    start.add_argument("shape", choices=SHAPES)
    start.add_argument("dir", type=Path)
    start.add_argument("--release", help="a Debian release whose Slurm it runs, see releases.py")
    for name, kind in {"nodes": int, "gpus": int, "gpu-type": str, "cpus": int, "kill-wait-s": int}.items():
        start.add_argument(f"--{name}", type=kind, help="of shape mini", default=argparse.SUPPRESS)
    for name in ("down", "env", "guard", "kill-ctld", "start-ctld"):
        verbs.add_parser(name).add_argument("dir", type=Path)
    for name in ("kill-node", "pause-node", "resume-node", "kill-slurmd", "start-node"):
        verb = verbs.add_parser(name)
        verb.add_argument("dir", type=Path)
        verb.add_argument("node")
    mode = verbs.add_parser("mode")
    mode.add_argument("dir", type=Path)
    mode.add_argument("word", nargs="?", default="", choices=("", *LUA_MODES))
    run = verbs.add_parser("run")
    run.add_argument("dir", type=Path)
    run.add_argument("command", nargs=argparse.REMAINDER)
    return parser.parse_args(words)


def _start(asked: argparse.Namespace) -> None:
    options: dict[str, Any] = {
        key: value for key, value in vars(asked).items() if key not in {"verb", "shape", "dir", "release"}
    }
    if options and asked.shape != "mini":
        raise SiteError(f"only the shape mini takes options: {', '.join(options)}")
    shape = mini(**options) if options else SHAPES[asked.shape]
    site = up(dataclasses.replace(shape, release=asked.release), asked.dir)
    print(site.ask("sinfo", "--all").rstrip())


def _guard(directory: Path) -> None:
    sys.stdin.read()
    if (directory / "site.json").exists():
        Site(directory).down()


def main() -> None:
    asked = _parse()
    try:
        if asked.verb == "up":
            return _start(asked)
        if asked.verb == "guard":
            return _guard(asked.dir)
        site = Site(asked.dir)
        if asked.verb == "run":
            command = site.command(asked.command)
            os.execvp(command[0], command)
        acts: Mapping[str, Callable[[], None]] = {
            "down": site.down,
            "env": lambda: print(f"export SLURM_CONF={site.conf} PATH={site.search_path('$PATH')}"),
            "mode": lambda: site.set_mode(asked.word),
            "kill-ctld": site.kill_controller,
            "start-ctld": site.start_controller,
            "kill-node": lambda: site.kill_node(asked.node),
            "pause-node": lambda: site.pause_node(asked.node),
            "resume-node": lambda: site.resume_node(asked.node),
            "kill-slurmd": lambda: site.kill_slurmd(asked.node),
            "start-node": lambda: site.start_node(asked.node),
        }
        acts[asked.verb]()
    except SiteError as error:
        sys.exit(f"sites: {error}")


if __name__ == "__main__":
    main()
