"""What hosts of a test site hide of this machine, and what they keep."""

from pathlib import Path

from tests.devcluster.views import Cover, hops, plan_covers


def test_a_link_on_the_way_is_looked_up_as_the_kernel_does(tmp_path: Path) -> None:
    (tmp_path / "real" / "bin").mkdir(parents=True)
    (tmp_path / "real" / "bin" / "python3.11").touch()
    (tmp_path / "newest").symlink_to("real")
    (tmp_path / "real" / "bin" / "python").symlink_to("../bin/python3.11")
    assert list(hops(tmp_path / "newest" / "bin" / "python")) == [
        tmp_path / "newest",
        tmp_path / "real" / "bin" / "python",
        tmp_path / "real" / "bin" / "python3.11",
    ]


def test_closed_directories_are_covered_and_what_is_needed_is_kept(tmp_path: Path) -> None:
    closed, own, checkout = tmp_path / "closed", tmp_path / "own", tmp_path / "checkout"
    for name in (closed / "python" / "bin", own / "site", checkout / ".venv"):
        name.mkdir(parents=True)
    (checkout / ".venv" / "python").symlink_to(closed / "python" / "bin")
    needed = [checkout, checkout / ".venv" / "python", closed / "python", own / "site"]
    covers, free = plan_covers(needed, own=[own, tmp_path / "shm"], is_open=lambda path: path != closed)
    assert covers == [
        Cover(hidden=own, kept=(own / "site",)),
        Cover(hidden=tmp_path / "shm", kept=()),
        Cover(hidden=closed, kept=(closed / "python",)),
    ]
    assert free == [checkout]


def test_of_a_needed_directory_that_is_closed_itself_the_entries_are_kept(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "toolkit").mkdir(parents=True)
    (checkout / "submit.py").touch()
    covers, free = plan_covers([checkout], own=[], is_open=lambda path: path != checkout)
    assert covers == [Cover(hidden=checkout, kept=(checkout / "submit.py", checkout / "toolkit"))]
    assert free == []
