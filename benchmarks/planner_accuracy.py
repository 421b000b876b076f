"""Score the planner against measured runs, without fitting on them.

Any files of these columns will do; a row that lacks what a prediction needs is left out and counted, one that lacks
the batch or the vocabulary is predicted with an assumed one and counted too. The coefficients are the committed ones.
With --held-out they are fitted anew, for each source to all the other sources, and for layouts to small numbers of
nodes, and only what was left out is scored. The form of the model was chosen with all rows of the two files it is
fitted to in view, though: only a file that nobody has seen tells what the planner is worth.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fit_planner import fit_memory, fit_time, measured, predict_gib, predict_s, start, timed
from planner_rows import OUTLIER_RULE, UNSTEADY_RULE, Case, grouped, read_layouts, read_published

from toolkit.plan.calibration import SPREAD
from toolkit.plan.coefficients import Coefficients
from toolkit.plan.fitted import FITTED
from toolkit.plan.memory import stage_memory
from toolkit.plan.proposal import REFUSE_ABOVE, WARN_ABOVE

_DRAWS = 1000  # of the bootstrap
_TRAIN_NODES, _MEMORY_TRAIN_NODES = 4, 2

Errors = Sequence[tuple[Case, float]]


def main() -> None:
    """Score the files that are given and print tables; with --json all figures on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, metavar="FILE", help="published throughputs of many systems (CSV)")
    parser.add_argument("--layouts", type=Path, metavar="FILE", help="layouts on nodes of 8 H100 (CSV)")
    parser.add_argument("--held-out", action="store_true", help="fit anew without the rows that are scored")
    parser.add_argument("--rows", action="store_true", help="print the error of every row")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    if asked.published is None and asked.layouts is None:
        parser.error("name a file: --published FILE, --layouts FILE or both")
    published, layouts = _read(asked.published, read_published), _read(asked.layouts, read_layouts)
    figures: dict[str, Any] = {}
    if published:
        figures |= score_published(published, layouts, held_out=asked.held_out, rows=asked.rows)
    if layouts:
        figures |= score_layouts(published, layouts, held_out=asked.held_out, rows=asked.rows)
    if asked.json:
        print(json.dumps(figures))


def _read(path: Path | None, read: Callable[[Path], tuple[list[Case], dict[str, int]]]) -> list[Case]:
    if path is None:
        return []
    cases, left_out = read(path)
    assumed = sum(bool(case.assumed) for case in cases)
    print(f"{path.name}: {len(cases)} rows; of {assumed} a batch or vocabulary had to be assumed")
    for reason, count in left_out.items():
        print(f"  left out {count}: {reason}")
    return cases


def score_published(
    published: Sequence[Case], layouts: Sequence[Case], *, held_out: bool, rows: bool
) -> dict[str, Any]:
    """Score step times of published runs, by source and device."""
    scored = [case for case in published if timed(case)]
    figures: dict[str, Any] = {}
    print("\nSTEP TIME, published runs, coefficients as committed")
    errors = [(case, predict_s(case, FITTED) / (case.step_s or 1) - 1) for case in scored]
    figures["published_step"] = print_table(errors, lambda case: f"{case.source} {case.gpu}", rows=rows)
    if held_out:
        print("\nSTEP TIME, published runs, each source predicted by coefficients fitted to all others")
        errors = leave_one_out(scored, [case for case in layouts if timed(case)])
        figures["published_step_held_out"] = print_table(errors, lambda case: f"{case.source} {case.gpu}", rows=rows)
    heavy = [case for case in published if case.memory_gib]
    if heavy:
        print("\nMEMORY, published runs, coefficients as committed (no goal: sources measure different things)")
        errors = [(case, predict_gib(case, FITTED) / (case.memory_gib or 1) - 1) for case in heavy]
        figures["published_memory"] = print_table(errors, lambda case: case.source, rows=False)
    return figures


def leave_one_out(scored: Sequence[Case], others: Sequence[Case]) -> list[tuple[Case, float]]:
    """Predict each document's rows by a fit to all other documents (and `others`)."""
    errors = []
    for source, group in grouped(scored, lambda case: case.source):
        fitted = fit_time([*(case for case in scored if case.source != source), *others], start())
        errors += [(case, predict_s(case, fitted) / (case.step_s or 1) - 1) for case in group]
    return errors


