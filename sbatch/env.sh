# What every rank's environment needs; sourced by the job script in the frozen code. The only place of it.
: "${SLURM_JOB_ID:?set by Slurm}"
export TOOLKIT_CLUSTER=slurm
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
export TOOLKIT_ATTEMPT="${job:-$SLURM_JOB_ID}.${SLURM_RESTART_COUNT:-0}"
# By which the ranks of an attempt know each other: see docs/security.md. It is in no file and on no command line.
TOOLKIT_SECRET=$(od -An -v -N32 -tx1 /dev/urandom | tr -d ' \n')
export TOOLKIT_SECRET
export MASTER_ADDR="${MASTER_ADDR:-$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)}"
# A port that nobody can foresee and take first, below the range that Linux gives to clients.
export MASTER_PORT=$((20000 + 16#${TOOLKIT_SECRET:0:6} % 12000))
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
# Slurm >= 22.05: srun does not inherit it, and a rank would get one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi
# A shell with SBATCH_EXPORT=NONE would keep all of this from the ranks.
export SLURM_EXPORT_ENV=ALL
# A dead peer ends a collective with an error instead of a hang.
export TORCH_NCCL_ASYNC_ERROR_HANDLING="${TORCH_NCCL_ASYNC_ERROR_HANDLING:-1}"
