"""The words of a run: one frozen dataclass a section, a string of help under each field.

`None` in a field means that something else decides: the planner (layout), the cluster (limits) or
the run directory (paths); the help says which. `toolkit config FILE --origin` prints every value.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from toolkit import storage
from toolkit.config.kinds import (
    Count,
    Duration,
    Filled,
    Flag,
    Fraction,
    Lines,
    Matches,
    Memory,
    Natural,
    PathOrUrl,
    Place,
    Positive,
    Project,
    Range,
    Variable,
    Word,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSection:
    """What is run, for how long, and where it is kept."""

    name: str = "default"
    """Name of the run: its directory under `root`, and the run that a second submit resumes."""
    root: Annotated[str, Place(may_be_url=False)] = "runs"
    """Directory of all runs; on a cluster on a file system that every node sees. `~`, $NAME and ${NAME} in paths are
    those of the shell that submits; $$ is a dollar sign."""
    tokens: Annotated[int, Range(1, 10**17)] = 1_000_000
    """Tokens to train on: the horizon of the schedule and the end of the run."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Seed of initial weights and data order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSection:
    """A Llama, in the words of Hugging Face's LlamaConfig."""

    hidden_size: Annotated[int, Range(1, 1_000_000)] = 256
    """Width of the residual stream."""
    intermediate_size: Annotated[int, Range(1, 10_000_000)] = 688
    """Inner width of the gated feed-forward part."""
    num_hidden_layers: Annotated[int, Range(1, 10_000)] = 4
    """Number of blocks."""
    num_attention_heads: Annotated[int, Range(1, 100_000)] = 4
    """Query heads; divides hidden_size."""
    num_key_value_heads: Annotated[int, Range(1, 100_000)] | None = None
    """Key and value heads (grouped-query attention); divides num_attention_heads. None: as many as query heads."""
    vocab_size: Annotated[int, Range(1, 100_000_000)] = 4096
    """Rows of the embedding; at least the tokenizer's."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary position angles."""
    rms_norm_eps: Positive = 1e-5
    """Added to the mean square before its root."""
    tie_word_embeddings: bool = False
    """Use the input embedding as the output head."""
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads, resolved."""
        return self.num_key_value_heads or self.num_attention_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSection:
    """Which tokens are read, and how they are cut into samples."""

    path: PathOrUrl | None = "data/python-docs"
    """Token dataset: a directory (or URL) with a manifest.json, made by data_prep/tokenize_corpus.py. None where
    `mixture` names several."""
    mixture: dict[PathOrUrl, Positive] = field(default_factory=dict)
    """Token datasets that are read together, {path: weight}: samples are drawn in proportion to the weights, which are
    any positive numbers; each dataset goes through epochs of its own."""
    source: list[PathOrUrl] = field(default_factory=list)
    """Text that the dataset is made from before the run when it is not there: files, directories, URLs, datasets:NAME.
    Named on the command line without data.path, it gets a place of its own in data/."""
    tokenizer: PathOrUrl | None = None
    """What turns `source` into tokens: a tokenizer.json (also a URL), a directory with one, or a name on the Hub."""
    eos: Filled | None = None
    """Token of `tokenizer` that ends a text. None: the one that the tokenizer declares."""
    column: Filled = "text"
    """Field of a record of `source` that holds the text."""
    validation: Annotated[float, Range(1e-6, 0.5)] = 0.01
    """Part of the documents of `source` that goes to the validation split."""
    seq_len: Count = 256
    """Tokens a sample; free at training time, whatever the shards are."""
    shuffle: bool = True
    """Read samples in a pseudo-random order, another one each epoch; else in the order of the corpus."""
    cache_dir: Annotated[str, Place(is_on_nodes=True)] | None = None
    """Directory on a disk of each node; copies of remote shards go to a folder of the user's own in it.
    None: $SLURM_TMPDIR, $TMPDIR or /tmp."""
    cache_gib: Positive | None = None
    """GiB that those copies may take on a node. None: nine tenths of what is free there."""
    replica_split: Literal["index", "hash"] = "index"
    """Which replica reads which samples of a step: by position, or by the sample's hash, so that most samples are read
    by the same replica in each epoch (for caches on nodes). The step's samples are the same."""
    document_mask: bool = False
    """Attend only inside a document, and do not learn its successor's first token. Slower: attention with a mask."""

    @property
    def weights(self) -> dict[str, float]:
        """Give each dataset that is read its weight."""
        return dict(self.mixture) if self.path is None else {self.path: 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimSection:
    """AdamW with warm-up and cosine decay."""

    peak_lr: Annotated[float, Range(1e-12, 1e3)] = 3e-4
    """Learning rate at the end of the warm-up."""
    min_lr_ratio: Fraction = 0.1
    """Learning rate at the end of the run, as a part of peak_lr."""
    warmup_tokens: Annotated[int, Range(0, 10**17)] = 0
    """Tokens over which the learning rate rises linearly from 0."""
    weight_decay: Annotated[float, Range(0.0, 1e3)] = 0.1
    """Decoupled weight decay, on matrices only (not on norms)."""
    beta1: Annotated[float, Range(0.0, below=1.0)] = 0.9
    """Decay of the running mean of gradients."""
    beta2: Annotated[float, Range(0.0, below=1.0)] = 0.95
    """Decay of the running mean of squared gradients."""
    eps: Annotated[float, Range(1e-30, 1.0)] = 1e-8
    """Added to the root of the second moment."""
    clip_norm: Annotated[float, Range(0.0, 1e12)] = 1.0
    """Largest global gradient norm; 0 switches clipping off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelSection:
    """The layout: ranks = stages x replicas."""

    stages: Annotated[int, Range(1, 10_000)] | None = None
    """Pipeline stages; divides the number of GPUs. None: the planner decides."""
    zero_stage: Annotated[int, Range(0, 3)] | None = None
    """ZeRO stage of the optimizer; 2 and 3 only with one pipeline stage. None: the planner decides."""
    split_by: Literal["cost", "parameters", "uniform"] = "cost"
    """How layers are dealt to stages: by estimated time, by parameters, or by number of blocks."""
    recompute: bool | None = None
    """Recompute each block's activations in the backward pass. None: the planner decides."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Number format of the working copy; master weights and moments are always fp32."""
    deepspeed_extra: dict[str, Any] = field(default_factory=dict)
    """Merged last into the DeepSpeed configuration, and logged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchSection:
    """The global batch: given in tokens, the same on any number of GPUs."""

    tokens_per_step: Annotated[int, Range(1, 10**12)] = 16_384
    """Tokens of one optimizer step over all replicas; a multiple of data.seq_len."""
    micro_batch: Annotated[int, Range(1, 1_000_000)] | None = None
    """Samples a replica runs at once. None: the planner decides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointSection:
    """When state is saved, and what is kept."""

    save_every: Count | Literal["auto"] = "auto"
    """Steps between saves; a stop and the end of the run save too. auto: as often as failures that were seen make it
    worth what a save was measured to cost."""
    keep: Count = 2
    """Newest checkpoints that are kept."""
    keep_every: Count | None = None
    """Besides, keep the checkpoints whose step is a multiple of this. None: none."""
    dir: PathOrUrl | None = None
    """Directory of checkpoints. None: checkpoints/ in the run directory. A URL (hdfs://...): there too, copied from the
    run directory in the background, and restored from there when they are gone here."""

    @property
    def mirror_url(self) -> str | None:
        """Where checkpoints are copied to; None: `dir` is no URL."""
        return None if self.dir is None or storage.is_local(self.dir) else self.dir


@dataclass(frozen=True, kw_only=True, slots=True)
class FaultsSection:
    """What a run does about bad numbers, hangs and slow ranks."""

    max_bad_steps: Count = 3
    """Tries of a step, each with other samples, whose loss or gradient is not finite before the run goes back to a
    checkpoint. Such a try changes no weight, and its samples are left out for good."""
    spike_limit: Positive | None = 10.0
    """A step's loss is a spike where it is above the median of the newest 128 by so many standard deviations, which are
    estimated robustly. None: no loss is too high; for data that changes its kind along the way."""
    spike_patience: Count = 10
    """Spikes in a row before the run goes back to a checkpoint from before them and leaves their samples out."""
    max_rollbacks: Natural = 5
    """How often a run may go back to a checkpoint before it is left FAILED."""
    hang_min_s: Duration = 120
    """Shortest time without progress that is called a hang; the run learns how long its steps, saves and evaluations
    take, and waits for several times as long."""
    hang_start_s: Duration = 1800
    """Time without progress that is called a hang where nothing is known yet: first step, first save, load."""
    drill_step: Count | None = None
    """After this step the run stops once as at its time limit: it saves, is requeued and goes on. A rehearsal sets it.
    None: it is not drilled."""
    straggler_ratio: Annotated[float, Range(1.01, 1e6)] = 1.3
    """A rank is named slow where it computes so many times as long as the median of those with the same layers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MonitorSection:
    """What is written about the run while it goes."""

    log_every: Count = 10
    """Steps between step lines in the log; metrics.jsonl has every step."""
    eval_every: Count | None = 500
    """Steps between measurements of the validation loss. None: never."""
    eval_samples: Count = 256
    """Validation samples a measurement reads, the same ones each time."""
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """W&B mode; auto is what WANDB_MODE (or WANDB_DISABLED) says in the shell that submits, else online where a key is
    found, else offline (send later: toolkit sync)."""
    wandb_project: Project | None = None
    """W&B project. None: $WANDB_PROJECT, else `toolkit`."""
    wandb_entity: Filled | None = None
    """W&B team or user. None: $WANDB_ENTITY, else the default of the key."""
    tensorboard: bool = False
    """Also write TensorBoard event files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSection:
    """The job: how much of the cluster, for how long. Usually from the site profile."""

    scheduler: Literal["auto", "slurm", "local"] = "auto"
    """auto takes Slurm where sbatch is found, else emulated nodes on this machine."""
    nodes: Annotated[int, Range(1, 100_000)] = 1
    """Nodes of the job."""
    gpus_per_node: Annotated[int, Range(1, 1_000)] | None = None
    """Ranks a node. None: as many GPUs as the partition's nodes have; 1 on emulated nodes."""
    gpu_type: Word | None = None
    """Kind of GPU: the planner reckons with it, and of several kinds in a partition the job gets this one. cpu: ranks
    run on CPU, and no GPU is asked for. None: read from the cluster; of several kinds the one there is most of."""
    time_limit: Duration | None = None
    """Wall time of one job (30m, 12h, 2-00:00:00). None: the partition's maximum; where it has none, no limit."""
    partition: Word | None = None
    """Partition, or several with commas. None: the cluster's default, or the only one that you may use."""
    account: Word | None = None
    """Account that is charged. None: the user's default."""
    qos: Word | None = None
    """Quality of service. None: the default."""
    reservation: Word | None = None
    """Reservation whose nodes the job uses. None: none."""
    requeue: bool = True
    """Whether Slurm may start a job again under its number. false, where a site forbids it: the run goes on in new
    jobs, each handed in behind the one before."""
    constraint: Word | None = None
    """Node features that are required. None: any."""
    exclude: list[Word] = field(default_factory=list)
    """Nodes never to use: names, or Slurm's short form (n[01-16])."""
    cpus_per_task: Annotated[int, Range(1, 100_000)] | None = None
    """CPUs a rank. None: the node's CPUs shared out among its ranks."""
    mem_per_node: Memory | None = None
    """Memory a node in Slurm's words (500G, 0 for all). None: the site's default, or more where the run needs more."""
    signal_delay_s: Annotated[int, Range(1, 65_535)] = 120
    """Seconds before the time limit at which the scheduler warns the job. The run stops just in time for a save, from
    what saves took; as long as none was measured, this is what it keeps for one."""
    max_requeues: Natural = 100
    """Restarts that the run may use up by itself after a submission."""
    max_fruitless: Count = 3
    """Attempts in a row that may fail without getting further, before the run is left FAILED."""
    setup: Annotated[list[str], Lines()] = field(default_factory=list)
    """Shell lines run on each job's first node before the ranks start (module load ...). The gate tries them where the
    run is submitted, if they do no more than to change the shell's environment."""
    env: dict[Variable, str] = field(default_factory=dict)
    """Environment variables for every rank. Never a secret: they are written to the script (docs/security.md)."""
    pass_env: list[Annotated[str, Matches(r"[^\s=]+", "it is the name of a variable, or its beginning and *")]] = field(
        default_factory=list
    )
    """Variables of the submitting shell that the job gets too: names, or beginnings (NCCL_*). Their values are written
    nowhere. PATH, modules, conda, keys and addresses (WANDB_*, HF_*, HADOOP_*, proxies) need not be named."""
    sbatch_extra: dict[Flag, Any] = field(default_factory=dict)
    """Further #SBATCH flags, name without dashes; true for a flag without a value, null or false takes away one of ours
    ({gres: "gpu:8", gpus-per-node: null})."""
    srun_extra: list[Filled] = field(default_factory=list)
    """Further srun arguments."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HealthSection:
    """Looking at the nodes before a training."""

    enabled: Literal["auto", "always", "never"] = "auto"
    """Probe every node before the first step, and leave out bad ones next time. auto: where a run has several nodes."""
    limits: dict[str, float] = field(default_factory=dict)
    """Limits of the site in place of the built-in ones, by probe (docs/design.md): the least of a rate, the most of
    anything else, {gpu matmul: 550}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """Everything a run is told, in sections."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    optim: OptimSection = field(default_factory=OptimSection)
    parallel: ParallelSection = field(default_factory=ParallelSection)
    batch: BatchSection = field(default_factory=BatchSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    faults: FaultsSection = field(default_factory=FaultsSection)
    monitor: MonitorSection = field(default_factory=MonitorSection)
    cluster: ClusterSection = field(default_factory=ClusterSection)
    health: HealthSection = field(default_factory=HealthSection)

    @property
    def world_size(self) -> int:
        """Count the ranks of a resolved configuration."""
        assert self.cluster.gpus_per_node is not None, "cluster.gpus_per_node is not resolved"
        return self.cluster.nodes * self.cluster.gpus_per_node

    @property
    def replicas(self) -> int:
        """Count the data-parallel replicas of a resolved configuration."""
        assert self.parallel.stages is not None, "parallel.stages is not resolved"
        return self.world_size // self.parallel.stages

    @property
    def samples_per_step(self) -> int:
        """Count the samples of one optimizer step."""
        return self.batch.tokens_per_step // self.data.seq_len

    @property
    def num_steps(self) -> int:
        """Count the optimizer steps of the run: the last one passes the horizon."""
        return -(-self.run.tokens // self.batch.tokens_per_step)


def to_dict(cfg: RunConfig) -> dict[str, dict[str, Any]]:
    """Turn a configuration into nested dictionaries, field order kept."""
    return dataclasses.asdict(cfg)
