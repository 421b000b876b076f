"""The verbs of `python -m toolkit`; the only place that turns errors into exit codes."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from toolkit.cli import cluster, follow, nodes, rehearse, show
from toolkit.cli import plan as planning
from toolkit.cli.amounts import amount, count, duration
from toolkit.cli.findings import print_findings
from toolkit.cluster.base import JobState
from toolkit.config.load import Loaded, find_profile, load_config
from toolkit.errors import EXIT_DONE, EXIT_USAGE, RunError, ToolkitError
from toolkit.launch import submit
from toolkit.launch.halt import halt
from toolkit.launch.handin import carry_out
from toolkit.launch.identity import load_asked, read_config
from toolkit.launch.planning import Site, plan_over_nodes, rank_layouts, read_site
from toolkit.launch.snapshot import checkout_dir
from toolkit.log import hide_secrets
from toolkit.modes import private_files
from toolkit.monitor.sinks import sync_wandb
from toolkit.plan.report import plan_text
from toolkit.plan.search import Wish
from toolkit.rundir import RunDir

console = Console(soft_wrap=True, highlight=False, markup=False)


def main(arguments: Sequence[str]) -> int:
    """Run a verb; give the exit code."""
    hide_secrets()
    parser = _parser()
    asked, words = parser.parse_known_args(arguments)  # argparse wants all positionals in one place, people do not
    if not hasattr(asked, "settings") or any(word.startswith("-") for word in words):
        asked = parser.parse_args(arguments)  # says what is wrong
    try:
        if hasattr(asked, "settings"):
            _sort_words(asked, words, parser)
        asked.verb(asked)
    except ToolkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except OSError as error:  # what no verb foresaw: a full disk, no permission, a name that is too long
        what = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        print(f"error: {what}", file=sys.stderr)
        return EXIT_USAGE
    return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m toolkit", description="Submit training runs and look after them.")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")
    _add_submit(verbs)
    _add_plan(verbs)
    status = _add(verbs, "status", _status, "show runs, or one run: job, attempts, progress, what went wrong")
    status.add_argument("run", nargs="?", help="name of a run (default: list all)")
    _add_json(status)
    logs = _add(verbs, "logs", _logs, "print what a rank said")
    logs.add_argument("run", help="name of a run")
    logs.add_argument("--rank", type=count, default=0, help="rank (default: %(default)s)")
    logs.add_argument("--follow", action="store_true", help="go on printing until the job ends")
    cluster.add_verbs(verbs)
    nodes.add_verbs(verbs)
    stop = _add(verbs, "stop", _halt, "let the job of a run save and end; `resume` goes on")
    cancel = _add(verbs, "cancel", _halt, "end the job of a run now; it may lose the steps since its last save")
    for how, verb in (("stop", stop), ("cancel", cancel)):
        verb.set_defaults(how=how)
        verb.add_argument("run", help="name of a run")
    resume = _add(verbs, "resume", _resume, "go on with a run that stands still, on as many nodes as are free today")
    resume.add_argument("run", help="name of a run")
    _add_job_arguments(resume)
    resume.add_argument("settings", nargs="*", metavar="key.path=value", help="change a value")
    _add_submit_arguments(resume)
    config = _add(verbs, "config", _config, "print a configuration, with all layers applied")
    _add_config_arguments(config)
    config.add_argument("--name", metavar="NAME", help="name of the run")
    config.add_argument("--origin", action="store_true", help="say where each value comes from")
    _add_json(config)
    sync = _add(verbs, "sync", _sync, "send to W&B what was recorded offline")
    sync.add_argument("run", help="name of a run")
    upload = _add(verbs, "upload", _upload, "copy the directory of a run to a URL; again: what has changed")
    upload.add_argument("run", help="name of a run")
    upload.add_argument("url", help="directory of the copy (hdfs://HOST:PORT/..., or a path)")
    generate = _add(verbs, "generate", _generate, "continue a text with the newest checkpoint of a run")
    generate.add_argument("run", help="name of a run")
    generate.add_argument("--prompt", required=True, help="text to continue")
    generate.add_argument("--tokens", type=count, default=64, help="tokens to add at most (default: %(default)s)")
    generate.add_argument("--temperature", type=amount, default=0.8, help="0: the likeliest (default: %(default)s)")
    generate.add_argument("--seed", type=count, default=0, help="of the draws (default: %(default)s)")
    for verb in (status, logs, stop, cancel, resume, sync, upload, generate):
        verb.add_argument("--root", type=Path, default=Path("runs"), help="directory of runs (default: %(default)s)")
    return parser


def _add(verbs: Any, name: str, function: Any, text: str) -> argparse.ArgumentParser:
    verb: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    verb.set_defaults(verb=function)
    return verb


def _add_submit(verbs: Any) -> None:
    verb = _add(verbs, "submit", _submit, "check, freeze and submit a run; of a run that was stopped: go on with it")
    _add_config_arguments(verb)
    verb.add_argument("--name", metavar="NAME", help="name of the run (default: run.name of the configuration)")
    _add_submit_arguments(verb)


def _add_submit_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--dry-run", action="store_true", help="print plan, script and run directory; submit nothing")
    verb.add_argument(
        "--follow", action="store_true", help="show progress until the job ends; Ctrl-C leaves it running"
    )
    verb.add_argument(
        "--from-scratch", action="store_true", help="begin again at step 0 a run whose checkpoints are gone"
    )
    verb.add_argument(
        "--accept", action="append", default=[], metavar="CHECK", help="submit although this check refuses; repeatable"
    )
    rehearse.add_arguments(verb)


def _add_plan(verbs: Any) -> None:
    plan = _add(verbs, "plan", _plan, "say what a run would need and how fast it would go; submits nothing")
    _add_config_arguments(plan)
    plan.add_argument("--name", metavar="NAME", help="name of the run")
    plan.add_argument(
        "--gpu", metavar="KIND", help="kind of GPU to plan for: h100, a100-40, ... (default: the cluster's)"
    )
    plan.add_argument(
        "--deadline", type=duration, metavar="T", help="find the fewest nodes that finish in time: 36h, 5d"
    )
    plan.add_argument("--budget", type=amount, metavar="H", help="find the nodes that finish soonest for H GPU-hours")
    plan.add_argument("--plot", type=Path, metavar="FILE.svg", help="draw time and memory over numbers of nodes")
    plan.add_argument("--calibration", action="store_true", help="show what plans here are corrected by")
    _add_json(plan)


def _add_config_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", nargs="?", help="configuration (default: configs/default.yaml)")
    verb.add_argument("settings", nargs="*", metavar="key.path=value", help="change a value, e.g. optim.peak_lr=2e-4")
    _add_job_arguments(verb)


def _add_job_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--nodes", type=int, metavar="N", help="nodes of the job")
    verb.add_argument(
        "--gpus-per-node", type=int, metavar="G", help="ranks a node (default: all its GPUs; 1 where it has none)"
    )
    verb.add_argument(
        "--time", metavar="T", help="time limit of a job: 30m, 12h, 2-00:00:00 (default: the partition's maximum)"
    )
    verb.add_argument("--partition", metavar="P", help="partition (default: the cluster's)")


def _add_json(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="print JSON")


def _sort_words(asked: argparse.Namespace, words: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Tell settings (they have a `=`) from the file, wherever they stand."""
    given = [word for word in [getattr(asked, "config", None), *asked.settings, *words] if word is not None]
    asked.settings = [word for word in given if "=" in word]
    files = [word for word in given if "=" not in word]
    if len(files) > hasattr(asked, "config"):
        parser.error(f"one configuration file at most is wanted, not {', '.join(files)}")
    asked.config = files[0] if files else None


