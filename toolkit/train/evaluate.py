"""The validation loss: the same samples each time, whatever the layout."""

from collections.abc import Callable, Sequence

from toolkit.config.schema import RunConfig
from toolkit.data.loader import StepLoader, open_streams
from toolkit.data.mixture import Member
from toolkit.data.stream import Locate
from toolkit.monitor import metrics
from toolkit.train.engine import Engine, batch_shape

_MAX_MAPPED = 64  # shards of validation are few, and read in order


class Validation:
    """Reads the first samples of each dataset's validation split in the order of the corpus.

    It works in whole steps, so that every layout reads the same samples: `monitor.eval_samples` is
    rounded up to a multiple of the samples of a step, and a short split starts again from its beginning.
    """

    def __init__(
        self, cfg: RunConfig, members: Sequence[Member], *, locate_in: Callable[[str], Locate], replica: int
    ) -> None:
        streams = open_streams(
            members, "validation", seq_len=cfg.data.seq_len, locate_in=locate_in, max_mapped=_MAX_MAPPED
        )
        self._members = tuple(members)
        self._loaders = [
            StepLoader(
                [stream],
                shares=[1.0],
                seq_len=cfg.data.seq_len,
                batch=batch_shape(cfg),
                seed=cfg.run.seed,
                shuffle=False,
                replica_split="index",
                document_end=members[0].manifest.tokenizer.eos_id if cfg.data.document_mask else None,
                pin_memory=False,
            )
            for stream in streams
        ]
        self._num_steps = -(-cfg.monitor.eval_samples // cfg.samples_per_step)
        self._replica = replica

    def losses(self, engine: Engine) -> dict[str, float]:
        """Measure; every rank calls it.

        Returns:
            `validation/loss`; of a mixture the mean weighted by the datasets' shares (the loss on the text that is
            trained on), with each dataset's own as `validation/loss/NAME`.
        """
        losses = [self._loss(engine, loader) for loader in self._loaders]
        pairs = list(zip(self._members, losses, strict=True))
        values = {metrics.VALIDATION_LOSS: sum(member.share * loss for member, loss in pairs)}
        if len(pairs) > 1:
            values |= {f"{metrics.VALIDATION_LOSS}/{member.name}": loss for member, loss in pairs}
        return values

    def _loss(self, engine: Engine, loader: StepLoader) -> float:
        """Average over the labels: with `data.document_mask` steps do not have equally many."""
        steps = range(self._num_steps)
        measured = [engine.eval_loss(loader.micro_batches(step, replica=self._replica)) for step in steps]
        return sum(one.loss * one.num_labels for one in measured) / sum(one.num_labels for one in measured)
