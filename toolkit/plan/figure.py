"""Time and memory over the number of nodes, as an SVG picture."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.plan.proposal import REFUSE_ABOVE, WARN_ABOVE, Plan
from toolkit.plan.report import choose_unit, say_gpu_hours

_BLUE, _RED, _GREY = "#1f5fa8", "#b03030", "#666666"
_FIXED = {"Date": None}  # the same plans give the same file


def draw_plans(plans: Mapping[int, Plan], *, title: str) -> str:
    """Draw how long the run takes (with the interval) and the memory of the fullest stage over nodes.

    Args:
        plans: the best plan for each number of nodes; at least one.
        title: what is above the picture.
    """
    # deferred: 0.4 s, for the one option that draws
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    assert plans, "there is nothing to draw"
    best = [plans[nodes] for nodes in sorted(plans)]
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "toolkit"}):
        figure = Figure(figsize=(max(7.0, 1.5 + 0.85 * len(best)), 6.5), layout="constrained")
        figure.suptitle(title)
        time, memory = figure.subplots(2, 1, sharex=True)
        _draw_time(time, best)
        _draw_memory(memory, best)
        for axes in (time, memory):
            axes.spines[["top", "right"]].set_visible(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=_FIXED)
    return file.getvalue()


def _draw_time(axes: Any, plans: Sequence[Plan]) -> None:
    unit = choose_unit(max(plan.speed.run_s for plan in plans))
    places = range(len(plans))
    times = [plan.speed.run_s / unit.seconds for plan in plans]
    spread = plans[0].speed.spread
    axes.plot(places, times, "o-", color=_BLUE)
    edges = [[time * (1 + sign * spread) for time in times] for sign in (-1, 1)]
    axes.fill_between(places, *edges, color=_BLUE, alpha=0.15, linewidth=0)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(unit.name)
    axes.grid(axis="y", alpha=0.3)
    for place, plan in enumerate(plans):
        hours = say_gpu_hours(plan.speed.gpu_hours)
        above = {"xytext": (4, 7), "textcoords": "offset points"}
        axes.annotate(f"{hours} GPU-h", (place, times[place]), fontsize=8, color=_GREY, **above)


def _draw_memory(axes: Any, plans: Sequence[Plan]) -> None:
    axes.plot(range(len(plans)), [plan.fullest_bytes / 2**30 for plan in plans], "o-", color=_BLUE)
    limit = (plans[0].hardware.memory_bytes or 0) / 2**30
    for part, words in ((1.0, "device"), (REFUSE_ABOVE, "refused"), (WARN_ABOVE, "tight")) if limit else ():
        axes.axhline(part * limit, color=_RED, linewidth=0.8, linestyle="--")
        beside = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": 8, "color": _RED}
        axes.annotate(words, (1.005, part * limit), **beside)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("GiB on the fullest stage")
    axes.grid(axis="y", alpha=0.3)
    names = [f"{plan.cfg.cluster.nodes}\n{_layout(plan)}" for plan in plans]
    axes.set_xticks(range(len(plans)), names, fontsize=8)
    axes.set_xlabel("nodes, and the best layout: stages x replicas, ZeRO stage, micro-batch")


def _layout(plan: Plan) -> str:
    one = plan.layout
    again = "\nrecompute" if one.recompute == "full" else ""
    return f"{one.stages}x{one.replicas}\nZ{one.zero_stage} mb{one.micro_batch}{again}"
