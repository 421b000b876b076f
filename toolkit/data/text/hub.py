"""Hugging Face datasets as rows of text: the one door to the `datasets` library."""

from typing import Any

from toolkit.errors import DataError

PREFIX = "datasets:"


def open_rows(name: str, *, column: str) -> Any:
    """Load `datasets:NAME[:CONFIG[:SPLIT]]`, reduced to one column; a table of rows that slices.

    Raises:
        DataError: it cannot be loaded, or has no such column.
    """
    import datasets  # deferred: costs 1.3 s and only this source needs it  # noqa: PLC0415

    path, _, rest = name.removeprefix(PREFIX).partition(":")
    config, _, split = rest.partition(":")
    try:
        rows = datasets.load_dataset(path, config or None, split=split or "train")
    except Exception as error:  # the library raises of everything
        raise DataError(
            f"{name} cannot be loaded: {error}\n  check the name; compute nodes may have no network"
        ) from error
    if column not in rows.column_names:
        raise DataError(f"{name} has no column {column!r}; it has: {', '.join(rows.column_names)}\n  use --column NAME")
    return rows.select_columns([column])
