#!/usr/bin/env bash
# Trains on the GPUs of several nodes under SLURM, one process for each GPU, and goes on after a time limit or preemption:
#
#   sbatch --nodes=2 launch/slurm.sh --config=configs/asap.py:cityscapes --config.batch_size=16 \
#     --config.optim.lr=0.01 --config.input.root=DIR --workdir=DIR
#
# The batch is that of all GPUs together, here of 16; the rate goes with it.
# Three minutes before the end SLURM sends SIGTERM: the run saves, ends with 0, and the job is queued again, which goes
# on from there, until the run has written its evaluation.json. Every argument is one of rtseg_jax.main. $PYTHON is the interpreter.
#
#SBATCH --job-name=rtseg_jax
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%j.log
# Every process must see all GPUs of its node: jax gives the n-th process the n-th of them. So no --gpus-per-task here.
set -euo pipefail

workdir=
for argument in "$@"; do
  case $argument in --workdir=*) workdir=${argument#--workdir=} ;; esac
done
if [[ -z $workdir ]]; then echo "error: give --workdir=DIR on a disk that all nodes share" >&2 && exit 2; fi

# On the workdir's disk: its clock says below whether the report is of this job.
started=$(mktemp "$(dirname "$workdir")/.rtseg_started_XXXXXX")
trap 'rm -f "$started"' EXIT
srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m rtseg_jax.main --distributed "$@"
# 0 also stands for saved in time.
if [[ ! $workdir/evaluation.json -nt $started ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
