"""The harness of test sites: what a user of a site may do, and that nothing of a site is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cluster.conftest import run_site
from tests.devcluster import processes, sites
from tests.devcluster.shapes import SHAPES, Shape, mini
from tests.devcluster.sites import Site
from tests.runs import CHECKOUT, wait_until

pytestmark = pytest.mark.cluster

START = """
import sys, time
from pathlib import Path
from tests.devcluster.shapes import mini
from tests.devcluster.sites import started
with started(mini(), Path(sys.argv[1])):
    print("up", flush=True)
    time.sleep(1000)
"""


def traces(directory: Path) -> list[str]:
    """List the processes that were started for a directory, or see something of it mounted."""

    def has_to_do(pid: int) -> bool:
        for name in ("cmdline", "environ", "mountinfo"):
            try:
                if str(directory).encode() in Path(f"/proc/{pid}/{name}").read_bytes():
                    return True
            except OSError:  # it ends just now, or is somebody else's
                continue
        return False

    return [Path(f"/proc/{pid}/comm").read_text(encoding="utf-8") for pid in processes.find(has_to_do)]


@pytest.fixture(autouse=True, scope="module")
def slurm_is_here() -> None:
    reason = sites.why_not(mini())
    if reason is not None:
        pytest.skip(reason)


def test_two_sites_of_a_shape_run_at_once() -> None:
    with run_site(mini(nodes=3)) as first, run_site(mini(nodes=1)) as second:
        for site, count in ((first, 3), (second, 1)):
            done = site.run(["sinfo", "-h", "-p", "main", "-o", "%D %t"])
            assert done.stdout.split() == [str(count), "idle"], done
    assert not first.dir.exists()
    assert traces(first.dir) == []


def test_a_site_that_does_not_start_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "START_S", 2)
    wrong = replace(mini(), partitions=("main Nodes=nowhere",))
    place = tmp_path / "site"
    with pytest.raises(sites.SiteError, match="nowhere"):
        sites.up(wrong, place)
    assert not place.exists()
    assert traces(place) == []


def test_a_site_is_gone_when_the_process_that_started_it_was_killed(tmp_path: Path) -> None:
    place = tmp_path / "site"
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(
        [sys.executable, "-c", START, place], env=environ, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "up\n"
        assert len(traces(place)) >= 5  # munged, slurmctld, two slurmd, the owner
        owner.send_signal(signal.SIGKILL)
    wait_until(lambda: not place.exists() and not traces(place), said=lambda: traces(place))


def test_an_ordinary_user_runs_the_checkout_and_reads_nothing_else_of_root(
    start_site: Callable[[Shape], Site], tmp_path: Path
) -> None:
    site = start_site(SHAPES["lua"])
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    (tmp_path / "secret").chmod(0o644)  # but the folder above is closed
    secrets = f"{tmp_path}/secret {site.dir}/munge/key {site.dir}/hosts/n4/hosts"
    script = f"""
        id --user --name; hostname
        {sys.executable} -c 'import toolkit; print(toolkit.__path__[0])'
        for path in {secrets}; do [ -r $path ] && echo can read $path; done
        for path in {CHECKOUT} {CHECKOUT}/submit.py {site.dir} /etc; do [ -w $path ] && echo can write $path; done
        [ -e /tmp/mine ] || echo nothing is in /tmp
        echo mine >/tmp/mine
    """
    done = site.run(["bash", "-c", script])
    package, own = str(CHECKOUT / "toolkit"), "nothing is in /tmp"
    assert done.stdout.splitlines() == [site.shape.user, "login", package, own], done.stderr
    assert site.run(["cat", "/tmp/mine"]).stdout == "mine\n"
    node = site.run(["srun", "--nodes=1", "--nodelist=n3", "--mem=100", "--time=1", "bash", "-c", script])
    assert node.stdout.splitlines() == [site.shape.user, "n3", package, own], node.stderr
