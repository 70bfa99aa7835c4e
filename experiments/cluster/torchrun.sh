#!/bin/bash
# One experiment on machines without a scheduler, one process per GPU. Run the same line on every machine, with the address of
# the first; NODES and GPUS (of each) are 1 unless set:
#   NODES=2 GPUS=8 HEAD=10.0.0.1 NAME=first experiments/cluster/torchrun.sh rag_token key=value ...
# The same line again resumes the run. The folder must be one that all machines see.
set -eu
experiment=$1
shift
nodes=${NODES:-1}
gpus=${GPUS:-1}
run=runs/$experiment/job-$NAME # the run folder that openbook chooses for torchrun's id

if [ -f "$run/config.yaml" ]; then
    set -- resume "$run"
else
    set -- train "$experiment" "trainer.devices=$gpus" "trainer.nodes=$nodes" "$@"
fi
exec torchrun --nnodes="$nodes" --nproc-per-node="$gpus" --rdzv-backend=c10d --rdzv-endpoint="${HEAD:-127.0.0.1}:29400" \
    --rdzv-id="$NAME" --max-restarts=0 -m openbook "$@"