def _load(asked: argparse.Namespace) -> Loaded:
    configs_dir = checkout_dir() / "configs"
    profile = _profile()
    file = Path(asked.config) if asked.config else configs_dir / "default.yaml"
    name = [] if asked.name is None else [f"run.name={asked.name}"]
    return load_config(file, overrides=[*asked.settings, *_job_settings(asked), *name], profile=profile)


def _profile() -> Path | None:
    return find_profile(os.environ, home=Path.home(), profiles_dir=checkout_dir() / "configs" / "clusters")


def _job_settings(asked: argparse.Namespace) -> list[str]:
    pairs = {
        "cluster.nodes": asked.nodes,
        "cluster.gpus_per_node": asked.gpus_per_node,
        "cluster.time_limit": asked.time,
        "cluster.partition": asked.partition,
        "cluster.gpu_type": getattr(asked, "gpu", None),
    }
    return [f"{key}={value}" for key, value in pairs.items() if value is not None]


def _submit(asked: argparse.Namespace) -> None:
    _hand_in(_prepare(_load(asked), asked), asked)


def _prepare(loaded: Loaded, asked: argparse.Namespace) -> submit.Request:
    num_rehearsals = int(asked.rehearse and asked.on_cluster)
    return submit.prepare_request(
        loaded, _site(), accept=asked.accept, num_rehearsals=num_rehearsals, from_scratch=asked.from_scratch
    )


def _resume(asked: argparse.Namespace) -> None:
    run_dir = _find(asked)
    settings = [*asked.settings, *_job_settings(asked)]
    loaded = load_asked(run_dir, settings)
    _hand_in(_prepare(loaded, asked), asked)


