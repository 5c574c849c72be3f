#!/usr/bin/env bash
# The large experiments of "Stochastic Training is Not Necessary for Generalization": each on all GPUs of this machine or,
# within a SLURM allocation and started by srun with one task a node, of all its nodes.
#   ./train_distributed.sh list                        the names and their command lines
#   ./train_distributed.sh NAME [overrides...]         run one; the same line again continues it
#   srun --ntasks-per-node=1 ./train_distributed.sh fbaug_highreg_lr08_shuffle_resnet152 data.path=/data
set -euo pipefail

train="$(dirname "$0")/train.sh"
experiments=$("$train" list | grep "impl/setup=distributed")
name=${1:-list}
if [[ $name == list ]]; then
    echo "$experiments"
    exit
fi
if ! awk '{ print $1 }' <<<"$experiments" | grep -qxF -- "$name"; then
    echo "train_distributed.sh: no large experiment is named '$name'; ./train_distributed.sh list shows them all" >&2
    exit 2
fi
exec "$train" "$name" "impl.setup.world_size=${SLURM_NNODES:-1}" "${@:2}"
