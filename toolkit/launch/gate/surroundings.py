"""What ranks find around them: the Python environment after the site's shell lines, and W&B."""

import contextlib
import json
import netrc
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from toolkit.cluster.environment import HONOURED, describe_dropped, environ_for_job, find_honoured
from toolkit.cluster.shell import write_exports
from toolkit.launch.gate import versions
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, note, ok, refuse, warn
from toolkit.launch.gate.versions import PACKAGES, read_versions, say_versions
from toolkit.launch.snapshot import checkout_dir
from toolkit.monitor.wandb_env import tell_shell

_SETUP_S = 8.0
_WANDB_URL = "https://api.wandb.ai"
_HARMLESS = re.compile(
    r"(module|ml|source|\.|export|unset|set|(conda|mamba|micromamba) (de)?activate|"
    r"spack (load|unload|env activate))( |$)"
)
_RISKY = re.compile(
    r"[;&|<>`\n\r]|SLURM|TMPDIR"
    r"|\$[('\"\[]|\$\{!|\$\{[^}]*(@|\[|:(?![-=+?]))"  # what bash runs or reckons with inside of an expansion
    r"|^\s*(unset|export)(\s.*)?\s[\"']?\$"
)
_MARK = "versions: "
_TELL = f"import json, {versions.__name__} as versions; print({_MARK!r} + json.dumps(versions.read_versions()))"


def check_environment(context: Context) -> list[Finding]:
    """Look at `environment`: start the ranks' Python as the job does, here; after the site's lines where they are safe.

    What differs on a node is seen when the job starts: its ranks compare their versions.
    """
    return [*_tell_shell(context), *_check_python(context)]


def _tell_shell(context: Context) -> list[Finding]:
    """Say what of the shell changes the job, and what would have and does not."""
    asked, filled = context.asked, context.cfg.cluster
    taken = find_honoured(asked, context.environ) if not context.is_emulated else {}
    dropped = describe_dropped(context.environ, pass_env=filled.pass_env)
    found = []
    if taken:
        said = ", ".join(f"cluster.{key}={value} from {HONOURED[key]}" for key, value in taken.items())
        found.append(note("environment", said))
    if dropped:
        remedy = "what the job needs goes to cluster.env, or its name to cluster.pass_env"
        found.append(note("environment", f"not passed to the job: {dropped}", remedy=remedy))
    return found


def _check_python(context: Context) -> list[Finding]:
    section, python = context.cfg.cluster, context.python
    own = read_versions()
    missing = [name for name in PACKAGES if own.get(name) is None]
    if missing:
        what = f"{python} has no {' and no '.join(missing)}"
        return [refuse("environment", what, "every rank imports it", "install it there: see environment.yml")]
    said = say_versions(own)
    if not section.setup and not section.env:
        return [ok("environment", f"{said} in {context.prefix}")]
    fault = _find_fault(section.setup)
    if fault:
        what, reason = f"cluster.setup is no bash: {fault}", "the script of the job would end there"
        return [refuse("environment", what, reason, "mend cluster.setup")]
    if not all(is_harmless(line) for line in section.setup):
        return [
            note("environment", f"{said} in {context.prefix}; cluster.setup is not tried here, it may change things")
        ]
    script = _write_script(section.setup, section.env, python)
    code, output = _run(script, environ=environ_for_job(context.environ, pass_env=section.pass_env))
    marked = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    if marked is None:
        what = f"python does not start after cluster.setup here: {_last_line(output) or f'exit code {code}'}"
        if code is None:
            what = f"cluster.setup and the start of python took longer than {_SETUP_S:g} s here"
        reason = "the job runs the same lines on its first node, where they may do better"
        return [warn("environment", what, reason, "try them there: srun -n 1 --pty bash; or mend cluster.setup")]
    there: dict[str, str | None] = json.loads(marked.removeprefix(_MARK))
    if there != own:
        what = f"after cluster.setup {python} finds {say_versions(there)}, here {say_versions(own)}"
        return [
            refuse("environment", what, "the job must run what was checked here", "mend cluster.setup or cluster.env")
        ]
    return [ok("environment", f"{said} in {context.prefix}, also after cluster.setup")]


def is_harmless(line: str) -> bool:
    """Whether a shell line only changes the shell's own environment, so that it may be tried outside of a job.

    What is written for a node may clear a directory named by a variable that is empty here.
    """
    return bool(_HARMLESS.match(" ".join(line.split()))) and not _RISKY.search(line)


def _write_script(setup: list[str], env: Mapping[str, str], python: Path) -> str:
    start = f"exec {shlex.quote(str(python))} -c {shlex.quote(_TELL)}"
    return "\n".join(
        ["set -eo pipefail", f"cd {shlex.quote(str(checkout_dir()))}", *write_exports(env), *setup, "", start]
    )


def _find_fault(setup: list[str]) -> str:
    """Let bash read the lines without running them; give what it finds wrong."""
    command = ["bash", "-n", "-c", "\n".join(setup)]
    # bash reads BASH_ENV even so, and runs it
    said = subprocess.run(command, env={}, capture_output=True, text=True, errors="replace", check=False)
    return _last_line(said.stderr).removeprefix("bash: -c: ")


def _run(script: str, *, environ: Mapping[str, str]) -> tuple[int | None, str]:
    """Run a script; give its exit code (None: it took too long and was killed) and all it said."""
    with subprocess.Popen(
        ["bash", "-c", script],
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            said, _ = process.communicate(timeout=_SETUP_S)
        except subprocess.TimeoutExpired:
            _end_tree(process.pid)
            return None, process.communicate()[0]
        return process.returncode, said


def _end_tree(pid: int) -> None:
    """Kill a process and all below it; they share our terminal, so that Ctrl-C ends them too."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""


def check_wandb(context: Context) -> list[Finding]:
    """Look at `wandb`."""
    section, later = context.cfg.monitor, f"python -m toolkit sync {context.run_dir.name}"
    passed = environ_for_job(context.environ, pass_env=context.cfg.cluster.pass_env)
    mode, shell = section.wandb, tell_shell(section, context.environ, passed=passed)
    aside = f" ({shell})" if shell else ""
    if mode == "off":
        return [ok("wandb", f"off{aside}; numbers go to metrics.jsonl")]
    if mode == "offline":
        return [ok("wandb", f"recorded offline{aside}; send it later: {later}")]
    url = context.environ.get("WANDB_BASE_URL") or _WANDB_URL
    if _has_key(context, urlsplit(url).hostname or url):
        return [ok("wandb", f"a key for {url}{aside}")]
    what = f"no key for {url}: the run is recorded offline{aside}"
    remedy = f"type: wandb login; or send it later: {later}"
    if mode == "auto":
        return [note("wandb", what, remedy=remedy)]
    return [warn("wandb", what, "monitor.wandb=online, and W&B takes no run without a key", remedy)]


def _has_key(context: Context, host: str) -> bool:
    if context.environ.get("WANDB_API_KEY"):
        return True
    path = Path(context.environ.get("NETRC") or context.home / ".netrc").expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
