# run_tasks COMMAND...: runs srun and leaves the tasks' exit code in `code`. Sourced by the job script, so that what follows
# can act on every end of the tasks.
# - When a task fails, the others are told to end, and killed 6 s later. srun --kill-on-bad-exit=1 would give them KillWait
#   (30 s by default), and a step that it is ending takes no other signal meanwhile: so COMMAND says --kill-on-bad-exit=0.
# - At the time limit and at a cancel Slurm sends SIGTERM to this shell and to the tasks, and KillWait later SIGKILL to all.
#   Tasks that live on until a third of that has passed are no longer waited for: code is 124.
run_tasks() {
  local told="" tasks kill_wait
  trap 'told=1' TERM # a handler, not "ignore": what is ignored here would be ignored by the tasks
  echo "attempt $TOOLKIT_ATTEMPT" # all attempts of a job write to this log
  "$@" 2> >(end_survivors) &
  tasks=$!
  code=0
  wait "$tasks" || code=$?
  trap '' TERM # from here on ignored by all that starts: Slurm's SIGTERM may come while the epilogue does
  [ -n "$told" ] || return 0
  kill_wait=$(timeout 3 scontrol show config 2>/dev/null | sed -n 's/^KillWait *= *\([0-9]*\).*/\1/p' || true)
  for _ in $(seq "${kill_wait:-30}"); do
    kill -0 "$tasks" 2>/dev/null || break
    sleep 0.33 || true
  done
  code=124
  kill -0 "$tasks" 2>/dev/null || { code=0; wait "$tasks" || code=$?; }
}

# Passes on what srun says, and acts on its first `srun: error: node3: task 1: Killed`.
end_survivors() {
  local line killer=""
  while IFS= read -r line; do
    printf '%s\n' "$line" >&2
    if [ -z "$killer" ] && [[ "$line" =~ ^srun:\ error:\ .*:\ tasks?\ [0-9,-]+:\  ]]; then
      {
        scancel --signal=TERM "$SLURM_JOB_ID"
        scancel --signal=CONT "$SLURM_JOB_ID" # a task that is stopped hears SIGTERM then
        sleep 6
        # the step is named: SIGKILL to a job would cancel it
        squeue -h -s -j "$SLURM_JOB_ID" -o %i | grep -E '\.[0-9]+$' | xargs -r -n 1 scancel --signal=KILL
      } >/dev/null 2>&1 </dev/null &
      killer=$!
    fi
  done
  if [ -n "$killer" ]; then kill "$killer" 2>/dev/null || true; fi
}
