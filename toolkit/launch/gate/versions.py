"""Versions of what every rank runs on, told without importing it."""

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from toolkit.cluster.hostlist import shorten_nodes

PACKAGES = ("torch", "deepspeed")


def read_versions() -> dict[str, str | None]:
    """Tell the versions of this process; None: it is not installed."""
    found: dict[str, str | None] = {"python": ".".join(map(str, sys.version_info[:2]))}  # patches do not matter
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def say_versions(versions: Mapping[str, str | None]) -> str:
    """Write them for people."""
    return ", ".join(f"{name} {number or 'missing'}" for name, number in versions.items())


def find_odd(by_node: Mapping[str, str]) -> dict[str, str]:
    """Find the nodes of an attempt that run on something else than most of them.

    Args:
        by_node: what `say_versions` says on each node.

    Returns:
        Node -> what it has and what the others have; empty: all have the same.
    """
    nodes_of: dict[str, list[str]] = {}
    for node, text in by_node.items():
        nodes_of.setdefault(text, []).append(node)
    most = max(nodes_of, key=lambda text: len(nodes_of[text]))
    others = shorten_nodes(nodes_of[most])
    return {node: f"it has {text}, {others} {most}" for node, text in by_node.items() if text != most}
