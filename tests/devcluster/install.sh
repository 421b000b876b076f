#!/usr/bin/env bash
# Install a real Slurm for the tests, where this runs as root on Debian; say nothing when it is there.
set -euo pipefail
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && exit 0
PATH=$PATH:/usr/sbin
command -v slurmctld >/dev/null && command -v munged >/dev/null && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "no Slurm here: its tests will skip (as root on Debian they install slurmctld slurmd slurm-client munge)"
  exit 0
fi
echo "installing a Slurm for the tests"
log=$(mktemp)
{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge; } >"$log" 2>&1 ||
  { tail -n 20 "$log"; echo "could not install Slurm: its tests will skip"; }
rm -f "$log"
