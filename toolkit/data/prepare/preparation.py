"""What a token dataset is to be made from, and whether what stands there was made from the same."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from toolkit import storage
from toolkit.data import manifest as manifests
from toolkit.data.manifest import TokenizerIdentity, read_manifest
from toolkit.data.prepare.spans import Span, choose_span_bytes, cut_spans
from toolkit.data.prepare.tokenizer import identify_tokenizer
from toolkit.data.prepare.writer import Rules
from toolkit.data.shard import MAX_TOKENS
from toolkit.data.text.readers import Reading
from toolkit.data.text.sources import Input, find_inputs, identify, identify_inputs
from toolkit.errors import DataError
from toolkit.fields import build

PLAN = "plan.json"
_CORPUS = "corpus.json"  # what filtering and deduplication wrote beside their output

_NOT_COMPARED = {"inputs", "tokenizer", "eos", "lossy"}  # told by others, or without effect on a token
_BEFORE = {"keep_special": True}  # options of datasets from when there was no choice
_SHOWN = 3  # differences in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What is asked for; equal ones of equal inputs give byte-identical shards."""

    inputs: tuple[str, ...]
    tokenizer: str
    column: str = "text"
    validation: float = 0.01
    """Part of the documents that goes to the validation split."""
    split_by: str = "hash"
    """`hash`: a document's text decides, so it stays when the corpus grows; `index`: every n-th."""
    tokens_per_shard: int = 100_000_000
    span_bytes: int | None = None
    """Text that one process works on at a time; None: chosen from the size of the inputs."""
    on_error: str = "stop"
    """`stop` at a broken record, or `skip` it, count it and list it."""
    max_record_bytes: int = 8 << 20
    licence: str = ""
    eos: str | None = None
    """Token that ends a text; None: the one that the tokenizer declares."""
    keep_special: bool = False
    """Make control tokens of those that a text spells out; else they are text like any other."""
    lossy: bool = False
    """Take a tokenizer that loses text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What an unfinished dataset is made from; only an equal one goes on with it."""

    inputs: tuple[Input, ...]
    options: Mapping[str, Any]
    tokenizer: TokenizerIdentity

    @property
    def rules(self) -> Rules:
        """How texts become shards."""
        option = self.options
        return Rules(
            reading=Reading(
                column=option["column"], on_error=option["on_error"], max_record_bytes=option["max_record_bytes"]
            ),
            validation=option["validation"],
            split_by=option["split_by"],
            tokens_per_shard=option["tokens_per_shard"],
            vocab_size=self.tokenizer.vocab_size,
            eos_id=self.tokenizer.eos_id,
        )

    @property
    def spans(self) -> tuple[Span, ...]:
        """The parts in which it is made."""
        return cut_spans(self.inputs, span_bytes=self.options["span_bytes"])

    def describe(self) -> dict[str, Any]:
        """Give what must be equal, as JSON would."""
        described: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return described


def name_partial(out: str) -> str:
    """Name the directory in which a dataset is made."""
    return out.rstrip("/") + ".partial"


def make_plan(asked: Preparation, *, tokenizer: Any) -> Plan:
    """Look at the inputs and the (loaded) tokenizer.

    Raises:
        DataError: one is missing or not what its name says; an option is out of range.
    """
    if not 0 < asked.tokens_per_shard <= MAX_TOKENS or not 0 < asked.max_record_bytes <= MAX_TOKENS:
        raise DataError(
            f"tokens_per_shard={asked.tokens_per_shard}, max_record_bytes={asked.max_record_bytes}\n"
            f"  a shard and a record must lie between 1 and {MAX_TOKENS}: offsets of an Arrow list are int32"
        )
    if not 0 < asked.validation < 1:
        raise DataError(f"validation={asked.validation}\n  it is a part of the documents: between 0 and 1")
    if asked.span_bytes is not None and asked.span_bytes < 1:
        raise DataError(f"span_bytes={asked.span_bytes}\n  a span is text of at least a byte\n  leave --span-bytes out")
    options = {key: value for key, value in asdict(asked).items() if key not in _NOT_COMPARED}
    inputs = tuple(identify_inputs(find_inputs(asked.inputs), column=asked.column))
    options["span_bytes"] = asked.span_bytes or choose_span_bytes(inputs)
    return Plan(inputs=inputs, options=options, tokenizer=identify_tokenizer(asked.tokenizer, tokenizer, eos=asked.eos))


