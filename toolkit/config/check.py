"""Rules that cross sections: each a function with its reason, silent while what it needs is open."""

import re
from collections.abc import Callable, Iterator, Mapping

from toolkit.config.kinds import Place
from toolkit.config.owned import FLAGS, find_misfits, find_owned, find_shapeless, owner_of
from toolkit.config.private import find_secrets
from toolkit.config.schema import RunConfig
from toolkit.errors import Problem

_SHOWN = 10  # numbers of nodes that would do

_Rule = Callable[[RunConfig], Iterator[tuple[str, str, str, str]]]
"""Gives (key whose origin is shown, what is, what must hold, what to do)."""


def check_config(cfg: RunConfig, origins: Mapping[str, str]) -> list[Problem]:
    """Apply every rule; give all mistakes."""
    problems = []
    for rule in _RULES:
        for key, what, must, remedy in rule(cfg):
            problems.append(Problem(f"{what}  [{origins.get(key, 'default')}]", must, remedy))
    return problems


def _name(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", cfg.run.name):
        shown = repr(cfg.run.name[:40]) + ("..." if len(cfg.run.name) > 40 else "")
        must = "a run's name is a directory: at most 128 letters, digits, '.', '_', '-'; the first is a letter or digit"
        yield "run.name", f"run.name={shown}", must, "set run.name"


def _places(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    """Look at paths again: they have been made absolute, and may have taken something from the directory one is in."""
    named = [("run.root", cfg.run.root), ("data.path", cfg.data.path), ("checkpoint.dir", cfg.checkpoint.dir)]
    named += [("data.mixture", path) for path in cfg.data.mixture]
    named += [("data.source", path) for path in cfg.data.source]
    for key, path in named:
        if path is not None:
            try:
                Place().check(path)
            except ValueError as error:
                what, must = f"{key}: {error.args[0]}", error.args[1]
                yield key, what, must, "set another path, or submit from another directory"
    # measured on Slurm 22.05: --output loses backslashes; blanks, quotes and all else that is printed are taken
    if "\\" in cfg.run.root:
        must = "Slurm drops backslashes from the paths of logs"
        yield "run.root", f"run.root={cfg.run.root!r}", must, "set run.root to a directory without them"


def _model(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    model = cfg.model
    if model.hidden_size % model.num_attention_heads:
        what = f"model.hidden_size={model.hidden_size} with num_attention_heads={model.num_attention_heads}"
        yield "model.num_attention_heads", what, "heads must divide the width", "change one of them"
    elif model.head_dim % 2:
        what = f"model.hidden_size / num_attention_heads = {model.head_dim}"
        yield "model.hidden_size", what, "rotary positions turn pairs: the width of a head must be even", ""
    if model.num_attention_heads % model.kv_heads:
        what = f"model.num_key_value_heads={model.kv_heads} with num_attention_heads={model.num_attention_heads}"
        yield "model.num_key_value_heads", what, "key-value heads must divide the query heads", ""


def _datasets(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    path, mixture = cfg.data.path, cfg.data.mixture
    if path is None and not mixture:
        yield "data.path", "data.path=null without data.mixture", "a run reads tokens", "set data.path"
    if path is not None and mixture:
        what = f"data.path={path} with a data.mixture of {len(mixture)}"
        yield (
            "data.mixture",
            what,
            "a run reads one dataset or a mixture",
            "set data.path=null, or leave out data.mixture",
        )


def _source(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    if cfg.data.source and cfg.data.tokenizer is None:
        must = "text becomes tokens by a tokenizer"
        remedy = "set data.tokenizer; make one: python data_prep/train_tokenizer.py TEXT --out tokenizer.json"
        yield "data.source", f"data.source={cfg.data.source} without data.tokenizer", must, remedy
    if cfg.data.source and cfg.data.path is None:
        what, must = "data.source with a data.mixture", "a source becomes one dataset"
        yield "data.source", what, must, "prepare the datasets of a mixture with data_prep/tokenize_corpus.py"


def _layout(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    stages, zero_stage = cfg.parallel.stages, cfg.parallel.zero_stage
    if stages is None:
        return
    if stages > cfg.model.num_hidden_layers:
        what = f"parallel.stages={stages} with model.num_hidden_layers={cfg.model.num_hidden_layers}"
        yield "parallel.stages", what, "every stage needs a block", "use fewer parallel.stages"
    if cfg.cluster.gpus_per_node is not None and cfg.world_size % stages:
        what = f"parallel.stages={stages} on {cfg.cluster.nodes} nodes x {cfg.cluster.gpus_per_node} GPUs"
        most = min(cfg.world_size, cfg.model.num_hidden_layers)
        fitting = ", ".join(str(n) for n in range(1, most + 1) if cfg.world_size % n == 0)
        yield "parallel.stages", what, "stages must divide the number of GPUs", f"stages that do: {fitting}"
    if stages > 1 and zero_stage in {2, 3}:
        what = f"parallel.zero_stage={zero_stage} cannot run with parallel.stages={stages}"
        remedy = "set parallel.zero_stage=1 (gradients stay whole on each GPU) or parallel.stages=1"
        yield "parallel.zero_stage", what, "DeepSpeed's pipeline engine takes ZeRO 0 or 1", remedy
    if stages > 1 and zero_stage == 0:
        what = f"parallel.zero_stage=0 with parallel.stages={stages}"
        must = "DeepSpeed clips gradients wrongly and silently there (it counts the norm of one stage only)"
        yield "parallel.zero_stage", what, must, "set parallel.zero_stage=1: the same result, less memory"


def _precision(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    if cfg.parallel.zero_stage == 0 and cfg.parallel.precision == "bf16":
        must = "DeepSpeed then takes an optimizer made for fp16, measured to be off by 8e-3"
        yield (
            "parallel.zero_stage",
            "parallel.zero_stage=0 with precision bf16",
            must,
            "set parallel.zero_stage=1",
        )


def _batch(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    tokens, seq_len = cfg.batch.tokens_per_step, cfg.data.seq_len
    if tokens % seq_len:
        what = f"batch.tokens_per_step={tokens} with data.seq_len={seq_len}"
        near = max(1, round(tokens / seq_len)) * seq_len
        yield "batch.tokens_per_step", what, "a step holds whole samples", f"set batch.tokens_per_step={near}"
        return
    if cfg.parallel.stages is None or cfg.cluster.gpus_per_node is None or cfg.world_size % cfg.parallel.stages:
        return
    unit = cfg.replicas * (cfg.batch.micro_batch or 1)
    if cfg.samples_per_step % unit:
        micro_batch = f" x micro_batch {cfg.batch.micro_batch}" if cfg.batch.micro_batch else ""
        what = f"{cfg.samples_per_step} samples a step on {cfg.replicas} replicas{micro_batch}"
        near = -(-cfg.samples_per_step // unit) * unit * seq_len
        must = "each replica runs the same number of micro-batches, and the batch stays when the nodes change"
        fitting = ", ".join(map(str, _fitting_nodes(cfg)))
        nodes = f"--nodes that do: {fitting}; or " if fitting else ""
        yield "batch.tokens_per_step", what, must, f"{nodes}set batch.tokens_per_step={near} for a new run"


def _fitting_nodes(cfg: RunConfig) -> list[int]:
    """Give the numbers of nodes, nearest to the one asked for, that share a step's micro-batches evenly."""
    stages, wanted = cfg.parallel.stages or 1, cfg.cluster.nodes
    ranks_per_node = cfg.world_size // wanted
    fitting = []
    for nodes in range(1, 2 * wanted + 1):
        replicas, rest = divmod(nodes * ranks_per_node, stages)
        if not rest and cfg.samples_per_step % (replicas * (cfg.batch.micro_batch or 1)) == 0:
            fitting.append(nodes)
    return sorted(sorted(fitting, key=lambda nodes: abs(nodes - wanted))[:_SHOWN])


def _cache(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    cache_dir = cfg.data.cache_dir
    if cache_dir is not None and not cache_dir.startswith("/"):
        must = "each node keeps copies of remote shards on a disk of its own: an absolute path"
        yield "data.cache_dir", f"data.cache_dir={cache_dir}", must, "set data.cache_dir=/DISK/OF/THE/NODE"


def _horizon(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    if cfg.optim.warmup_tokens >= cfg.run.tokens:
        what = f"optim.warmup_tokens={cfg.optim.warmup_tokens} with run.tokens={cfg.run.tokens}"
        yield "optim.warmup_tokens", what, "the warm-up must end before the run", "shorten it"
    keep_every, save_every = cfg.checkpoint.keep_every, cfg.checkpoint.save_every
    if keep_every and (save_every == "auto" or keep_every % save_every):
        what = f"checkpoint.keep_every={keep_every} with save_every={save_every}"
        yield "checkpoint.keep_every", what, "only steps that are saved can be kept", "use a multiple of save_every"
    limit, delay = cfg.cluster.time_limit, cfg.cluster.signal_delay_s
    if limit is not None and delay >= limit:
        what = f"cluster.signal_delay_s={delay} with time_limit={limit} s"
        yield "cluster.time_limit", what, "the signal must come after the start", "ask for more time"


def _protection(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    for section, name in (("zero_optimization", "compute_grad_norm"), ("bf16", "check_grad_overflow")):
        words = cfg.parallel.deepspeed_extra.get(section)
        if isinstance(words, dict) and words.get(name) is False:
            must = "by the norm of the gradient all ranks leave out a step that is not finite"
            what = f"parallel.deepspeed_extra switches off {section}.{name}"
            yield "parallel.deepspeed_extra", what, must, "leave it on"


def _deepspeed(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    for key, remedy in find_owned(cfg.parallel.deepspeed_extra):
        must = "the toolkit derives it from the keys of the run"
        yield "parallel.deepspeed_extra", f"parallel.deepspeed_extra sets {key}", must, remedy
    for key in find_shapeless(cfg.parallel.deepspeed_extra):
        what = f"parallel.deepspeed_extra: {key} holds no keys"
        yield "parallel.deepspeed_extra", what, "DeepSpeed reads a section there", f"write {key}: {{name: value}}"
    for key, must in find_misfits(cfg.parallel.deepspeed_extra):
        yield "parallel.deepspeed_extra", f"parallel.deepspeed_extra has {key}", must, "correct it, or leave it out"


def _variables(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    for name in cfg.cluster.env:
        owner = owner_of(name)
        if owner is not None:
            yield "cluster.env", f"cluster.env sets {name}", *owner


def _setup(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    for line in cfg.cluster.setup:
        # a redirection of the shell itself (exec 2>&1) goes on; `exit 1` may stand inside an `if`
        if re.match(r"\s*(exit(\s+0)?\s*([;#]|$)|exec\s+[^\s\d<>&{])", line):
            what, must = f"cluster.setup has {line.strip()!r}", "the job would end there, before its ranks start"
            yield "cluster.setup", what, must, "leave the line out; a command needs no exec"


def _flags(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    ranks = cfg.cluster.gpus_per_node or 1
    same = {"nodes": cfg.cluster.nodes, "ntasks-per-node": ranks, "ntasks": cfg.cluster.nodes * ranks}
    for name, value in cfg.cluster.sbatch_extra.items():
        flag = name.replace("_", "-")
        is_set = value is not None and value is not False and value != same.get(flag)
        remedy = FLAGS.get(flag) if is_set else None
        if remedy is not None:
            must = "the job is planned, checked and found again by what the toolkit says there"
            yield "cluster.sbatch_extra", f"cluster.sbatch_extra sets {name}", must, remedy
        if isinstance(value, (list, dict)):
            what = f"cluster.sbatch_extra: {name} is a {'list' if isinstance(value, list) else 'mapping'}"
            yield "cluster.sbatch_extra", what, "a flag of sbatch has one value", "write it as sbatch takes it: a,b"
        if "\\" in str(value):
            what = f"cluster.sbatch_extra: {name} has a backslash"
            yield "cluster.sbatch_extra", what, "sbatch takes it for an escape, also inside quotes", "leave it out"


def _secrets(cfg: RunConfig) -> Iterator[tuple[str, str, str, str]]:
    must = "scripts, logs and the run directory never hold secrets"
    for key, what, remedy in find_secrets(cfg):
        yield key, what, must, remedy


_RULES: tuple[_Rule, ...] = (
    _name,
    _places,
    _model,
    _datasets,
    _source,
    _layout,
    _precision,
    _batch,
    _cache,
    _horizon,
    _protection,
    _deepspeed,
    _variables,
    _setup,
    _flags,
    _secrets,
)
