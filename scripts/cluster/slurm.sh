#!/usr/bin/env bash
# sbatch scripts/cluster/slurm.sh fit -c configs/multi30k/transformer.yaml -c configs/trainer/ddp.yaml
#
# One task for each GPU. 90 seconds before the time is up SLURM sends SIGUSR1: the run finishes its step, saves, and puts
# the job back into the queue; after a preemption or a lost machine SLURM does so itself. Either way this file runs
# again, and --ckpt_path last goes on from the newest checkpoint.
#SBATCH --job-name=litseq
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=04:00:00
#SBATCH --signal=SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
exec srun --kill-on-bad-exit=1 python -m litseq "$@" \
    --trainer.num_nodes "$SLURM_NNODES" --trainer.devices "$SLURM_NTASKS_PER_NODE" --ckpt_path last
