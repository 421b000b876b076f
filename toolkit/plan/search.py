"""Fills what the user left open with the fastest layout that fits, or finds the nodes that a deadline needs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.config.schema import RunConfig
from toolkit.errors import ConfigError, Problem
from toolkit.plan.advice import find_mistakes, no_division, open_fields, too_large
from toolkit.plan.calibration import UNCALIBRATED, Calibration
from toolkit.plan.costs import layer_costs
from toolkit.plan.hardware import Hardware
from toolkit.plan.proposal import Plan as Plan
from toolkit.plan.proposal import make_plan
from toolkit.plan.report import plan_dict as plan_dict  # others take all they need of a plan from here
from toolkit.plan.report import plan_text as plan_text
from toolkit.plan.split import split_layers

_LARGEST_MICRO_BATCH = 64
_ALIKE = 0.02  # layouts whose steps differ by less are taken for equally fast
_BEYOND = 12  # numbers of nodes in a row that a budget does not pay for, before the search ends
_GROWTH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # times the nodes, tried for a remedy


class TooLargeError(ConfigError):
    """No layout fits into the devices' memory."""

    def __init__(self, problem: Problem, nearest: Plan) -> None:
        super().__init__([problem])
        self.nearest = nearest


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What nodes are to be found for; None: no limit."""

    deadline_s: float | None = None
    """The run must take no longer, waiting in queues not counted."""
    budget_gpu_hours: float | None = None
    max_nodes: int = 4096


def resolve(cfg: RunConfig, *, hardware: Hardware, calibration: Calibration = UNCALIBRATED) -> Plan:
    """Choose stages, ZeRO, micro-batch and recompute where they are None.

    Args:
        cfg: with `cluster.gpus_per_node` set, and free of the mistakes that `check_config` finds.
        hardware: what the ranks run on.
        calibration: what was measured there.

    Raises:
        TooLargeError: no layout fits; the text names the nearest one, what it lacks, and what would fit.
        ConfigError: no layout works at all.
    """
    best = rank_plans(cfg, hardware=hardware, calibration=calibration)[0]
    chosen = [key for key, value in open_fields(cfg).items() if value is None]
    notes = [f"chosen by the planner: {', '.join(chosen)}" if chosen else "nothing was left open"]
    if not best.is_roomy:
        notes.append(
            f"{best.memory_part:.0%} of device memory: above 88% allocators thrash, runs were measured to be 2.6 to "
            "10 times slower"
        )
    return replace(best, notes=(*best.notes, *notes))


def rank_plans(
    cfg: RunConfig, *, hardware: Hardware, calibration: Calibration = UNCALIBRATED, limit: int | None = None
) -> list[Plan]:
    """Give all layouts that are not refused, the best first: roomy before tight, fast before slow.

    Raises:
        ConfigError: there is none.
    """
    problems = find_mistakes(cfg)
    if problems:
        raise ConfigError(problems)
    plans = list_plans(cfg, hardware=hardware, calibration=calibration)
    if not plans:
        raise ConfigError([no_division(cfg)])
    fitting = [plan for plan in plans if plan.fits]
    if not fitting:
        leanest = min(plans, key=lambda plan: plan.fullest_bytes)
        raise TooLargeError(too_large(cfg, leanest, _ways_out(cfg, leanest, hardware, calibration)), leanest)
    if hardware.memory_bytes is None:
        # Nothing but the bubble bounds the micro-batch of a pipeline on CPU: keep it small where that is free.
        fitting = [plan for plan in fitting if _is_filled(plan)] or fitting
    return _order(fitting)[:limit]


def _order(plans: Sequence[Plan]) -> list[Plan]:
    """Sort; of the fastest that are as good as equal, the one that takes the least comes first."""
    ordered = sorted(plans, key=lambda plan: (not plan.is_roomy, plan.speed.step_s, effort(plan.cfg)))
    edge = ordered[0].speed.step_s * (1 + _ALIKE)
    alike = [plan for plan in ordered if plan.speed.step_s <= edge and plan.is_roomy == ordered[0].is_roomy]
    first = min(alike, key=lambda plan: (*effort(plan.cfg), plan.speed.step_s))
    return [first, *(plan for plan in ordered if plan is not first)]


def list_plans(cfg: RunConfig, *, hardware: Hardware, calibration: Calibration = UNCALIBRATED) -> list[Plan]:
    """Reckon every layout that the configuration leaves open, also those that do not fit."""
    costs = layer_costs(cfg.model, seq_len=cfg.data.seq_len)
    splits: dict[int, tuple[int, ...]] = {}  # many candidates share their number of stages
    plans = []
    for candidate in _candidates(cfg):
        stages = candidate.parallel.stages or 1
        if stages not in splits:
            splits[stages] = split_layers(costs, stages=stages, split_by=cfg.parallel.split_by)
        plans.append(make_plan(candidate, splits[stages], hardware=hardware, calibration=calibration))
    return plans


def _candidates(cfg: RunConfig) -> Iterator[RunConfig]:
    world, given = cfg.world_size, cfg.parallel
    most = min(world, cfg.model.num_hidden_layers)  # a stage without a block only waits
    for stages in [given.stages] if given.stages else [n for n in range(1, most + 1) if world % n == 0]:
        if world % stages or (stages > 1 and (given.zero_stage or 0) >= 2):
            continue
        zeros = [given.zero_stage] if given.zero_stage is not None else [1, 2, 3] if stages == 1 else [1]
        for micro_batch in _micro_batches(cfg, replicas=world // stages):
            for zero_stage in zeros:
                for recompute in [given.recompute] if given.recompute is not None else [False, True]:
                    parallel = replace(given, stages=stages, zero_stage=zero_stage, recompute=recompute)
                    batch = replace(cfg.batch, micro_batch=micro_batch)
                    yield replace(cfg, parallel=parallel, batch=batch)


def _micro_batches(cfg: RunConfig, *, replicas: int) -> list[int]:
    each, rest = divmod(cfg.samples_per_step, replicas)
    if rest or not each:
        return []
    if cfg.batch.micro_batch:
        return [] if each % cfg.batch.micro_batch else [cfg.batch.micro_batch]
    return [size for size in range(1, min(each, _LARGEST_MICRO_BATCH) + 1) if each % size == 0]


def _is_filled(plan: Plan) -> bool:
    return plan.layout.stages == 1 or plan.num_micro_batches >= 2 * plan.layout.stages


def effort(cfg: RunConfig) -> tuple[int, int, int, int]:
    """Say how much a layout asks for: recompute, ZeRO, stages, and small micro-batches are the price of room."""
    parallel = cfg.parallel
    return bool(parallel.recompute), parallel.zero_stage or 0, parallel.stages or 1, -(cfg.batch.micro_batch or 1)


def _ways_out(cfg: RunConfig, nearest: Plan, hardware: Hardware, calibration: Calibration) -> list[dict[str, Any]]:
    """Find settings that fit: each open-able field alone first, all of them, then more nodes."""
    fields = ("parallel.stages", "parallel.zero_stage", "parallel.recompute", "batch.micro_batch")
    given = [field for field in fields if open_fields(cfg)[field] is not None]
    found: list[dict[str, Any]] = []
    for opened in [*([field] for field in given), given] if given else []:
        best = _best_fitting(_open(cfg, opened), hardware, calibration)
        if best is not None:
            found.append({field: open_fields(best.cfg)[field] for field in opened if _differs(cfg, best.cfg, field)})
    for factor in _GROWTH[1:]:
        if found and len(found) > 2:
            break
        nodes = cfg.cluster.nodes * factor
        wider = replace(cfg, cluster=replace(cfg.cluster, nodes=nodes))
        best = _best_fitting(wider, hardware, calibration) or _best_fitting(_open(wider, given), hardware, calibration)
        if best is not None:
            values = {field: open_fields(best.cfg)[field] for field in given if _differs(cfg, best.cfg, field)}
            found.append({"cluster.nodes": nodes, **values})
            break
    return [values for n, values in enumerate(found) if values and values not in found[:n]]


def _differs(one: RunConfig, other: RunConfig, field: str) -> bool:
    return bool(open_fields(one)[field] != open_fields(other)[field])


def _open(cfg: RunConfig, opened: Sequence[str]) -> RunConfig:
    parallel = replace(
        cfg.parallel,
        stages=None if "parallel.stages" in opened else cfg.parallel.stages,
        zero_stage=None if "parallel.zero_stage" in opened else cfg.parallel.zero_stage,
        recompute=None if "parallel.recompute" in opened else cfg.parallel.recompute,
    )
    batch = replace(cfg.batch, micro_batch=None) if "batch.micro_batch" in opened else cfg.batch
    return replace(cfg, parallel=parallel, batch=batch)


def _best_fitting(cfg: RunConfig, hardware: Hardware, calibration: Calibration) -> Plan | None:
    if find_mistakes(cfg):
        return None
    fitting = [plan for plan in list_plans(cfg, hardware=hardware, calibration=calibration) if plan.fits]
    return _order(fitting)[0] if fitting else None


def node_counts(limit: int) -> list[int]:
    """List the numbers of nodes that are tried: all small ones, then coarser."""
    counts = [*range(1, 17), *range(18, 65, 2), *range(72, 257, 8), *range(288, 1025, 32), *range(1152, 4097, 128)]
    return [count for count in counts if count <= limit]


def plot_counts(nodes: int) -> list[int]:
    """List numbers of nodes around one, an eighth to eight times as many: what a picture shows."""
    around = {max(1, round(nodes * step * 2**power)) for power in range(-3, 4) for step in (1, 1.5)}
    return sorted(count for count in around if count <= 8 * nodes)


def scan_nodes(
    cfg: RunConfig, counts: Sequence[int], *, hardware: Hardware, calibration: Calibration = UNCALIBRATED
) -> dict[int, Plan]:
    """Give the best plan on each number of nodes, where there is one."""
    found = {}
    for nodes in counts:
        best = _best_fitting(replace(cfg, cluster=replace(cfg.cluster, nodes=nodes)), hardware, calibration)
        if best is not None:
            found[nodes] = best
    return found


def find_nodes(cfg: RunConfig, wish: Wish, *, hardware: Hardware, calibration: Calibration = UNCALIBRATED) -> Plan:
    """Find the fewest nodes that meet a deadline, or the fastest run that a budget pays for.

    Both are reckoned at the slow end of the interval.

    Raises:
        ConfigError: nothing does; the text says which limits contradict each other, and what each alone would take.
    """
    plans: dict[int, Plan] = {}
    beyond = 0
    for nodes in node_counts(wish.max_nodes):
        plans |= scan_nodes(cfg, [nodes], hardware=hardware, calibration=calibration)
        if nodes not in plans:
            continue
        if wish.deadline_s is not None and _takes(plans[nodes]) <= wish.deadline_s:
            break
        # Cost rises with nodes, but not at every one of them: some divide the batch badly.
        beyond = beyond + 1 if _costs(plans[nodes]) > (wish.budget_gpu_hours or float("inf")) else 0
        if wish.deadline_s is None and beyond == _BEYOND:
            break
    if not plans:
        raise ConfigError(_no_nodes(cfg, wish, hardware, calibration))
    cheap = {nodes: plan for nodes, plan in plans.items() if _costs(plan) <= (wish.budget_gpu_hours or float("inf"))}
    quick = {nodes: plan for nodes, plan in plans.items() if _takes(plan) <= (wish.deadline_s or float("inf"))}
    both = [nodes for nodes in plans if nodes in cheap and nodes in quick]
    if not both:
        raise ConfigError([_contradiction(plans, cheap, quick, wish)])
    nodes = min(both) if wish.deadline_s is not None else min(both, key=lambda n: plans[n].speed.run_s)
    words = " and ".join(
        text
        for text, limit in (("the deadline", wish.deadline_s), ("the budget", wish.budget_gpu_hours))
        if limit is not None
    )
    which = "the fewest that meet" if wish.deadline_s is not None else "the fastest within"
    return replace(
        plans[nodes],
        notes=(
            *plans[nodes].notes,
            f"{nodes} nodes: {which} {words or 'no limit'}, at the slow end of the interval",
        ),
    )


def _takes(plan: Plan) -> float:
    return plan.speed.run_s * (1 + plan.speed.spread)


def _costs(plan: Plan) -> float:
    return plan.speed.gpu_hours * (1 + plan.speed.spread)


def _no_nodes(cfg: RunConfig, wish: Wish, hardware: Hardware, calibration: Calibration) -> Sequence[Problem]:
    """Say why no number of nodes works, as it is said of one number."""
    try:
        rank_plans(cfg, hardware=hardware, calibration=calibration)
    except ConfigError as error:
        return error.problems
    what = f"{cfg.cluster.nodes} nodes would do, but not one of at most {wish.max_nodes} nodes is tried"
    return [Problem(what, "a number of nodes must be allowed", "raise the largest number of nodes")]


def _contradiction(plans: dict[int, Plan], cheap: dict[int, Plan], quick: dict[int, Plan], wish: Wish) -> Problem:
    fastest, cheapest = min(plans.values(), key=_takes), min(plans.values(), key=_costs)
    days = (wish.deadline_s or 0) / 86400
    if wish.deadline_s is not None and not quick:
        return Problem(
            f"a deadline of {days:.3g} days with at most {max(plans)} nodes: the fastest run takes "
            f"{_takes(fastest) / 86400:.3g} days on {fastest.cfg.cluster.nodes} nodes",
            "the deadline and the number of nodes contradict each other",
            f"allow {_takes(fastest) / 86400:.3g} days, more nodes, or fewer run.tokens",
        )
    if not cheap:
        return Problem(
            f"a budget of {wish.budget_gpu_hours:,.0f} GPU-hours: the cheapest run takes {_costs(cheapest):,.0f} on "
            f"{cheapest.cfg.cluster.nodes} nodes",
            "the budget and run.tokens contradict each other",
            f"allow {_costs(cheapest):,.0f} GPU-hours, or fewer run.tokens",
        )
    soon, late = quick[min(quick)], cheap[max(cheap)]
    return Problem(
        f"a deadline of {days:.3g} days takes {_costs(soon):,.0f} GPU-hours on {min(quick)} nodes; a budget of "
        f"{wish.budget_gpu_hours:,.0f} GPU-hours takes {_takes(late) / 86400:.3g} days on {max(cheap)} nodes",
        "the deadline and the budget contradict each other",
        f"allow {_costs(soon):,.0f} GPU-hours, or {_takes(late) / 86400:.3g} days",
    )
