"""Versions of what every rank runs on, told without importing it."""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from toolkit.cluster.view import shorten_nodes
from toolkit.errors import Problem, RefusedError

PACKAGES = ("torch", "deepspeed")


def read_versions() -> dict[str, str | None]:
    """Tell the versions of this process; None: it is not installed."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def say_versions(versions: Mapping[str, str | None]) -> str:
    """Write them for people."""
    return ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())


def refuse_differing(by_node: Mapping[str, str]) -> None:
    """Compare what the ranks of an attempt run on.

    Args:
        by_node: what `say_versions` says on each node.

    Raises:
        RefusedError: nodes differ; the few are named beside the many.
    """
    nodes_of: dict[str, list[str]] = {}
    for node, text in by_node.items():
        nodes_of.setdefault(text, []).append(node)
    if len(nodes_of) > 1:
        told = sorted(nodes_of.items(), key=lambda pair: len(pair[1]))
        what = "; ".join(f"{shorten_nodes(nodes)} has {text}" for text, nodes in told)
        rule = "all ranks of a run have the same versions"
        remedy = "mend the environment of those nodes, or leave them out with cluster.exclude"
        raise RefusedError([Problem(f"nodes differ: {what}", rule, remedy)])
