"""Numbers in, verdict out."""

import math


def check_finite(*, step: int, loss: float, grad_norm: float | None) -> str | None:
    """Say what of a step is not a finite number; None: all is well."""
    if not math.isfinite(loss):
        return f"the loss of step {step} is {loss}"
    if grad_norm is not None and not math.isfinite(grad_norm):
        return f"the gradient norm of step {step} is {grad_norm}"
    return None
