"""Fit the planner's coefficients to measured runs and write toolkit/plan/fitted.py.

Each coefficient has a prior: the value that its meaning suggests, and how far from it it may well be. The fit is
the one that is likeliest given both (Gauss-Newton on logarithms, large misses counted linearly). Sources weigh
alike: many rows of one README count as 12. Time and memory are fitted apart.
"""

import argparse
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from planner_rows import Case, grouped, read_layouts, read_published

from toolkit.plan import coefficients
from toolkit.plan.coefficients import Coefficients
from toolkit.plan.layout import Conditions
from toolkit.plan.memory import stage_memory
from toolkit.plan.speed import step_time

# name: (value its meaning suggests, standard deviation of its logarithm)
TIME_PRIORS: dict[str, tuple[float, float]] = {
    "matmul": (0.88, 0.08),  # a step's products are smaller than those of the benchmark
    "small": (0.3, 0.7),  # most of a tiled product's traffic hides
    "attention": (1.0, 0.12),
    "flash1": (0.55, 0.2),  # Dao 2023: the second is about 1.7 to 2 times as fast
    "attention_ramp": (500.0, 0.6),  # Dao 2023, figure 5: half the speed near 512
    "unfused": (13.0, 0.3),  # products write and read, fused softmax and dropout read and write: 2 bytes each
    "elementwise": (1.3, 0.5),  # casts and copies beside what is counted
    "fused": (0.6, 0.3),
    "loss": (24.0, 0.5),  # cast, softmax and gradient in fp32
    "loss_split": (48.0, 0.3),  # cast, maximum, difference, exponential, sum, division, gradient: one pass each
    "fp8": (1.5, 0.2),
    "link": (0.55, 0.2),
    "wire": (0.6, 0.3),
    "wire_decay": (0.2, 0.7),
    "overlap": (1.5, 0.4),
    "sync": (0.8, 0.5),
    "peer": (0.3, 1.0),
    "micro_batch_s": (1e-3, 1.0),
    "step_s": (1e-2, 1.0),
}
MEMORY_PRIORS: dict[str, tuple[float, float]] = {
    "activations": (1.0, 0.1),
    "activations_growth": (0.3, 1.0),
    "in_flight": (50e3, 1.0),
    "logits": (10.0, 0.3),  # 16-bit logits, their fp32 copy and its gradient
    "fixed_gib": (1.5, 0.5),
}
_TIME_SIGMA, _MEMORY_SIGMA = 0.08, 0.04  # what a good model misses by, of the logarithm
_FULL = 12  # rows of one source and device that count in full


