"""A run that meets bad samples or a spike ends as one that never read them, in the same process."""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.dataset import make_dataset
from tests.spawn.ranks import run_ranks
from tests.spawn.test_bad_steps import state_of
from tests.spawn.tiny import build, make_config, open_saver, tiny_index
from toolkit.config.schema import FaultsSection, RunConfig
from toolkit.rundir import RunDir

pytestmark = [pytest.mark.spawn, pytest.mark.timeout(900)]

NUM_STEPS = 48
SAVE_EVERY = 8
SAMPLES = 16
RATE = 3e-3
PLACES = [
    # stages, replicas, zero_stage, precision
    (1, 2, 0, "fp32"), (1, 2, 1, "fp32"), (1, 2, 2, "fp32"), (1, 2, 3, "fp32"), (1, 2, 3, "bf16"),
    (2, 2, 1, "fp32"), (2, 2, 1, "bf16"),
]  # fmt: skip
BAD = {10: 1, 20: 3}  # step -> how often its numbers are not finite
SPIKE_AT = 41
LIMITS = FaultsSection(max_bad_steps=2, spike_patience=3, max_rollbacks=3)


def configure(place: tuple[int, int, int, str], dataset: Path) -> RunConfig:
    stages, replicas, zero_stage, precision = place
    cfg = make_config(stages=stages, replicas=replicas, zero_stage=zero_stage, tied=False, precision=precision)
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, vocab_size=300),
        data=dataclasses.replace(cfg.data, path=str(dataset)),
        batch=dataclasses.replace(cfg.batch, micro_batch=4),
        faults=LIMITS,
    )


def open_loader(cfg: RunConfig) -> Any:
    from toolkit.data.loader import StepLoader, open_streams
    from toolkit.data.mixture import open_members
    from toolkit.data.stream import locate_in
    from toolkit.train.engine import batch_shape

    members = open_members(cfg.data.weights)
    return StepLoader(
        open_streams(members, "train", seq_len=cfg.data.seq_len, locate_in=locate_in, max_mapped=9),
        shares=[1.0],
        seq_len=cfg.data.seq_len,
        batch=batch_shape(cfg),
        seed=5,
        shuffle=True,
        replica_split="index",
        document_end=None,
        pin_memory=False,
    )


class Run:
    """The loop's way with verdicts, on a rank."""

    def __init__(self, world: Any, cfg: RunConfig, root: Path, *, skips: Any = None) -> None:
        from toolkit.data.loader import PrefetchingLoader
        from toolkit.topology import Topology
        from toolkit.train.guard import Guard

        self.world, self.cfg, self.dir = world, cfg, RunDir(root)
        self.engine, self.replica = build(world, cfg)
        topology = Topology(stages=cfg.parallel.stages, replicas=cfg.replicas)
        self.is_last = topology.stage_of(world.rank) == topology.stages - 1
        plain = open_loader(cfg)
        self.guard = Guard(cfg.faults, self.dir, world, topology=topology, loader=plain, names=["text"])
        self.loader = PrefetchingLoader(
            plain.skipping(skips or self.guard.skips), replica=self.replica, device=world.device
        )
        self.saver = open_saver(world, cfg, self.dir.checkpoints_dir, self.replica)
        self.step, self.saved_step = 0, 0
        self.bad, self.spike_at = ({}, -1) if skips else (dict(BAD), SPIKE_AT)
        self.losses: dict[int, float] = {}
        self.acts: list[tuple[str, int, int | None]] = []

    def run(self) -> "Run":
        from toolkit.train.guard import Act

        with contextlib.closing(self.loader):
            while self.step < NUM_STEPS:
                micro_batches = self.loader.micro_batches(self.step)
                with self.trouble() as rate:
                    result = self.engine.train_step(micro_batches, learning_rate=rate)
                verdict = self.guard.judge(self.step, result, saved_steps=self.saved_steps)
                if verdict.act is not Act.GO_ON:
                    self.acts.append((verdict.act.value, self.step, verdict.back_to))
                    if not result.applied:
                        self.guard.keep(self.step, micro_batches, result, saved_step=self.saved_step)
                    assert verdict.act is not Act.GIVE_UP
                    bad_step = self.step
                    if verdict.back_to is not None:
                        self.step = self.load(verdict.back_to)
                    self.loader.skip(self.guard.record(verdict, step=bad_step))
                    continue
                self.losses[self.step] = result.loss
                self.step += 1
                if self.step % SAVE_EVERY == 0 and self.guard.is_calm:
                    self.save()
        assert self.saver.finish(300) is None
        self.saver.close()
        return self

    @contextlib.contextmanager
    def trouble(self) -> Any:
        """Give the rate of the step; make the numbers of some steps bad."""
        hook = None
        is_bad = self.bad.get(self.step, 0) > 0
        if is_bad:
            self.bad[self.step] -= 1
        if is_bad and self.is_last and self.replica == 1:
            hook = self.engine._module.register_forward_hook(lambda _, __, logits: logits * math.nan)
        is_spike = self.step == self.spike_at
        if is_spike:
            self.spike_at = -1
        yield RATE * 1000 if is_spike else RATE
        if hook is not None:
            hook.remove()

    def saved_steps(self) -> list[int]:
        from toolkit.checkpoint import layout

        assert self.saver.finish(300) is None
        return self.world.gather(layout.list_steps(self.dir.checkpoints_dir))[0]

    def load(self, step: int) -> int:
        from toolkit.checkpoint.restore import load

        options: dict[str, Any] = {"world": self.world, "expected": tiny_index(0), "mirror": None, "up_to": step}
        weights = self.engine.named_weights()
        return int(load(self.engine.deepspeed, weights, self.dir.checkpoints_dir, **options).index.step)

    def save(self) -> None:
        self.saver.start(self.engine.deepspeed, self.engine.named_weights(), index=tiny_index(self.step))
        self.saved_step = self.step


