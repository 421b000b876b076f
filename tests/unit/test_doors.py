"""No secret leaves through a log, a traceback, an error, or a URL that is used."""

import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import storage
from toolkit.errors import ConfigError, Problem, RunError, StorageError
from toolkit.launch.ledger import Failure, read_failures, write_failure
from toolkit.rundir import RunDir

SECRET = "Zq7canaryPw9"
URL = f"ftp://me:{SECRET}@host/x"

PROGRAM = f"""
import logging, sys, threading
from toolkit.log import setup_logging
setup_logging(rank=0, node="n1")
other = logging.getLogger("library")
other.addHandler(logging.StreamHandler(sys.stderr))
other.warning("config: %s", {{"api_key": "{SECRET}"}})
other.warning("no %s in it")
logging.getLogger("toolkit").info("reading %s", "{URL}")
try:
    raise OSError("cannot open {URL}")
except OSError:
    logging.getLogger("toolkit").exception("failed")
def fail():
    raise ValueError("password={SECRET}")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""


def test_no_log_and_no_traceback_tells_a_secret() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert SECRET not in said
    assert done.returncode == 1
    assert said.count("ValueError: password=***") == 2
    assert "OSError: cannot open ftp://me:***@host/x" in done.stdout
    assert "n1 r0 | reading ftp://me:***@host/x" in done.stdout
    assert "'api_key': '***'" in done.stderr


def test_no_error_tells_a_secret() -> None:
    problem = Problem(f"data.path={URL}", "must", "do")
    for told in (problem, ConfigError([problem]), RunError(f"--token {SECRET}")):
        assert SECRET not in str(told)


def test_what_a_rank_leaves_of_its_failure_holds_no_secret(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.attempt_dir("7.0").mkdir(parents=True)
    failure = Failure(rank=0, node="n1", time=1.0, is_echo=False, error=f"OSError: {URL}")
    write_failure(run_dir, "7.0", failure)
    assert SECRET not in run_dir.failure_path("7.0", rank=0).read_text(encoding="utf-8")
    assert read_failures(run_dir, "7.0")[0].error == "OSError: ftp://me:***@host/x"


@pytest.mark.parametrize("url", [URL, f"https://b.s3.amazonaws.com/k?X-Amz-Signature={SECRET}"])
def test_a_url_with_a_secret_is_refused_before_it_is_used(url: str) -> None:
    with pytest.raises(StorageError, match="holds a secret") as caught:
        storage.exists(url)
    assert SECRET not in str(caught.value)
