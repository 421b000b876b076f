"""Complete checkpoints of made bytes, for tests that move them about."""

import os
from pathlib import Path

import xxhash

from toolkit.checkpoint import layout
from toolkit.checkpoint.layout import Index, Part, Slice


def make_checkpoint(checkpoints_dir: Path, step: int) -> Path:
    path = layout.step_dir(checkpoints_dir, step=step)
    path.mkdir(parents=True)
    parts = []
    for number in range(3):
        data = os.urandom(1000)
        (path / layout.part_name(number)).write_bytes(data)
        xxh3 = xxhash.xxh3_128_hexdigest(data)
        slices = (Slice(name=f"{number}.weight", shape=(8, 10), start=0, stop=80),)
        parts.append(Part(path=layout.part_name(number), num_bytes=1000, xxh3=xxh3, slices=slices))
    index = Index(step=step, updates=step, tokens_per_step=1, seed=0, dataset="d", model={"a": 1}, parts=tuple(parts))
    layout.write_index(path, index)
    return path
