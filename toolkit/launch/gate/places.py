"""Where a run writes: rights, room, and whether its nodes see the same."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.errors import Problem, StorageError
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.data import ANSWER_S
from toolkit.launch.gate.finding import Finding, note, ok, refuse, refuse_for, warn
from toolkit.launch.gate.mounts import Mount, find_mount, find_own_place, is_a_disk, is_shared
from toolkit.plan.costs import num_parameters


def check_places(context: Context) -> list[Finding]:
    """Look at `places` and `space`: try to write, leaving nothing, and compare free space with the checkpoints."""
    cfg, root = context.cfg, context.run_dir.root
    target = context.run_dir.find_checkpoints(cfg.checkpoint.dir)
    where = {"run.root": root} | ({} if target.is_relative_to(root) else {"checkpoint.dir": target})
    problems = [problem for key, place in where.items() for problem in _check_right(key, place)]
    if problems:
        return problems
    url = cfg.checkpoint.mirror_url
    places = [str(place) for place in where.values()] + ([url] if url else [])
    found = _check_answer(url) if url else []
    return [*(found or [ok("places", f"{' and '.join(places)} can be written")]), _check_space(context, target)]


def _check_right(key: str, place: Path) -> list[Finding]:
    existing = storage.nearest_existing(place)
    try:
        with tempfile.TemporaryFile(dir=existing):
            return []
    except OSError as error:
        what = f"cannot write to {existing}: {error.strerror}"
        remedy = f"set {key}, or ask for the right to write"
        return [refuse("places", what, f"{place} is to be there", remedy)]


def _check_answer(url: str) -> list[Finding]:
    try:
        with storage.patience(ANSWER_S):
            storage.exists(url)
    except StorageError as error:
        return [refuse_for("places", Problem.parse(str(error)))]
    return []


def _check_space(context: Context, target: Path) -> Finding:
    asked, each = context.cfg.checkpoint, layout.bytes_needed(num_parameters(context.cfg.model))
    free, steps = storage.free_bytes(target), layout.list_steps(target)
    most = asked.keep + 1  # an old one goes when the new one is whole
    missing = most - min(asked.keep, len(steps))
    what = f"{target} has {storage.say_bytes(free)} free"
    size = f"one checkpoint takes {storage.say_bytes(each)}"
    if missing * each > free:
        reason = f"{size}, and checkpoint.keep + 1 = {most} are there while one is written"
        return refuse("space", what, reason, "free space, set checkpoint.dir elsewhere, or a smaller checkpoint.keep")
    every, num_steps = asked.keep_every, context.cfg.num_steps
    kept = max(0, num_steps // every - sum(step % every == 0 for step in steps)) if every else 0
    if (missing + kept) * each > free:
        reason = f"{size}, and checkpoint.keep_every={every} leaves {kept} more of them for good"
        return warn("space", what, reason, "free space in time, or set a larger checkpoint.keep_every")
    return ok("space", f"{what}, {missing + kept} checkpoints of {storage.say_bytes(each)} will take it")


def check_reachable(context: Context) -> list[Finding]:
    """Look at `reachable`: whether all nodes see the paths of the run, as far as the mount table tells."""
    if context.is_emulated:
        return []
    if context.cluster.runs_here(context.partition.name):
        return [ok("reachable", f"all nodes of {context.partition.name} are this machine")]
    return judge_paths(_named_paths(context), context.mounts)


def judge_paths(paths: Mapping[Path, str], mounts: Sequence[Mount]) -> list[Finding]:
    """Tell paths that other machines certainly do not see from those that they likely do not see.

    Args:
        paths: with the key that sets each.
        mounts: file systems of this machine.
    """
    real = {path: path.resolve() for path in paths}
    held = {path: mount for path in paths if (mount := find_mount(real[path], mounts)) is not None}
    certain = {path: own for path, mount in held.items() if (own := find_own_place(real[path], mount))}
    likely = {path: mount for path, mount in held.items() if is_a_disk(mount) and path not in certain}
    shared = [mount.point for mount in mounts if is_shared(mount)]
    here = f" (here: {', '.join(shared[:3])})" if shared else ""
    found = [
        refuse(
            "reachable",
            f"{path} is {own}: each node has one of its own",
            "all nodes must see the same directory",
            f"put {paths[path]} on a shared file system{here}",
        )
        for path, own in certain.items()
    ]
    if likely:
        what = "; ".join(f"{path} is on {mount.kind} at {mount.point}" for path, mount in likely.items())
        reason = "likely a disk of this machine alone; nodes see it only where this machine serves it to them"
        found.append(warn("reachable", what, reason, f"if it does not, put it on a shared file system{here}"))
    if found:
        return found
    others = dict.fromkeys(mount.kind for mount in held.values() if not is_shared(mount))
    if others:
        return [note("reachable", f"whether nodes see file systems of kind {', '.join(others)} is not known")]
    kinds = ", ".join(dict.fromkeys(mount.kind for mount in held.values()))
    return [ok("reachable", f"{len(paths)} paths on shared file systems ({kinds})")]


def _named_paths(context: Context) -> dict[Path, str]:
    """Give the local paths that every rank opens, with the key that sets each."""
    cfg = context.cfg
    paths = {context.run_dir.root: "run.root"}
    for url in cfg.data.weights:
        if storage.is_local(url):
            paths.setdefault(storage.local_path(url), "data.path" if cfg.data.path else "data.mixture")
    if cfg.checkpoint.dir and cfg.checkpoint.mirror_url is None:
        paths.setdefault(storage.local_path(cfg.checkpoint.dir), "checkpoint.dir")
    # an interpreter of the system is on every node's own disk; one of a person must be seen from there
    for place in (context.prefix, context.python.resolve().parent):
        if not any(place.is_relative_to(system) for system in ("/usr", "/bin", "/opt")):
            paths.setdefault(place, "the Python environment")
    return paths