def main() -> None:
    """Fit on all rows that are given, print what moved, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="rows of published runs")
    parser.add_argument("--layouts", type=Path, required=True, help="rows of layouts on nodes of 8 H100")
    parser.add_argument("--out", type=Path, help="file to write (default: print only)")
    asked = parser.parse_args()
    published, layouts = read_published(asked.published)[0], read_layouts(asked.layouts)[0]
    found = fit_all([*published, *layouts])
    for name, (value, _) in {**TIME_PRIORS, **MEMORY_PRIORS}.items():
        print(f"{name:<20} {getattr(found, name):>12.4g}   prior {value:g}")
    if asked.out:
        rows = sum(timed(case) for case in [*published, *layouts])
        asked.out.write_text(render(found, rows=rows), encoding="utf-8")


def fit_all(cases: Sequence[Case]) -> Coefficients:
    """Fit time and memory."""
    return fit_memory(cases, fit_time(cases, start()))


def start() -> Coefficients:
    """Give every coefficient the value its meaning suggests."""
    return Coefficients(**{name: value for name, (value, _) in {**TIME_PRIORS, **MEMORY_PRIORS}.items()})


def timed(case: Case) -> bool:
    """Say whether a case counts for the fit of time."""
    return case.step_s is not None and not case.is_outlier


def measured(case: Case) -> bool:
    """Say whether a case counts for the fit of memory: nanotron's layouts, whose figure is one stage's."""
    return case.memory_gib is not None and case.source.startswith("nanotron")


def predict_s(case: Case, fitted: Coefficients) -> float:
    """Predict the step of a case."""
    on = Conditions(hardware=case.hardware, stack=case.stack, fitted=fitted)
    return step_time(case.shape, case.layout, case.shares, on=on).total_s


def predict_gib(case: Case, fitted: Coefficients) -> float:
    """Predict what the case's source printed: the first stage of nanotron (its rank 0), else the fullest.

    The allocator gives caches back where the device is full, so a peak ends short of it.
    """
    stages = stage_memory(case.shape, case.layout, case.shares, stack=case.stack, fitted=fitted)
    shown = stages[0] if case.source.startswith("nanotron") else max(stages, key=lambda stage: stage.total_bytes)
    return min(shown.total_bytes / 2**30, 0.965 * case.device_gib if case.device_gib else math.inf)


def fit_time(cases: Sequence[Case], first: Coefficients) -> Coefficients:
    """Fit what time depends on."""
    chosen = [case for case in cases if timed(case)]
    return _fit(chosen, first, TIME_PRIORS, predict_s, [case.step_s or 0.0 for case in chosen], sigma=_TIME_SIGMA)


def fit_memory(cases: Sequence[Case], first: Coefficients) -> Coefficients:
    """Fit what memory depends on."""
    chosen = [case for case in cases if measured(case)]
    if not chosen:
        return first
    figures = [case.memory_gib or 0.0 for case in chosen]
    return _fit(chosen, first, MEMORY_PRIORS, predict_gib, figures, sigma=_MEMORY_SIGMA)


def _fit(
    cases: Sequence[Case],
    first: Coefficients,
    priors: Mapping[str, tuple[float, float]],
    predict: Callable[[Case, Coefficients], float],
    figures: Sequence[float],
    *,
    sigma: float,
) -> Coefficients:
    names = list(priors)
    middle = np.array([math.log(priors[name][0]) for name in names])
    spread = np.array([priors[name][1] for name in names])
    goal = np.log(np.array(figures))
    weights = np.sqrt(_weights(cases))

    def at(x: np.ndarray) -> Coefficients:
        return replace(first, **{name: float(value) for name, value in zip(names, np.exp(middle + x), strict=True)})

    def misses(x: np.ndarray) -> np.ndarray:
        fitted = at(x)
        miss = (np.log([predict(case, fitted) for case in cases]) - goal) / sigma
        huge = np.maximum(np.abs(miss), 1e-9)
        bent = np.where(huge > 2, np.sign(miss) * np.sqrt(np.maximum(4 * huge - 4, 0)), miss)  # Huber
        return np.concatenate([bent * weights, x / spread])

    return at(_minimize(misses, np.zeros(len(names))))


def _minimize(misses: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Find the least sum of squares.

    Source: Marquardt 1963, doi:10.1137/0111030.
    """
    damping, now = 1e-2, misses(x)
    for _ in range(60):
        slopes = np.stack([(misses(x + 1e-4 * unit) - now) / 1e-4 for unit in np.eye(len(x))], axis=1)
        for _ in range(8):
            step = np.linalg.solve(slopes.T @ slopes + damping * np.eye(len(x)), -slopes.T @ now)
            tried = misses(x + np.clip(step, -0.5, 0.5))
            if tried @ tried < now @ now:
                break
            damping *= 4
        else:
            return x
        gain = now @ now - tried @ tried
        x, now, damping = x + np.clip(step, -0.5, 0.5), tried, max(damping / 4, 1e-6)
        if gain < 1e-3:
            return x
    return x


def _weights(cases: Sequence[Case]) -> np.ndarray:
    counts = {key: len(group) for key, group in grouped(cases, _kin)}
    return np.array([min(1.0, _FULL / counts[_kin(case)]) ** 0.5 for case in cases])


def _kin(case: Case) -> tuple[str, str, int]:
    return case.source, case.gpu, case.nodes if case.source.startswith("nanotron") else 0


def render(found: Coefficients, *, rows: int) -> str:
    """Write the module of values, each with its meaning, in the order of the class."""
    docs = _meanings()
    lines = [
        f'"""Values of the coefficients, written by benchmarks/fit_planner.py from {rows} measured steps.',
        "",
        "Do not edit: fit again. `prior` is what the meaning alone suggests, with a factor of doubt.",
        '"""',
        "",
        "from toolkit.plan.coefficients import Coefficients",
        "",
        "FITTED = Coefficients(",
    ]
    priors = {**TIME_PRIORS, **MEMORY_PRIORS}
    for field in fields(Coefficients):
        value, doubt = priors[field.name]
        lines += textwrap.wrap(docs[field.name], 112, initial_indent="    # ", subsequent_indent="    # ")
        lines.append(
            f"    {field.name}={_plain(getattr(found, field.name))},  # prior {value:g} x/ {math.exp(doubt):.2f}"
        )
    return "\n".join([*lines, ")", ""])


def _plain(value: float) -> str:
    return f"{float(f'{value:.4g}')!r}"


def _meanings() -> dict[str, str]:
    """Read the string under each field of the class."""
    text = inspect.getsource(coefficients.Coefficients)
    pairs = re.findall(r'^    (\w+): float\n    """(.*?)"""', text, re.MULTILINE | re.DOTALL)
    return {name: " ".join(words.split()) for name, words in pairs}


if __name__ == "__main__":
    main()
