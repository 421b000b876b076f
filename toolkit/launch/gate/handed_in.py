"""How many jobs a submission hands in: the run, what makes its data, a rehearsal."""

from toolkit import storage
from toolkit.launch.gate.context import Context
from toolkit.launch.prepare import ask_for, choose_num_tasks, stands

_PATIENCE_S = 5.0


def count_jobs(context: Context) -> int:
    """Count them as Slurm does: each task of an array is one."""
    return 1 + context.num_rehearsals + _count_data_jobs(context)


def _count_data_jobs(context: Context) -> int:
    if not context.cfg.data.source:
        return 0
    with storage.patience(_PATIENCE_S):
        if stands(ask_for(context.cfg.data)[1]):
            return 0
    return choose_num_tasks(context.spec.nodes, context.partition) + 1
