# run_tasks COMMAND...: runs srun and leaves the tasks' exit code in `code`. Sourced by the job script, so that what follows
# can act on every end of the tasks.
# - Survivors of a failed task, which srun tells to end, are killed after 6 s; srun itself would wait for KillWait (30 s).
# - At the time limit and at a cancel Slurm sends SIGTERM to this shell and to the tasks, and KillWait later SIGKILL to all.
#   Tasks that live on until a third of that has passed are no longer waited for: code is 124.
run_tasks() {
  local told="" tasks kill_wait
  trap 'told=1' TERM # a handler, not "ignore": what is ignored here would be ignored by the tasks
  "$@" 2> >(end_survivors) &
  tasks=$!
  code=0
  wait "$tasks" || code=$?
  [ -n "$told" ] || return 0
  kill_wait=$(timeout 3 scontrol show config 2>/dev/null | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p' || true)
  for _ in $(seq "${kill_wait:-30}"); do
    kill -0 "$tasks" 2>/dev/null || break
    sleep 0.33 || true
  done
  code=124
  kill -0 "$tasks" 2>/dev/null || { code=0; wait "$tasks" || code=$?; }
}

# Passes on what srun says: `srun: error: node3: task 1: Killed`, `srun: launch/slurm: ...: Terminating StepId=7.0`.
# The step is named: SIGKILL to a job would cancel it.
end_survivors() {
  local line seen=""
  while IFS= read -r line; do
    printf '%s\n' "$line" >&2
    if [ -z "$seen" ] && [[ "$line" =~ ^srun:.*\ Terminating\ .*(StepId=|step\ )([0-9]+\.[0-9]+) ]]; then
      seen=1
      { sleep 6; scancel --signal=KILL "${BASH_REMATCH[2]}" 2>/dev/null || true; } &
    fi
  done
}
