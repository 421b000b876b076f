"""How long a save keeps training waiting: against a copy of the same bytes in memory, and against waiting for the disk.

One process trains a model on made tokens (ZeRO 1), saves in the background, and goes on with its steps meanwhile; then
it saves and waits, as a synchronous save would. The first save also gets the memory for the copy.
"""

import argparse
import dataclasses
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from toolkit.checkpoint.layout import Index
from toolkit.checkpoint.saver import Saver
from toolkit.config.load import load_config
from toolkit.config.schema import RunConfig
from toolkit.distributed import Place, World
from toolkit.train.engine import Engine, build_engine

_INTERVAL_S = 600.0


def main() -> None:
    """Time some saves and print what they cost, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=768, help="width of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, default=8, help="layers of the model (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4, help="saves of each kind (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="steps timed without a save (default: %(default)s)")
    parser.add_argument("--zero-stage", type=int, default=1, help="ZeRO stage (default: %(default)s)")
    parser.add_argument("--dir", type=Path, default=None, help="where to save (default: the temporary directory)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    world = open_world()
    directory = Path(tempfile.mkdtemp(dir=asked.dir))
    try:
        figures = measure(world, directory, asked)
    finally:
        shutil.rmtree(directory)
    world.close()
    for name, value in figures.items():
        print(f"{name:<22} {value:.4g}")
    if asked.json:
        print(json.dumps(figures))


def open_world() -> World:
    """Make a world of one rank."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = int(server.getsockname()[1])
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    place = Place(
        rank=0, world_size=1, local_rank=0, local_size=1, node="node1", master_addr="127.0.0.1", master_port=port,
        job_id="1", attempt="1.0", cluster="local",
    )  # fmt: skip
    return World(place, timeout_s=1800)


def make_config(asked: argparse.Namespace) -> RunConfig:
    """Give a configuration with one small micro-batch a step."""
    cfg = load_config(None, flags={"cluster.gpus_per_node": 1}).config
    sizes = {"hidden_size": asked.hidden, "intermediate_size": asked.hidden * 8 // 3 // 32 * 32}
    heads = {"num_attention_heads": asked.hidden // 64, "num_key_value_heads": asked.hidden // 64}
    return dataclasses.replace(
        cfg,
        model=dataclasses.replace(cfg.model, num_hidden_layers=asked.layers, vocab_size=8192, **sizes, **heads),
        parallel=dataclasses.replace(
            cfg.parallel, stages=1, zero_stage=asked.zero_stage, recompute=False, precision="fp32"
        ),
        data=dataclasses.replace(cfg.data, seq_len=256),
        batch=dataclasses.replace(cfg.batch, tokens_per_step=512, micro_batch=2),
    )


def measure(world: World, directory: Path, asked: argparse.Namespace) -> dict[str, float]:
    """Time steps and saves; seconds are medians."""
    engine = build_engine(make_config(asked), boundaries=[], device=world.device)
    rows = torch.randint(8192, (2, 257), generator=torch.Generator().manual_seed(0))
    batch = (rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    def step() -> float:
        return time_call(lambda: engine.train_step([batch], learning_rate=1e-4))

    step()
    alone = [step() for _ in range(asked.steps)]
    saver = Saver(directory, world=world, replica=0, replicas=1, keep=1, keep_every=None, mirror=None, timeout_s=1500)
    first_stall_s = save(saver, engine, 1)
    finish(saver)
    stalls, beside, seconds, num_bytes = [], [], [], 0
    for number in range(asked.rounds):
        stalls.append(save(saver, engine, number + 2))
        while saver.is_writing:
            beside.append(step())
        saved = finish(saver)
        seconds.append(saved[0])
        num_bytes = saved[1]
    waits = [
        time_call(lambda number=number: (save(saver, engine, number + 100), finish(saver)))  # type: ignore[misc]
        for number in range(asked.rounds)
    ]
    stall_s, copy_s, wait_s = statistics.median(stalls), time_copy(num_bytes), statistics.median(waits)
    return {
        "gib": num_bytes / 2**30,
        "copy_s": copy_s,
        "first_stall_s": first_stall_s,
        "stall_s": stall_s,
        "stall_to_copy": stall_s / copy_s,
        "synchronous_s": wait_s,
        "synchronous_to_stall": wait_s / stall_s,
        "written_s": statistics.median(seconds),
        "step_s": statistics.median(alone),
        "step_while_writing_s": statistics.median(beside),
        "step_slowdown": statistics.median(beside) / statistics.median(alone),
        "percent_of_10_minutes": 100 * stall_s / _INTERVAL_S,
    }


def save(saver: Saver, engine: Engine, step: int) -> float:
    """Begin a save; give how long it kept us."""
    index = Index(step=step, updates=0, tokens_per_step=512, seed=0, dataset="made", model={}, parts=())
    return saver.start(engine.deepspeed, engine.named_weights(), index=index)


def finish(saver: Saver) -> tuple[float, int]:
    """Wait for a save; give its seconds and bytes."""
    problem = saver.finish(1500)
    saved = saver.poll()
    assert problem is None, problem
    return saved.seconds, saved.num_bytes  # type: ignore[union-attr]


def time_copy(num_bytes: int) -> float:
    """Time a copy in memory into pages that are there already."""
    source, target = torch.ones(num_bytes // 4), torch.ones(num_bytes // 4)
    return statistics.median(time_call(lambda: target.copy_(source)) for _ in range(5))


def time_call(act: Callable[[], object]) -> float:
    """Time a call, in seconds."""
    started = time.monotonic()
    act()
    return time.monotonic() - started


if __name__ == "__main__":
    main()
