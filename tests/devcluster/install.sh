#!/usr/bin/env bash
# Install a real Slurm and what a real HDFS needs for the tests, where this runs as root on Debian; quiet when they are there.
set -euo pipefail
cd "$(dirname "$0")/../.."
PATH=$PATH:/usr/sbin
log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made_policy=
trap 'rm -f "$log" $made_policy' EXIT

has() { command -v "$1" >/dev/null; }
is_updated=
update() { [ "$is_updated" ] || apt-get update; is_updated=1; }
install() { # WHAT PACKAGE...: as root on Debian, else say how to enable the tests
  local what=$1; shift
  if [ "$(id -u)" != 0 ] || ! has apt-get; then
    echo "no $what here: its tests will skip (as root on Debian they install $*)"
    return 1
  fi
  echo "installing $what for the tests"
  # packages start their daemons, which no test wants: Debian asks this script whether they may
  [ -e "$policy" ] || { made_policy=$policy; printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; }
  { update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 ||
    { tail -n 20 "$log"; echo "could not install $what: its tests will skip"; return 1; }
}

has_all() { local name; for name; do has "$name" || return 1; done; }
has_all slurmctld slurmd sbatch munged || install Slurm slurmctld slurmd slurm-client munge || true
has_all slurmdbd mariadbd mariadb-install-db ||
  install "Slurm's accounting" slurmdbd slurm-wlm-mysql-plugin mariadb-server || true

fetch() { # WHAT ORIGIN SCRIPT: what lies in the cache folder afterwards and is not installed
  fetch_it() { .venv/bin/python "tests/devcluster/$3" fetch; }
  fetch_it "$@" >"$log" 2>&1 || { update && fetch_it "$@"; } >"$log" 2>&1 ||
    { tail -n 5 "$log"; echo "no $1 here: its tests will skip (it comes from $2)"; }
}
fetch "newer Slurm" "Debian packages" releases.py
has java || install Java openjdk-17-jre-headless || exit 0
fetch HDFS "pip and Debian packages" minihdfs.py
