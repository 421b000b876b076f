"""Finds secrets in a configuration, which is written to scripts, logs, run directories and W&B, and read from there."""

from collections.abc import Iterator, Mapping
from typing import Any

from toolkit.config.schema import RunConfig, to_dict
from toolkit.redact import is_secret, redact

_SHOWN = 160
_IN_URL = (
    "leave it out of the URL: `export FSSPEC_FTP_PASSWORD=...` (FSSPEC_<PROTOCOL>_<OPTION>) in the shell that submits,"
    " ~/.config/fsspec/*.json, the tool's own keys (AWS_*, HF_*), or Kerberos"
)
_ELSEWHERE = (
    "export it in the shell that submits and name it in cluster.pass_env, or keep it in the tool's own file"
    " (wandb login); a line of cluster.setup may read a file: export NAME=$(cat FILE)"
)


def find_secrets(cfg: RunConfig) -> Iterator[tuple[str, str, str]]:
    """Give of every value that holds a secret its key, what is there without the secret, and where it belongs."""
    for section, fields in to_dict(cfg).items():
        for field, value in fields.items():
            key = f"{section}.{field}"
            for name, text in _texts(value, name=key):
                hidden = redact(text)
                if is_secret(name.rpartition(".")[2], text):
                    yield key, f"{redact(name)} is a secret", _ELSEWHERE
                elif hidden != text:
                    shown = hidden if len(hidden) <= _SHOWN else f"{hidden[:_SHOWN]}..."
                    yield key, f"{redact(name)} holds a secret: {shown!r}", _IN_URL if "://" in text else _ELSEWHERE


def _texts(value: Any, *, name: str) -> Iterator[tuple[str, str]]:
    """Give every text in a value, keys of mappings among them, with the name that leads to it."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield name, str(key)
            yield from _texts(inner, name=f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner, name=name)
