#!/bin/bash
# openbook in a container, with this machine's GPUs and this folder; for Apptainer, or Docker where there is no Apptainer.
#   docker build -t openbook . && apptainer build openbook.sif docker-daemon://openbook:latest
#   experiments/cluster/container.sh train rag_token
#   OPENBOOK=experiments/cluster/container.sh make submit EXP=rag_token GPUS=8
set -eu
image=${IMAGE:-openbook.sif}
if command -v apptainer >/dev/null && [ -f "$image" ]; then
    exec apptainer exec --nv --bind "$PWD" --pwd "$PWD" "$image" openbook "$@"
fi
exec docker run --rm --init --gpus all --ipc=host --network=host --user "$(id -u):$(id -g)" --volume "$PWD:$PWD" --workdir "$PWD" \
    --env HOME=/tmp --env MASTER_ADDR --env MASTER_PORT --env OMP_NUM_THREADS --env SLURM_JOB_ID --env SLURM_PROCID \
    --env SLURM_LOCALID --env SLURM_NTASKS --env SLURM_NODEID --env WANDB_API_KEY "${IMAGE:-openbook}" openbook "$@"
