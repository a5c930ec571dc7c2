#!/usr/bin/env bash
# Trains on several machines that can be reached by ssh, one process on each, with all of its devices:
#
#   launch/multihost.sh node1 node2 -- --config=configs/asap.py:cityscapes --config.input.root=DIR --workdir=DIR
#
# The batch, 4 in this config, is that of all devices together and a multiple of their number.
# The checkout and the workdir lie at the same path everywhere, on a shared disk. "localhost" is a process on this machine:
# `localhost localhost` tries it out on a CPU. Ctrl-C stops all, which save first; where one fails, so do the others.
# $PORT of the first machine must be free (12355), $PYTHON is the interpreter on each.
set -euo pipefail

hosts=()
while (($#)) && [[ $1 != -- ]]; do hosts+=("$1") && shift; done
if ((${#hosts[@]} == 0 || $# < 2)); then sed -n '2,10s/^# \{0,1\}//p' "$0" >&2 && exit 2; fi
shift
cd "$(dirname "$0")/.."
common=("${PYTHON:-python}" -m rtseg_jax.main --distributed "--coordinator=${hosts[0]}:${PORT:-12355}")
common+=("--num_processes=${#hosts[@]}" "$@")

processes=() interrupted=""
stop() { kill -TERM "${processes[@]}" 2> /dev/null || true; }
trap 'interrupted=1; stop' INT TERM
for i in "${!hosts[@]}"; do
  command=("${common[@]}" "--process_id=$i")
  if [[ ${hosts[i]} == localhost ]]; then
    "${command[@]}" &
  else
    # A terminal of its own, so that the process there ends with the connection.
    ssh -tt -o BatchMode=yes "${hosts[i]}" "cd $(printf %q "$PWD") && exec$(printf ' %q' "${command[@]}")" < /dev/null &
  fi
  processes+=($!)
done

status=0
while [[ $(jobs -p) ]]; do
  interrupted="" code=0
  wait -n || code=$?
  if [[ $interrupted ]]; then continue; fi  # a signal to this script ended the wait, no process did
  if ((code > 0 && status == 0)); then status=$code && stop; fi  # the first one's code: the others are stopped
done
exit "$status"
