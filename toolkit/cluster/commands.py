"""Slurm's commands, run in an environment made for them, within a limit, and again while nobody answers."""

import logging
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from toolkit.cluster.environment import environ_for_commands
from toolkit.errors import ClusterError

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 20.0
_QUIET_S = 4.0
"""So long a command may take before a person is told what is waited for."""

# What the commands say while a controller or a network is away or busy.
# Source: Slurm 22.05, src/common/slurm_errno.c; measured with a controller that was stopped or killed.
_PASSING = (
    "Unable to contact",
    "Socket timed out",
    "Connection refused",
    "Resource temporarily unavailable",
    "Unexpected message received",  # scontrol requeue, when nobody listens
    "Zero Bytes were transmitted",
    "Communication connection failure",
    "Message receive failure",
    "Connection timed out",
    "standby mode",  # the backup controller, before it takes over
    "temporarily unable to accept job",  # MaxJobCount
)


class SilentError(ClusterError):
    """The controller did not answer; whether it did what was asked is not known."""


class UndecidedError(SilentError):
    """A job was handed in, and nobody can say whether it was taken.

    Args:
        act: what was to be done, for people: `submit NAME`.
        reason: what was said instead of an answer.
        mark: by which the job can be found; empty: by nothing.
    """

    def __init__(self, act: str, reason: str, *, mark: str) -> None:
        super().__init__(
            f"Slurm did not answer when asked to {act}: {reason}\n"
            "  the job may have been taken all the same: nothing is taken back, and it is not handed in again\n"
            "  once Slurm answers, `python -m toolkit status` shows whether it was"
        )
        self.mark = mark


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said."""

    code: int
    """Exit code; 128 + n after signal n."""
    out: str
    err: str

    @property
    def reason(self) -> str:
        """Give the words of an error in one line; a site's greetings on the same stream are left out."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        errors = [line.split("error: ", 1)[1] for line in lines if "error: " in line]
        return "; ".join(dict.fromkeys(errors or lines)) or "no reason given"

    @property
    def is_passing(self) -> bool:
        """Whether the same command may do better in a moment: the controller is away, or the command was killed."""
        # at the end of a job every process of its script is told to end
        return self.code > 128 or any(mark in self.err for mark in _PASSING)


def run_command(
    command: Sequence[str], *, timeout_s: float, script: str | None = None, environ: Mapping[str, str] | None = None
) -> Said:
    """Run a command of Slurm once; one that takes too long is killed, and what it had said is kept.

    Args:
        command: its words.
        timeout_s: how long it may take, in seconds.
        script: given to it on standard input.
        environ: in which it runs; None: this process's, without what changes what commands of Slurm do.

    Raises:
        ClusterError: there is no such command here.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write((script or "").encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=given,
                stdout=out,
                stderr=err,
                env=environ_for_commands(os.environ) if environ is None else dict(environ),
                start_new_session=True,  # a site's wrapper is killed with what it has started
            )
        except FileNotFoundError:
            raise ClusterError(f"cannot run {command[0]}: there is none here\n  use a login node") from None
        with process:
            try:
                code = _await(process, err, name=command[0], timeout_s=timeout_s)
            finally:
                _kill(process)
        if code is None:
            late = f"Socket timed out: {command[0]} said nothing for {timeout_s:g} s"
            return Said(1, _text(out), "\n".join(filter(None, [_text(err).strip(), late])))
        return Said(code if code >= 0 else 128 - code, _text(out), _text(err))


def call(
    command: Sequence[str],
    *,
    act: str,
    answer_s: float,
    patience_s: float,
    script: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Said:
    """Run a command until it succeeds, while the controller does not answer.

    Args:
        command: its words.
        act: what it does, for people: `submit NAME`.
        answer_s: how long one try may take, in seconds.
        patience_s: how long it is tried again, in seconds.
        script: given to it on standard input.
        environ: see `run_command`.

    Raises:
        SilentError: there was no answer.
        ClusterError: Slurm refused.
    """
    deadline = time.monotonic() + patience_s
    pause_s = 1.0
    while True:
        said = run_command(command, timeout_s=answer_s, script=script, environ=environ)
        if said.code == 0:
            return said
        if not said.is_passing:
            raise ClusterError(f"Slurm refused to {act}: {said.reason}\n  `sinfo` shows what there is")
        if time.monotonic() + pause_s > deadline:
            raise SilentError(
                f"Slurm does not answer when asked to {act}: {said.reason}\n"
                "  its controller is down or busy; what runs goes on\n  see `scontrol ping`, and try again"
            )
        log.warning("%s: %s; trying again", act, said.reason)
        time.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _await(process: "subprocess.Popen[bytes]", err: IO[bytes], *, name: str, timeout_s: float) -> int | None:
    """Wait for the end of a command, and say once what it says while it takes long; None: it took too long."""
    with suppress(subprocess.TimeoutExpired):
        return process.wait(min(_QUIET_S, timeout_s))
    if timeout_s <= _QUIET_S:
        return None
    words = Said(1, "", _text(err)).reason if _text(err).strip() else "no answer yet"
    log.warning("waiting for %s: %s", name, words)
    with suppress(subprocess.TimeoutExpired):
        return process.wait(timeout_s - _QUIET_S)
    return None


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _text(file: IO[bytes]) -> str:
    """Read all of a file that another process writes; names and reasons may be in any encoding."""
    return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", errors="replace")
