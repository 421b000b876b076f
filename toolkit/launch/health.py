"""The health check as a run needs it, and as a job of its own: `python -m toolkit.launch.health ROOT` on every rank."""

import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit import storage
from toolkit.config.schema import RunConfig
from toolkit.distributed import Place, World, read_place
from toolkit.errors import EXIT_DONE, ConfigError, ToolkitError, TryAgainError
from toolkit.health.check import check_nodes, conclude, limits_of, probe_rank
from toolkit.health.probes import Asked, find_temp_dir
from toolkit.health.verdicts import ALL, common_troubles
from toolkit.launch.nodes import NodeLedger, find_excluded
from toolkit.launch.survey import HealthFiles, check_limits, record_bad_nodes
from toolkit.log import setup_logging
from toolkit.plan.hardware import find_hardware
from toolkit.rundir import RunDir

log = logging.getLogger(__name__)

_COPY_BYTES = 32 << 20  # of each of 4 threads, twice
_WAIT_S = 90.0  # for all nodes; one that has not come by then is named by the report


def is_wanted(cfg: RunConfig) -> bool:
    """Whether a run's nodes are looked at before it trains."""
    wanted = cfg.health.enabled
    return wanted == "always" or (wanted == "auto" and cfg.cluster.nodes > 1)


def refuse_bad_nodes(cfg: RunConfig, run_dir: RunDir, world: World, *, environ: Mapping[str, str]) -> None:
    """Check the nodes of an attempt; write bad ones into the ledger, and end the attempt. Collective.

    A node that this run has named before and was given again could not be avoided: the run goes on with it.

    Raises:
        TryAgainError: nodes are bad; on every rank, with the same words.
    """
    asked = ask_of_run(cfg, place=world.place, environ=environ, is_cuda=world.device.type == "cuda")
    health = check_nodes(world, asked)
    now, ledger = time.time(), NodeLedger(run_dir.root.parent)
    events = ledger.events() if world.rank == 0 else []
    named = {event.node for event in events if event.run == run_dir.name and event.expires > now}
    named &= set(find_excluded(events, now=now)) & {verdict.node for verdict in health.verdicts}
    known = world.gather(sorted(named))[0]
    new = {node: reason for node, reason in health.bad_nodes.items() if node not in known}
    if world.rank == 0:
        for node in known:
            log.warning(
                "going on with %s, which could not be avoided: %s", node, health.bad_nodes.get(node, "well now")
            )
        for probe, words in common_troubles(health.verdicts).items():
            log.warning("no node is blamed for %s: %s", probe, words)
        for verdict in health.verdicts:
            if not verdict.ok and verdict.node == ALL:
                log.warning("%s: %s", verdict.probe, verdict.words)
        record_bad_nodes(ledger, new, run=run_dir.name, attempt=world.place.attempt, now=now)
        log.info(
            "%d nodes checked in %.1f s", len({verdict.node for verdict in health.verdicts} - {ALL}), health.seconds
        )
    if new:
        said = "; ".join(f"{node}: {reason}" for node, reason in new.items())
        raise TryAgainError(
            f"bad nodes: {said}\n  they are in {ledger.path}, and are left out where there are others\n"
            "  `python -m toolkit nodes` shows them; health.enabled=never trains all the same"
        )


def ask_of_run(cfg: RunConfig, *, place: Place, environ: Mapping[str, str], is_cuda: bool) -> Asked:
    """Say what a run's nodes are checked for: what it reads and writes, and the GPUs it was given."""
    hardware = find_hardware(cfg.cluster.gpu_type) if is_cuda and cfg.cluster.gpu_type else None
    named = [*cfg.data.weights, cfg.checkpoint.dir, cfg.checkpoint.mirror_url]
    return Asked(
        temp_dir=find_temp_dir(environ),
        shared_dir=Path(cfg.run.root),
        job_id=place.job_id,
        urls=tuple(dict.fromkeys(url for url in named if url is not None and not storage.is_local(url))),
        gpus_per_node=_count_gpus(place, environ, is_cuda=is_cuda),
        peak_flops=hardware.peak_bf16_flops if hardware else None,
        network_bytes_per_s=hardware.network.bytes_per_s / hardware.gpus_per_node if hardware else None,
        copy_bytes=_COPY_BYTES if place.cluster == "slurm" else _COPY_BYTES // 2,
        limits=cfg.health.limits,
    )


def _count_gpus(place: Place, environ: Mapping[str, str], *, is_cuda: bool) -> int:
    # Slurm says what was given; a node whose driver is dead sees none of them.
    return int(environ.get("SLURM_GPUS_ON_NODE") or 0) or (place.local_size if is_cuda else 0)


def main(root: Path, environ: Mapping[str, str], limits: Sequence[str]) -> int:
    """Probe this rank's node, tell it, then measure together with the others; the report judges.

    Args:
        root: directory of all runs.
        environ: of the job; HEALTH_GPU_TYPE, HEALTH_URLS (separated by blanks) and HEALTH_WAIT_S may say more.
        limits: `PROBE=NUMBER`.
    """
    # deferred: it takes seconds, and the arguments are looked at first
    import torch  # noqa: PLC0415

    place = read_place(environ)
    setup_logging(rank=place.rank, node=place.node)
    asked = _ask_of_job(root, place, environ, limits, is_cuda=torch.cuda.is_available())
    files = HealthFiles(root, place.attempt)
    own = probe_rank(asked, place=place)
    files.write_rank(place.node, place.local_rank, own, rules=limits_of(asked))
    try:
        world = World(place, timeout_s=float(environ.get("HEALTH_WAIT_S") or _WAIT_S))
        readings = conclude(world, asked, own)
        if world.rank == 0:
            files.write_all(readings, rules=limits_of(asked))
        world.barrier()
        world.close()
    except ToolkitError as error:  # a node did not come: what is known of the others is in their files
        log.error("%s", error)
        return error.exit_code
    return EXIT_DONE


def _ask_of_job(root: Path, place: Place, environ: Mapping[str, str], limits: Sequence[str], *, is_cuda: bool) -> Asked:
    pairs = [limit.rpartition("=") for limit in limits]
    problems = check_limits(name for name, _, _ in pairs)
    if problems:
        raise ConfigError(problems)
    gpu_type = environ.get("HEALTH_GPU_TYPE")
    hardware = find_hardware(gpu_type) if is_cuda and gpu_type else None
    return Asked(
        temp_dir=find_temp_dir(environ),
        shared_dir=root,
        job_id=place.job_id,
        urls=tuple((environ.get("HEALTH_URLS") or "").split()),
        gpus_per_node=_count_gpus(place, environ, is_cuda=is_cuda),
        peak_flops=hardware.peak_bf16_flops if hardware else None,
        network_bytes_per_s=hardware.network.bytes_per_s / hardware.gpus_per_node if hardware else None,
        copy_bytes=_COPY_BYTES,
        test_pairs=True,
        limits={name: float(number) for name, _, number in pairs},
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), os.environ, sys.argv[2:]))
