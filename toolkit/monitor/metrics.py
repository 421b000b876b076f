"""Names of what is measured, and the line that shows it.

train/loss and validation/loss: nats a token, mean over all samples of the step. train/grad_norm: before
clipping, absent where DeepSpeed does not tell. speed/tokens_per_s: over all ranks, mean of the newest steps.
speed/mfu: of the devices' 16-bit peak, absent on CPU. speed/data_fraction: part of the step spent reading.
speed/slowest_ratio: computing time of the slowest rank over the median of its peers, now and then.
memory/peak_gib: most that the tensors of a rank have taken, of the fullest one, as of the step before; absent on CPU.
An unknown figure is absent.
"""

from collections.abc import Callable, Mapping

LOSS = "train/loss"
GRAD_NORM = "train/grad_norm"
LEARNING_RATE = "train/learning_rate"
TOKENS = "train/tokens"
TOKENS_PER_S = "speed/tokens_per_s"
STEP_S = "speed/step_s"
MFU = "speed/mfu"
DATA_FRACTION = "speed/data_fraction"
SLOWEST = "speed/slowest_ratio"
PEAK_GIB = "memory/peak_gib"
VALIDATION_LOSS = "validation/loss"
ETA_S = "eta_s"


def step_line(step: int, *, num_steps: int, values: Mapping[str, float]) -> str:
    """Write the dense line of a step; what is not known is left out."""
    shown: list[tuple[str, Callable[[float], str]]] = [
        (LOSS, lambda v: f"loss {v:.3f}"),
        (VALIDATION_LOSS, lambda v: f"validation {v:.3f}"),
        (LEARNING_RATE, lambda v: f"lr {v:.1e}"),
        (GRAD_NORM, lambda v: f"grad {v:.2f}"),
        (TOKENS_PER_S, lambda v: f"{short(v)} tok/s"),
        (MFU, lambda v: f"mfu {v:.1%}"),
        (DATA_FRACTION, lambda v: f"data {v:.1%}"),
        (PEAK_GIB, lambda v: f"mem {v:.1f} GiB"),
        (ETA_S, lambda v: f"eta {duration(v)}"),
    ]
    parts = [write(values[name]) for name, write in shown if name in values]
    return " | ".join([f"step {step}/{num_steps}", *parts])


def short(number: float) -> str:
    """Write a large number with a letter: 812k."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """Write a time: 9h12m, 3m05s, 12s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
