"""The tokens of a run: whole, within the model's vocabulary, and enough of them."""

import math
from collections.abc import Sequence

from toolkit import storage
from toolkit.checkpoint import layout
from toolkit.config.schema import RunConfig
from toolkit.data.manifest import check_sizes
from toolkit.data.mixture import Member, open_members
from toolkit.data.prepare.tokenizer import identify_tokenizer, load_tokenizer
from toolkit.data.stream import count_samples
from toolkit.data.text.readers import HUB, kind_of
from toolkit.data.text.sources import find_inputs, read_documents
from toolkit.errors import DataError, Problem, StorageError, ToolkitError
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding, note, ok, refuse, refuse_for, warn
from toolkit.launch.identity import read_config
from toolkit.launch.prepare import ask_for, refuse_another, stands
from toolkit.rundir import RunDir
from toolkit.train.schedule import rate_of_run

ANSWER_S = 15.0
"""How long a remote file system is waited for: nobody waits for a failover at the prompt."""
_MOST_EPOCHS = 4.0
_READ = 4  # inputs
_SAME_RATE = 0.01
_SHOWN = 3  # shards of a dataset that are named


def check_data(context: Context) -> list[Finding]:
    """Look at `shards`, `tokenizer` and `horizon`."""
    try:
        with storage.patience(ANSWER_S):
            return _check_datasets(context.cfg, context.run_dir)
    except (DataError, StorageError) as error:
        return [refuse_for("shards", Problem.parse(str(error)))]


def _check_datasets(cfg: RunConfig, run_dir: RunDir) -> list[Finding]:
    if cfg.data.source:
        asked, out = ask_for(cfg.data)
        if not stands(out):
            inputs = find_inputs(asked.inputs)
            size = identify_tokenizer(asked.tokenizer, load_tokenizer(asked.tokenizer), eos=asked.eos).vocab_size
            later = note("horizon", "not known before the text has become tokens")
            return [_check_text(inputs, column=asked.column), _check_vocabulary(cfg, size), later]
        refuse_another(asked, out)
    members = open_members(cfg.data.weights)
    return [
        *_check_shards(members),
        _check_vocabulary(cfg, members[0].manifest.tokenizer.vocab_size),
        *_check_horizon(cfg, members),
        *_check_rate(cfg, run_dir),
    ]


def _check_text(inputs: Sequence[str], *, column: str) -> Finding:
    """Read the beginning of the first inputs; of a data set on the Hub, nothing: it would be loaded as a whole."""
    for name in [name for name in inputs if kind_of(name) != HUB][:_READ]:
        try:
            next(read_documents(name, column=column), None)
        except DataError as error:
            what, reason = str(error).splitlines()[0], "the jobs that make the dataset would stop there"
            return refuse("shards", what, reason, "name the field of the text in data.column, or mend the text")
    return ok("shards", f"made first, from {len(inputs)} inputs")


def _check_shards(members: tuple[Member, ...]) -> list[Finding]:
    problems, count = [], 0
    for member in members:
        shards = [shard for split in member.manifest.splits.values() for shard in split]
        wrong, count = check_sizes(member.dataset_dir, shards), count + len(shards)
        if wrong:
            more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            what = "; ".join(wrong[:_SHOWN]) + more
            problems.append(refuse("shards", what, "shards must be as the manifest says", "prepare the dataset again"))
    return problems or [ok("shards", f"{count} shards of {_datasets(members)}, each of the size in the manifest")]


def _datasets(members: tuple[Member, ...]) -> str:
    return members[0].dataset_dir if len(members) == 1 else f"{len(members)} datasets"


def _check_vocabulary(cfg: RunConfig, size: int) -> Finding:
    if size > cfg.model.vocab_size:
        what = f"model.vocab_size={cfg.model.vocab_size}, the dataset's tokenizer has {size}"
        remedy = f"set model.vocab_size={-(-size // 64) * 64}"
        return refuse("tokenizer", what, "every token needs a row of the embedding", remedy)
    return ok("tokenizer", f"{size} tokens in a vocabulary of {cfg.model.vocab_size}")


def _check_rate(cfg: RunConfig, run_dir: RunDir) -> list[Finding]:
    """Look whether a run that goes on would do so with another learning rate than it had: the schedule has changed."""
    steps = layout.list_steps(run_dir.find_checkpoints(cfg.checkpoint.dir))
    try:
        step, before = steps[-1], read_config(run_dir)
    except (IndexError, ToolkitError):  # it begins, or what it was cannot be read
        return []
    was, will_be = (rate_of_run(one, step=step) for one in (before, cfg))
    if math.isclose(was, will_be, rel_tol=_SAME_RATE):
        return []
    what = f"the learning rate jumps from {was:.2e} to {will_be:.2e} at step {step + 1}, where the run goes on"
    reason = "the schedule falls over all of run.tokens, from optim.peak_lr to its min_lr_ratio"
    if before.run.tokens != cfg.run.tokens:
        reason += f"; run.tokens was {before.run.tokens:,}, is {cfg.run.tokens:,}"
    return [warn("horizon", what, reason, "leave it where that is meant; else a smaller optim.peak_lr goes on lower")]


def _check_horizon(cfg: RunConfig, members: tuple[Member, ...]) -> list[Finding]:
    problems, epochs, tokens = [], dict[str, float](), 0
    for member in members:
        problems += _check_length(cfg, member)
        size = member.manifest.num_tokens("train")
        samples, tokens = count_samples(size, seq_len=cfg.data.seq_len), tokens + size
        epochs[member.name] = cfg.run.tokens * member.share / (max(1, samples) * cfg.data.seq_len)
    if problems:
        return problems
    name, most = max(epochs.items(), key=lambda pair: pair[1])
    over = f"{cfg.run.tokens:,} tokens are {_times(most)} over {tokens:,}"
    if len(members) > 1:
        over = f"{cfg.run.tokens:,} tokens are up to {_times(most)} ({name})"
    if most <= _MOST_EPOCHS:
        return [ok("horizon", over)]
    reason = (
        f"up to about {_MOST_EPOCHS:g} epochs repeated tokens teach almost as much as new ones, then ever less "
        "(Muennighoff et al. 2023, arXiv:2305.16264)"
    )
    return [warn("horizon", over, reason, "use more text, or fewer run.tokens")]


def _times(epochs: float) -> str:
    return f"{epochs:.2f} epochs" if epochs < 10 else f"{epochs:,.0f} epochs"


def _check_length(cfg: RunConfig, member: Member) -> list[Finding]:
    """Refuse a split that does not hold one sample."""
    problems = []
    for split in ("train", "validation") if cfg.monitor.eval_every else ("train",):
        num_tokens = member.manifest.num_tokens(split)
        if count_samples(num_tokens, seq_len=cfg.data.seq_len) < 1:
            what = f"the {split} split of {member.dataset_dir} has {num_tokens} tokens"
            reason = f"a sample takes data.seq_len={cfg.data.seq_len} + 1"
            problems.append(refuse("horizon", what, reason, "use more text, or a smaller data.seq_len"))
    return problems
