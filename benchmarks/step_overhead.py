"""Our optimizer step against a plain torch loop: same model, batch, seed and dtype, one process.

Steps of both are interleaved and timed in CPU seconds; printed is the ratio of the medians of pairs.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from toolkit.config.load import load_config
from toolkit.config.schema import RunConfig
from toolkit.distributed import keep_freed_memory
from toolkit.model.llama import Llama, token_loss
from toolkit.train.engine import build_engine, build_optimizer

SIZES = {  # name: hidden, layers, seq_len, batch
    "tiny": (128, 4, 64, 12),
    "small": (384, 4, 256, 16),
    "wide": (768, 4, 256, 4),
}


def main() -> None:
    """Time each size and print a table, or JSON on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="pairs of steps of each size (default: %(default)s)")
    parser.add_argument("--zero-stage", type=int, default=1, help="ZeRO stage of our step (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    open_process_group()
    figures = {}
    for name, size in SIZES.items():
        cfg = make_config(size, zero_stage=asked.zero_stage)
        found = figures[name] = compare(cfg, pairs=asked.pairs)
        times = f"{found['ours_s']:.3f} s against {found['plain_s']:.3f} s, ratio {found['ratio']:.3f}"
        print(f"{name:<6} hidden {size[0]}: {times} (losses differ by {found['loss_difference']:.1e})", flush=True)
    if asked.json:
        print(json.dumps(figures))


def open_process_group() -> None:
    """Make a world of one, without a network."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", DS_ACCELERATOR="cpu")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)


def make_config(size: tuple[int, int, int, int], *, zero_stage: int) -> RunConfig:
    """Give the configuration of a size; one micro-batch a step."""
    hidden, layers, seq_len, batch = size
    cfg = load_config(None, flags={"cluster.gpus_per_node": 1}).config
    heads = hidden // 64
    model = replace(
        cfg.model,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    parallel = replace(cfg.parallel, stages=1, zero_stage=zero_stage, recompute=False, precision="fp32")
    data = replace(cfg.data, seq_len=seq_len)
    return replace(
        cfg, model=model, parallel=parallel, data=data,
        batch=replace(cfg.batch, tokens_per_step=batch * seq_len, micro_batch=batch),
    )  # fmt: skip


def compare(cfg: RunConfig, *, pairs: int) -> dict[str, float]:
    """Run both steps by turns on the same batches."""
    ours = build_engine(cfg, boundaries=[], device=torch.device("cpu"))
    plain = plain_step(cfg)
    shape = (cfg.samples_per_step, cfg.data.seq_len + 1)
    times: list[tuple[float, float]] = []
    difference = 0.0
    for pair in range(pairs + 2):
        rows = torch.randint(cfg.model.vocab_size, shape, generator=torch.Generator().manual_seed(pair))
        batch = (rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
        acts: list[Callable[[], float]] = [
            lambda batch=batch: ours.train_step([batch], learning_rate=1e-4).loss,  # type: ignore[misc]
            lambda batch=batch: plain(*batch),  # type: ignore[misc]
        ]
        order = (0, 1) if pair % 2 else (1, 0)
        spent, losses = [0.0, 0.0], [0.0, 0.0]
        for which in order:
            started = time.process_time()
            losses[which] = acts[which]()
            spent[which] = time.process_time() - started
        difference = max(difference, abs(losses[0] - losses[1]))
        if pair >= 2:  # the first steps allocate
            times.append((spent[0], spent[1]))
    return {
        "ours_s": statistics.median(a for a, _ in times),
        "plain_s": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
        "loss_difference": difference,
    }


def plain_step(cfg: RunConfig) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Give the step that a person would write by hand."""
    module = Llama(cfg.model, seed=cfg.run.seed, recompute=False)
    optimizer = build_optimizer(list(module.parameters()), cfg.optim)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4

    def step(tokens: torch.Tensor, labels: torch.Tensor) -> float:
        loss = token_loss(module(tokens), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), cfg.optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
