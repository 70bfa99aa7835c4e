#!/bin/bash
# One experiment on SLURM, one process per GPU; it resumes itself when its time is over or it is preempted.
#   sbatch --nodes=1 --ntasks-per-node=8 --gpus-per-node=8 --time=24:00:00 experiments/cluster/slurm.sh rag_token key=value ...
# `make submit EXP=rag_token GPUS=8` writes that line. OPENBOOK is the command, `openbook` of the environment that was
# active when the job was submitted unless it is set, for example to a container's (experiments/cluster/container.sh).
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=USR1@180
#SBATCH --open-mode=append
#SBATCH --output=openbook-%j.log
set -u
experiment=$1
shift
run=runs/$experiment/job-$SLURM_JOB_ID # the run folder that openbook chooses in a job

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-8}

if [ -f "$run/config.yaml" ]; then
    set -- resume "$run"
else
    set -- train "$experiment" "trainer.devices=$SLURM_NTASKS_PER_NODE" "trainer.nodes=$SLURM_JOB_NUM_NODES" "$@"
fi
srun --kill-on-bad-exit=1 ${OPENBOOK:-openbook} "$@"
code=$?
# 138: stopped by USR1, three minutes before the end, with everything saved.
if [ "$code" -eq 138 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