def score_layouts(published: Sequence[Case], layouts: Sequence[Case], *, held_out: bool, rows: bool) -> dict[str, Any]:
    """Score time, memory, verdicts and choices of layouts, by nodes."""
    scored = [case for case in layouts if timed(case)]
    piped = [case for case in layouts if case.step_s is not None and case.layout.stages > 1]
    outliers = sum(case.is_outlier for case in piped)
    print(f"\nOutlier rule: {OUTLIER_RULE}.\n  {outliers} of {len(piped)} runs with pp > 1 are left out of step times.")
    fits = {"as committed": (FITTED, FITTED)}
    if held_out:
        few = [case for case in scored if case.nodes <= _TRAIN_NODES]
        time = fit_time([*few, *(case for case in published if timed(case))], start())
        memory = fit_memory([case for case in layouts if case.nodes <= _MEMORY_TRAIN_NODES], start())
        fits[f"fitted on up to {_TRAIN_NODES} nodes (time) and {_MEMORY_TRAIN_NODES} nodes (memory)"] = time, memory
    figures: dict[str, Any] = {"outliers": outliers}
    for name, (time, memory) in fits.items():
        suffix = "" if time is FITTED else "_held_out"
        print(f"\nSTEP TIME, layouts, coefficients {name}")
        errors = [(case, predict_s(case, time) / (case.step_s or 1) - 1) for case in scored]
        figures["layouts_step" + suffix] = print_table(errors, _by_nodes, rows=rows)
        print(f"\nMEMORY, layouts, coefficients {name}")
        heavy = [case for case in layouts if measured(case)]
        errors = [(case, predict_gib(case, memory) / (case.memory_gib or 1) - 1) for case in heavy]
        figures["layouts_memory" + suffix] = print_table(errors, _by_nodes, rows=rows)
        large = [error for case, error in errors if case.nodes > _MEMORY_TRAIN_NODES]
        if large:
            name_of_large = f"more than {_MEMORY_TRAIN_NODES} nodes"
            figures["layouts_memory" + suffix][name_of_large] = _print_line(name_of_large, large)
        figures["verdicts" + suffix] = print_verdicts(layouts, memory, name)
        figures["choices" + suffix] = print_choices(layouts, time, memory, name)
    return figures


def _by_nodes(case: Case) -> str:
    return f"{case.nodes:>3} nodes"


def print_table(errors: Errors, key: Callable[[Case], str], *, rows: bool) -> dict[str, Any]:
    """Print errors by group, then of all; give the figures."""
    print(f"  {'':<46} {'rows':>4} {'median':>7} {'(95 %)':>14} {'mean':>7} {'(95 %)':>14} {'p90':>6} "
          f"{'bias':>7} {'within 15 %':>11}")  # fmt: skip
    figures = {}
    for name, group in sorted(grouped(list(errors), lambda pair: key(pair[0])), key=lambda item: item[0]):
        figures[name] = _print_line(name, [error for _, error in group])
        for case, error in sorted(group, key=lambda pair: -abs(pair[1])) if rows else ():
            print(f"      {error:+7.1%}  {_words(case)}")
    figures["all"] = _print_line("all", [error for _, error in errors])
    return figures


def _words(case: Case) -> str:
    layout = case.layout
    assumed = f" (assumed: {', '.join(case.assumed)})" if case.assumed else ""
    return (
        f"{case.label} seq {case.shape.seq_len}, {case.nodes} nodes, {layout.stages} x {layout.replicas}, ZeRO "
        f"{layout.zero_stage}, {layout.num_micro_batches} x {layout.micro_batch}, {layout.recompute}{assumed}"
    )


def _print_line(name: str, errors: Sequence[float]) -> dict[str, float]:
    found = summarize(errors)
    print(f"  {name[:46]:<46} {found['rows']:>4.0f} {found['median']:>7.1%} "
          f"{found['median_low']:>6.1%}-{found['median_high']:<6.1%} {found['mean']:>8.1%} "
          f"{found['mean_low']:>6.1%}-{found['mean_high']:<6.1%} {found['p90']:>7.1%} {found['bias']:>+7.1%} "
          f"{found['within']:>11.0%}")  # fmt: skip
    return found


