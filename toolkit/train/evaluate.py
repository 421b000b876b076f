"""The validation loss: the same samples each time, whatever the layout."""

from toolkit.config.schema import RunConfig
from toolkit.data.loader import StepLoader
from toolkit.data.stream import TokenStream
from toolkit.train.engine import Engine, batch_shape


class Validation:
    """Reads the first samples of the validation split in the order of the corpus.

    It works in whole steps, so that every layout reads the same samples: `monitor.eval_samples` is
    rounded up to a multiple of the samples of a step, and a short split starts again from its beginning.
    """

    def __init__(self, cfg: RunConfig, stream: TokenStream, *, replica: int) -> None:
        self._loader = StepLoader(
            stream, seq_len=cfg.data.seq_len, batch=batch_shape(cfg), seed=cfg.run.seed, shuffle=False
        )
        self._num_steps = -(-cfg.monitor.eval_samples // cfg.samples_per_step)
        self._replica = replica

    def loss(self, engine: Engine) -> float:
        """Measure; every rank calls it."""
        steps = range(self._num_steps)
        losses = [engine.eval_loss(self._loader.micro_batches(step, replica=self._replica)) for step in steps]
        return sum(losses) / len(losses)
