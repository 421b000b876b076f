"""The gate's look at the places of a run, and at what nodes see of them."""

import os
from pathlib import Path

import pytest

from tests.gate import DISK, NFS, FakeSlurm, make_context, only, verdicts
from toolkit.launch.gate import places
from toolkit.launch.gate.mounts import MOUNT_TABLE, Mount, find_mount, read_mounts
from toolkit.launch.gate.places import check_places, check_reachable, judge_paths

LARGE = ("model.hidden_size=65536", "model.intermediate_size=262144", "model.num_hidden_layers=100")


def test_places_that_can_be_written_and_have_room_are_well_and_stay_empty(tmp_path: Path) -> None:
    found = check_places(make_context(tmp_path / "runs", f"checkpoint.dir={tmp_path}/elsewhere"))
    assert verdicts(found) == {"places": "ok", "space": "ok"}
    assert "3 checkpoints of 1.3 MiB" in only(found, "space").what
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_that_do_not_fit_are_refused_with_their_number(tmp_path: Path) -> None:
    found = only(check_places(make_context(tmp_path, *LARGE, "checkpoint.keep=4")), "space")
    assert found.verdict.value == "refused"
    assert "free" in found.what
    assert "checkpoint.keep + 1 = 5" in found.reason


def test_checkpoints_that_stand_already_need_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path)
    monkeypatch.setattr(places.storage, "free_bytes", lambda _: 2 * 2**20)
    assert only(check_places(context), "space").verdict.value == "refused"
    for step in (10, 20):
        directory = context.run_dir.checkpoints_dir / f"step-{step:08d}"
        directory.mkdir(parents=True)
        (directory / "COMPLETE").touch()
    assert only(check_places(context), "space").verdict.value == "ok"


def test_checkpoints_that_are_kept_for_good_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.storage, "free_bytes", lambda _: 6 * 2**20)
    found = only(check_places(make_context(tmp_path, "run.tokens=102_400", "checkpoint.keep_every=20")), "space")
    assert found.verdict.value == "warning"
    assert "leaves 5 more of them" in found.reason


def test_checkpoints_that_stay_for_good_make_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(tmp_path, "run.tokens=102_400", "checkpoint.keep_every=20")
    for step in range(20, 100, 20):
        directory = context.run_dir.checkpoints_dir / f"step-{step:08d}"
        directory.mkdir(parents=True)
        (directory / "COMPLETE").touch()
    monkeypatch.setattr(places.storage, "free_bytes", lambda _: 1000)
    assert only(check_places(context), "space").verdict.value == "refused"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no /proc")
def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    found = check_places(make_context(tmp_path, "checkpoint.dir=/proc/checkpoints"))
    assert verdicts(found) == {"places": "refused"}
    assert "set checkpoint.dir" in found[0].remedy


def test_the_mount_table_of_this_machine_is_read() -> None:
    mounts = read_mounts(MOUNT_TABLE.read_text(encoding="utf-8"))
    found = find_mount(Path("/proc/self"), mounts)
    assert found is not None
    assert (found.point, found.kind) == ("/proc", "proc")


def test_the_deepest_and_newest_mount_holds_a_path_and_blanks_are_read() -> None:
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw",
        "2 1 0:5 / /a\\040b rw shared:1 - nfs4 s:/x rw",
        "3 1 0:6 / /a\\040b rw - lustre m:/y rw",
    ]
    text = "\n".join(lines)
    mounts = read_mounts(text)
    assert find_mount(Path("/a b/c"), mounts) == Mount("/a b", "lustre", "m:/y")
    assert find_mount(Path("/a bc"), mounts) == Mount("/", "ext4", "/dev/sda1")


@pytest.mark.parametrize(
    ("path", "mount", "verdict"),
    [
        ("/shared/runs", NFS, "ok"),
        ("/people/runs", DISK, "warning"),
        ("/tmp/runs", DISK, "refused"),
        ("/tmp/runs", Mount("/tmp", "nfs", "s:/tmp"), "ok"),
        ("/dev/shm/runs", Mount("/dev/shm", "tmpfs", "tmpfs"), "refused"),
        ("/box/runs", Mount("/", "overlay", "overlay"), "refused"),
        ("/s3/runs", Mount("/s3", "fuse.s3fs", "s3fs"), "ok"),
        ("/odd/runs", Mount("/odd", "fuse.ownfs", "x"), "note"),
    ],
)
def test_paths_are_judged_by_the_kind_of_their_file_system(path: str, mount: Mount, verdict: str) -> None:
    found = judge_paths({Path(path): "run.root"}, [mount])
    assert verdicts(found) == {"reachable": verdict}


def test_the_certain_and_the_likely_are_told_apart_and_shared_places_are_named(tmp_path: Path) -> None:
    paths = {Path("/tmp/a"): "run.root", Path("/people/b"): "data.path", Path("/shared/c"): "checkpoint.dir"}
    found = judge_paths(paths, [DISK, NFS])
    assert [one.verdict.value for one in found] == ["refused", "warning"]
    assert found[0].remedy == "put run.root on a shared file system (here: /shared)"
    assert "likely" in found[1].reason
    assert "/shared/c" not in found[1].what


def test_nodes_that_are_this_machine_see_everything(tmp_path: Path) -> None:
    assert check_reachable(make_context(tmp_path)) == []
    context = make_context(tmp_path, cluster=FakeSlurm(is_here=True), mounts=(DISK,))
    assert verdicts(check_reachable(context)) == {"reachable": "ok"}


def test_the_python_of_a_person_is_looked_at_and_that_of_the_system_is_not(tmp_path: Path) -> None:
    where = tmp_path / "env"
    (where / "bin").mkdir(parents=True)
    os.symlink("/usr/bin/env", where / "bin" / "python")
    asked = {"cluster": FakeSlurm(), "mounts": (Mount("/", "nfs", "s:/"), Mount(str(where), "xfs", "/dev/sdb"))}
    data = "data.path=hdfs://nowhere:1/x"
    context = make_context(tmp_path / "runs", data, **asked)
    assert str(where) not in check_reachable(context)[0].what
    own = make_context(tmp_path / "runs", data, **asked, prefix=where)
    (found,) = check_reachable(own)
    assert found.verdict.value == "refused"  # it lies in /tmp
    assert "put the Python environment on" in found.remedy
