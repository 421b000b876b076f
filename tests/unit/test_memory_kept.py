"""Memory that a rank on a CPU frees is used again without the kernel."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from toolkit.distributed import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch
for turn in range(18):  # where a block comes to lie settles in the first ones
    if turn == 12:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="another C library")
def test_large_tensors_take_the_pages_of_those_before_them() -> None:
    faults = {}
    for how in ("given back", "kept"):
        done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["kept"] < 0.1 * faults["given back"], faults