def summarize(errors: Sequence[float]) -> dict[str, float]:
    """Give median, mean and 90th percentile of absolute errors, with bootstrap intervals, and the mean signed one."""
    size = np.abs(np.array(errors))
    draws = np.random.default_rng([len(errors), 7]).integers(len(size), size=(_DRAWS, len(size)))
    medians, means = np.median(size[draws], axis=1), size[draws].mean(axis=1)
    return {
        "rows": float(len(size)),
        "median": float(np.median(size)),
        "median_low": float(np.quantile(medians, 0.025)),
        "median_high": float(np.quantile(medians, 0.975)),
        "mean": float(size.mean()),
        "mean_low": float(np.quantile(means, 0.025)),
        "mean_high": float(np.quantile(means, 0.975)),
        "p90": float(np.quantile(size, 0.9)),
        "bias": float(np.mean(errors)),
        "within": float(np.mean(size <= SPREAD)),
    }


def memory_part(case: Case, fitted: Coefficients) -> float:
    """Give the part of the device's memory that the fullest stage is predicted to take."""
    stages = stage_memory(case.shape, case.layout, case.shares, stack=case.stack, fitted=fitted)
    return max(stage.total_bytes for stage in stages) / (case.hardware.memory_bytes or 1)


def verdict(case: Case, fitted: Coefficients) -> str:
    """Say fits, grey or does not fit; a split that leaves stages without weights does not start."""
    part = memory_part(case, fitted)
    if not case.can_split or part > REFUSE_ABOVE:
        return "does not fit"
    return "grey" if part > WARN_ABOVE or case.is_unsteady else "fits"


def print_verdicts(layouts: Sequence[Case], fitted: Coefficients, name: str) -> dict[str, float]:
    """Print what was said and what happened, of all rows."""
    said = [(verdict(case, fitted), case.ran) for case in layouts]
    print(f"\nVERDICT, all {len(layouts)} layouts (grey: {WARN_ABOVE:.0%} to {REFUSE_ABOVE:.0%}), coefficients {name}")
    print(f"  {UNSTEADY_RULE}")
    figures: dict[str, float] = {}
    for word in ("fits", "grey", "does not fit"):
        ran, failed = (sum(1 for pair in said if pair == (word, did)) for did in (True, False))
        figures |= {f"{word}, ran": ran, f"{word}, failed": failed}
        print(f"  {word:<13} ran {ran:>4}   failed {failed:>4}")
    wrong = {"fits but failed": ("fits", False), "does not fit but ran": ("does not fit", True)}
    for words, pair in wrong.items():
        count = said.count(pair)
        of_said = max(1, sum(word == pair[0] for word, _ in said))
        figures[words] = count / len(said)
        print(
            f"  {words}: {count} = {count / len(said):.1%} of all rows, {count / of_said:.1%} of rows with that verdict"
        )
    return figures


def print_choices(layouts: Sequence[Case], time: Coefficients, memory: Coefficients, name: str) -> dict[str, Any]:
    """Print, per model and nodes, how much longer than the best measured layout the chosen one takes."""
    print(f"\nCHOICE, layout predicted fastest of those that were tried and fit, coefficients {name}")
    losses = []
    for (model, nodes), group in grouped(layouts, lambda case: (case.label.split()[0], case.nodes)):
        tried = [case for case in group if case.is_consistent]
        done = [case.step_s for case in tried if case.step_s is not None]
        fitting = [case for case in tried if verdict(case, memory) == "fits"]
        if not done or not fitting:
            continue
        chosen = min(fitting, key=lambda case: predict_s(case, time))
        loss = (chosen.step_s or float("inf")) / min(done) - 1
        losses.append(loss)
        words = "did not run" if chosen.step_s is None else f"+{loss:.1%}"
        print(f"  {model:<6} {nodes:>3} nodes  {words:<11} {chosen.label}")
    figures = {"median": float(np.median(losses)), "p75": float(np.quantile(losses, 0.75)), "cases": len(losses)}
    print(f"  median +{figures['median']:.1%}, p75 +{figures['p75']:.1%} of {len(losses)}")
    return figures


if __name__ == "__main__":
    main()
