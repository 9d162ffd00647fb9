#!/bin/bash
# Trains on 64 GPUs of 8 machines under Slurm: sbatch slurm.sh. BUNDLE and DATA are on a file system of all machines.
#SBATCH --job-name=regnet-train
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${BUNDLE:=$PWD/regnet-bundle}"
: "${DATA:=/datasets/imagenet}"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
stopped=0
# 120 s before the end of the job's time: the processes write a checkpoint and end, and the job is queued again.
trap 'stopped=1; kill -TERM "$step"' TERM

# One launcher on each machine, which starts a process for each of its GPUs.
srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" \
  --nproc-per-node 8 \
  --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
  --rdzv-endpoint "$head:29400" \
  --max-restarts 3 \
  -m regnet_deploy train "$BUNDLE" --data "$DATA" --epochs 100 --batch-size 1024 --lr 0.1 --sync-bn &
step=$!

code=0
wait "$step" || code=$?
if [ "$stopped" = 1 ]; then
  wait "$step" || true # the trap has ended the first wait
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