def run_with_faults_and_without(world: Any, cfg: RunConfig, root: Path) -> dict[str, Any]:
    """Run with faults; then without, leaving out from the start what the faulty run left out."""
    if world.rank == 0:
        (root / "faulty").mkdir()
        (root / "clean").mkdir()
    world.barrier()
    run = Run(world, cfg, root / "faulty").run()
    clean = Run(world, cfg, root / "clean", skips=run.guard.skips).run()
    same = zip(state_of(run.engine), state_of(clean.engine), strict=True)
    told = {"acts": run.acts, "losses": run.losses, "clean": clean.losses, "clean acts": clean.acts}
    return {**told, "equal": all(a.equal(b) for a, b in same)}


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_run_that_met_bad_samples_equals_one_that_never_read_them(
    place: tuple[int, int, int, str], tmp_path: Path
) -> None:
    cfg = configure(place, make_dataset(tmp_path)[0])
    by_rank = run_ranks(run_with_faults_and_without, world_size=cfg.world_size, args=(cfg, tmp_path))
    for told in by_rank:
        *bad, spike = told["acts"]
        assert bad == [("skip", 10, None), ("skip", 20, None), ("roll back", 20, 16), ("skip", 20, None)]
        assert (spike[0], spike[2]) == ("roll back", 32), "40 is newer than the samples that led to it"
        assert told["clean acts"] == []
        assert told["losses"] == told["clean"]
        assert told["equal"]
    check_files(cfg, RunDir(tmp_path / "faulty"))


def check_files(cfg: RunConfig, run_dir: RunDir) -> None:
    lines = [json.loads(line) for line in run_dir.skips_path.read_text().splitlines()]
    ranges = [(line["first_position"] // SAMPLES, line["stop_position"] // SAMPLES) for line in lines]
    assert ranges[:4] == [(10, 11), (21, 22), (22, 23), (23, 24)]
    loader = open_loader(cfg)
    assert lines[0]["samples"]["text"] == loader.samples_at(10 * SAMPLES, 11 * SAMPLES)[1].tolist()
    directory = run_dir.bad_step_dir(11, position=10 * SAMPLES)
    told = json.loads((directory / "step.json").read_text())
    assert told["checkpoint"] == 8
    assert told["loss"] == "nan"
    assert [(one["replica"], one["micro_index"]) for one in told["bad"]] == [(1, number) for number in range(2)]
    rank = cfg.world_size - 1
    assert told["ranks"][-1] == f"rank {rank} on node1"
    tensors = load_file(directory / f"rank-{rank}.safetensors")
    tokens, labels = loader.micro_batches(10, replica=1)[1]
    assert torch.equal(tensors["1/tokens"], tokens)
    assert torch.equal(tensors["1/labels"], labels)


def compute_at_unequal_pace(world: Any, cfg: RunConfig) -> list[dict[str, float]]:
    import logging
    import time

    from toolkit.topology import Topology
    from toolkit.train.pace import Pace

    said: list[str] = []
    logging.getLogger("toolkit").setLevel(logging.INFO)
    logging.getLogger("toolkit.train.pace").addFilter(lambda record: said.append(record.getMessage()) or True)
    engine, replica = build(world, cfg)
    limits = dataclasses.replace(cfg.faults, straggler_ratio=6.0)  # a busy machine makes short passes unequal
    pace = Pace(limits, world, topology=Topology(stages=cfg.parallel.stages, replicas=cfg.replicas), window=3)
    loader = open_loader(cfg)
    if world.rank == 1:
        slow = next(module for module in engine._module.modules() if type(module).__name__ == "Block")
        slow.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    values = []
    for step in range(6):
        result = engine.train_step(loader.micro_batches(step, replica=replica), learning_rate=RATE)
        values.append(pace.take(result.forward_s))
    return [*values, said]


@pytest.mark.parametrize("place", [(1, 2, 1, "fp32"), (2, 2, 1, "fp32")], ids=str)
def test_a_slow_rank_is_named_among_those_with_the_same_layers(
    place: tuple[int, int, int, str], tmp_path: Path
) -> None:
    cfg = configure(place, make_dataset(tmp_path)[0])
    *values, said = run_ranks(compute_at_unequal_pace, world_size=cfg.world_size, args=(cfg,))[0]
    assert [bool(value) for value in values] == [False, False, True] * 2
    assert values[-1]["speed/slowest_ratio"] > 6
    assert len(said) == 1
    assert said[0].startswith("rank 1 on node1 is slow: it computes ")