def is_finished(plan: Plan, out: str) -> bool:
    """Whether the dataset that a plan asks for stands there.

    Raises:
        DataError: something else stands there.
    """
    if storage.exists(storage.join(out, manifests.NAME)):
        _refuse_different(out, read_manifest(out).provenance.get("plan", {}), plan)
        return True
    if storage.exists(out) and storage.list_files(out):
        raise DataError(f"{out} exists and is no token dataset\n  it has no {manifests.NAME}\n  choose another --out")
    return False


def start(plan: Plan, *, tokenizer: Any, out: str) -> str:
    """Make the directory of an unfinished dataset, or find that it was begun from the same.

    Returns:
        The directory.

    Raises:
        DataError: it was begun from something else.
    """
    partial_dir = name_partial(out)
    plan_url = storage.join(partial_dir, PLAN)
    if storage.exists(storage.join(partial_dir, manifests.NAME)):
        _refuse_different(partial_dir, read_manifest(partial_dir).provenance.get("plan", {}), plan)
    elif storage.exists(plan_url):
        _refuse_different(partial_dir, read_plan(partial_dir).describe(), plan)
    else:
        text = tokenizer.to_str(pretty=False).encode()
        storage.write_atomic(storage.join(partial_dir, manifests.TOKENIZER_NAME), text)
        storage.write_atomic(plan_url, json.dumps(plan.describe(), indent=1).encode())
    return partial_dir


def read_plan(partial_dir: str) -> Plan:
    """Read what an unfinished dataset is made from.

    Raises:
        DataError: there is no such dataset.
    """
    url = storage.join(partial_dir, PLAN)
    try:
        with storage.open_file(url, "rb") as file:
            plan: Plan = build(Plan, json.loads(file.read()))
        plan = replace(plan, options={**_BEFORE, **plan.options})
        if missing := {one.name for one in fields(Preparation)} - {*_NOT_COMPARED, *plan.options}:
            raise ValueError(f"options.{min(missing)} is missing")
    except FileNotFoundError as error:
        raise DataError(f"no dataset is being made in {partial_dir}\n  it would have a {PLAN}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{url} is damaged: {error}\n  it says what the dataset is made from\n  delete {partial_dir}"
        ) from error
    return plan


def read_corpora(plan: Plan) -> dict[str, Any]:
    """Read what was removed from the inputs and why, where that lies beside them."""
    found = {}
    for folder in sorted({item.path.rpartition("/")[0] for item in plan.inputs}):
        url = storage.join(folder, _CORPUS)
        if storage.exists(url):
            with storage.open_file(url, "rb") as file:
                try:
                    found[folder] = json.loads(file.read())
                except (ValueError, RecursionError) as error:
                    raise DataError(
                        f"{url} is damaged: {error}\n  it is copied into the manifest\n  delete it"
                    ) from error
    return found


def check_inputs(inputs: Iterable[Input], *, column: str) -> None:
    """Refuse inputs that changed since a plan was made.

    Raises:
        DataError: one did.
    """
    for item in inputs:
        if identify(item.path, column=column) != item:
            raise DataError(
                f"{item.path} changed while a dataset was made from it\n  it had {item.num_bytes} bytes\n"
                "  put it back, or delete the .partial directory and begin again"
            )


def _refuse_different(where: str, then: Mapping[str, Any], plan: Plan) -> None:
    now = plan.describe()
    then = {**then, "options": {**_BEFORE, **then.get("options", {})}}
    differing = [key for key in ("inputs", "options", "tokenizer") if then.get(key) != now[key]]
    if differing:
        details = [line for key in differing for line in _name_differences(key, then.get(key), now[key])]
        more = f"\n  and {len(details) - _SHOWN} more" if len(details) > _SHOWN else ""
        shown = "".join(f"\n  {line}" for line in details[:_SHOWN])
        raise DataError(
            f"{where} was made from other {', '.join(differing)}{shown}{more}\n"
            f"  what was begun or finished is never changed\n  choose another --out, or delete {where}"
        )


def _name_differences(key: str, then: Any, now: Any) -> list[str]:
    if key == "inputs":
        then, now = ({item["path"]: item for item in items or []} for items in (then, now))
    old, new = then or {}, now
    lines = []
    for name in sorted({*old, *new}):
        if old.get(name) == new.get(name):
            continue
        if key == "inputs":
            state = "is new" if name not in old else "is gone" if name not in new else "has changed"
            lines.append(f"{name} {state}")
        else:
            lines.append(f"{key}.{name} was {old.get(name)!r}, is {new.get(name)!r}")
    return lines