def _hand_in(request: submit.Request, asked: argparse.Namespace) -> None:
    if request.cluster.name == "local":
        why = "no Slurm here: " if request.plan.cfg.cluster.scheduler == "auto" else ""
        console.print(f"{why}{request.spec.nodes} nodes are emulated on this machine")
    console.print(plan_text(request.plan), end="")
    print_findings(request.findings, console)
    if request.original is not None:
        name = request.run_dir.name
        console.print(f"copy       of {request.original}: {name} becomes a run of its own, also at W&B", markup=False)
    for node, reason in request.left_out.items():
        console.print(f"left out   {node}: {reason}", markup=False)
    if request.preparation is not None:
        show.print_preparation(request.preparation, request.cluster, console, with_scripts=asked.dry_run)
    with rehearse.rehearsed(request, asked, console) as rehearsed:
        job_id = None if asked.dry_run else carry_out(rehearsed)
    if job_id is None:
        console.print(f"\n{request.run_dir.script_path} would be:\n\n{request.script}")
        console.print(f"run directory {request.run_dir.root}; nothing was submitted")
        return
    console.print(f"run {request.run_dir.name}: job {job_id} submitted, directory {request.run_dir.root}")
    if asked.follow:
        follow.follow(request.run_dir, console)
    else:
        console.print(f"follow it: python -m toolkit logs {request.run_dir.name} --follow")


def _site() -> Site:
    profile = _profile()
    return read_site(profile.parent if profile is not None else Path.home() / ".config" / "toolkit")


def _plan(asked: argparse.Namespace) -> None:
    site = _site()
    if asked.calibration:
        if asked.json:
            show.print_json(planning.calibration_dict(site.measurements, path=site.calibration_path))
        else:
            planning.print_calibration(site.measurements, console, path=site.calibration_path)
        return
    cfg = submit.fill_for_plan(_load(asked))
    wishes = asked.deadline is not None or asked.budget is not None
    wish = Wish(deadline_s=asked.deadline, budget_gpu_hours=asked.budget) if wishes else None
    plans = rank_layouts(cfg, site, wish=wish)
    if asked.json:
        show.print_json(planning.plans_dict(plans))
    else:
        planning.print_plans(plans, console)
    if asked.plot is not None:
        over_nodes = plan_over_nodes(plans[0].cfg if wish else cfg, site)
        planning.write_figure(over_nodes, asked.plot, title=cfg.run.name)
        if not asked.json:
            console.print(f"the best on other numbers of nodes, drawn in {asked.plot}:", markup=False)
            planning.print_nodes(over_nodes, console)


def _status(asked: argparse.Namespace) -> None:
    if asked.run is None:
        show.print_runs(asked.root, console, as_json=asked.json)
    else:
        show.print_run(_find(asked), console, as_json=asked.json)


def _logs(asked: argparse.Namespace) -> None:
    follow.print_log(_find(asked), rank=asked.rank, follow=asked.follow)


@private_files()
def _halt(asked: argparse.Namespace) -> None:
    run_dir = _find(asked)
    done = halt(run_dir, how=asked.how)
    saves = asked.how == "stop" and done.state is JobState.RUNNING
    print(f"run {run_dir.name}: job {done.job_id} {'saves and ends' if saves else 'is being cancelled'}")
    if done.ended:
        print(f"cancelled with it, since it alone waited for them: {', '.join(done.ended)}")
    if done.left:
        print(f"its data is still being made by {', '.join(done.left)}")
    print(f"go on with it: python -m toolkit resume {run_dir.name}")


def _config(asked: argparse.Namespace) -> None:
    show.print_config(_load(asked), console, origin=asked.origin, as_json=asked.json)


@private_files()
def _sync(asked: argparse.Namespace) -> None:
    sent = sync_wandb(_find(asked))
    print(f"sent {len(sent)} attempts: {', '.join(sent)}" if sent else "nothing to send")


def _upload(asked: argparse.Namespace) -> None:
    run_dir = _find(asked)
    names = show.upload(run_dir, asked.url, console)
    print(f"run {run_dir.name}: {len(names)} files and all complete checkpoints are at {asked.url}")


def _generate(asked: argparse.Namespace) -> None:
    # deferred: the only verb that needs torch
    from toolkit.train.generate import generate  # noqa: PLC0415

    run_dir = _find(asked)
    cfg = read_config(run_dir)
    checkpoints = run_dir.find_checkpoints(cfg.checkpoint.dir)
    options = {"num_tokens": asked.tokens, "temperature": asked.temperature, "seed": asked.seed}
    print(generate(cfg, checkpoints, prompt=asked.prompt, **options))


def _find(asked: argparse.Namespace) -> RunDir:
    run_dir = RunDir((asked.root / asked.run).absolute())
    if not show.is_run(run_dir):
        known = ", ".join(run.name for run in show.list_runs(asked.root)) or "none"
        raise RunError(f"there is no run {asked.run!r} in {asked.root}\n  runs there: {known}\n  see --root")
    return run_dir
