"""Time and memory over the number of nodes, as an SVG picture: drawn here, no library is needed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from toolkit.plan.proposal import REFUSE_ABOVE, WARN_ABOVE, Plan

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP, _GAP = 760, 220, 80, 30, 46, 64
_BLUE, _RED, _GREY, _PALE = "#1f5fa8", "#b03030", "#666666", "#d8e4f2"


@dataclass(frozen=True, slots=True)
class _Panel:
    """A frame with logarithmic axes."""

    top: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        part = (math.log(value) - math.log(self.x_low)) / (math.log(self.x_high) - math.log(self.x_low))
        return _LEFT + part * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        part = (math.log(value) - math.log(self.y_low)) / (math.log(self.y_high) - math.log(self.y_low))
        return self.top + _PANEL * (1 - part)


def draw_plans(plans: Mapping[int, Plan], *, title: str) -> str:
    """Draw days of the run (with their interval) and memory of the fullest stage over nodes.

    Args:
        plans: the best plan for each number of nodes; at least one.
        title: what is above the picture.
    """
    assert plans, "there is nothing to draw"
    nodes = sorted(plans)
    days = [plans[n].speed.run_s / 86400 for n in nodes]
    spread = plans[nodes[0]].speed.spread
    limit = (plans[nodes[0]].hardware.memory_bytes or 0) / 2**30
    room = [plans[n].fullest_bytes / 2**30 for n in nodes]
    x_low, x_high = nodes[0] / 1.15, nodes[-1] * 1.15
    time = _Panel(_TOP, x_low, x_high, min(days) * (1 - spread) / 1.2, max(days) * (1 + spread) * 1.2)
    memory = _Panel(_TOP + _PANEL + _GAP, x_low, x_high, min(room) / 1.4, max([*room, limit]) * 1.25)
    body = [
        _text(_WIDTH / 2, 24, title, size=15, anchor="middle"),
        *_axes(time, nodes, "days", lambda value: f"{value:.3g}"),
        *_axes(memory, nodes, "GiB on the fullest stage", lambda value: f"{value:.3g}"),
        _band(time, nodes, [d * (1 - spread) for d in days], [d * (1 + spread) for d in days]),
        _curve(time, nodes, days),
        *(_mark(time, n, d, _words(plans[n])) for n, d in zip(nodes, days, strict=True)),
        _curve(memory, nodes, room),
        *(_mark(memory, n, r, _words(plans[n])) for n, r in zip(nodes, room, strict=True)),
        *(_limits(memory, limit) if limit else ()),
        _text(_WIDTH / 2, _TOP + 2 * _PANEL + _GAP + 40, "nodes", anchor="middle"),
    ]
    height = _TOP + 2 * _PANEL + _GAP + 54
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">'
    )
    return "\n".join([head, f'<rect width="{_WIDTH}" height="{height}" fill="white"/>', *body, "</svg>", ""])


def _words(plan: Plan) -> str:
    layout, spread = plan.layout, plan.speed.spread
    days = plan.speed.run_s / 86400
    return (
        f"{plan.cfg.cluster.nodes} nodes: {layout.stages} x {layout.replicas}, ZeRO {layout.zero_stage}, micro-batch "
        f"{layout.micro_batch}{', recompute' if layout.recompute == 'full' else ''}; {days * (1 - spread):.3g} to "
        f"{days * (1 + spread):.3g} days, {plan.speed.gpu_hours:,.0f} GPU-hours, MFU {plan.speed.mfu:.0%}"
    )


def _text(x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", color: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{color}">{escape(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, *, color: str, dash: str = "") -> str:
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"{dashed}/>'


def _axes(panel: _Panel, nodes: Sequence[int], words: str, write: Callable[[float], str]) -> list[str]:
    bottom, right = panel.top + _PANEL, _WIDTH - _RIGHT
    drawn = [
        f'<rect x="{_LEFT}" y="{panel.top}" width="{right - _LEFT}" height="{_PANEL}" fill="none" stroke="{_GREY}"/>',
        _text(_LEFT, panel.top - 6, words),
    ]
    for value in _ticks(panel.y_low, panel.y_high):
        y = panel.y(value)
        drawn += [_line(_LEFT, y, right, y, color="#eeeeee"), _text(_LEFT - 6, y + 4, write(value), anchor="end")]
    shown = -math.inf
    for count in nodes:
        x = panel.x(count)
        if x - shown >= 26:
            drawn += [_line(x, bottom, x, bottom + 4, color=_GREY), _text(x, bottom + 17, str(count), anchor="middle")]
            shown = x
    return drawn


def _ticks(low: float, high: float) -> list[float]:
    """Give round numbers of a logarithmic axis: 1, 2 and 5 times powers of ten; where they are few, halves of them."""
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(n / 10 for n in range(10, 100))):
        found = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(found) >= 3:
            return found[:: max(1, len(found) // 8)]
    return [low, high]


def _points(panel: _Panel, nodes: Sequence[int], values: Sequence[float]) -> list[str]:
    return [f"{panel.x(n):.1f},{panel.y(value):.1f}" for n, value in zip(nodes, values, strict=True)]


def _curve(panel: _Panel, nodes: Sequence[int], values: Sequence[float]) -> str:
    points = " ".join(_points(panel, nodes, values))
    return f'<polyline points="{points}" fill="none" stroke="{_BLUE}" stroke-width="2"/>'


def _band(panel: _Panel, nodes: Sequence[int], lows: Sequence[float], highs: Sequence[float]) -> str:
    around = [*_points(panel, nodes, highs), *reversed(_points(panel, nodes, lows))]
    return f'<polygon points="{" ".join(around)}" fill="{_PALE}"/>'


def _mark(panel: _Panel, nodes: int, value: float, words: str) -> str:
    return (
        f'<circle cx="{panel.x(nodes):.1f}" cy="{panel.y(value):.1f}" r="3.5" fill="{_BLUE}">'
        f"<title>{escape(words)}</title></circle>"
    )


def _limits(panel: _Panel, limit: float) -> list[str]:
    drawn = []
    for part, words in ((1.0, "device"), (REFUSE_ABOVE, "refused above"), (WARN_ABOVE, "tight above")):
        y = panel.y(limit * part)
        drawn.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, color=_RED, dash="4 3"))
        if part != REFUSE_ABOVE:
            up = part == 1.0
            drawn.append(_text(_WIDTH - _RIGHT - 4, y + (-4 if up else 13), words, size=11, anchor="end", color=_RED))
    return drawn
