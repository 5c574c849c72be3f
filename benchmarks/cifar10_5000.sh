#!/usr/bin/env bash
# The paper's comparison at small scale: 5,000 images of CIFAR-10, ResNet-20, a hundred steps, on a CPU.
#   benchmarks/cifar10_5000.sh FOLDER [SEED...]
# FOLDER contains train/<class>/* and test/<class>/*. Each run continues from its checkpoint when the command is repeated.
# Finite differences need float32; the other runs use bfloat16. Afterwards: python benchmarks/compare_runs.py
set -euo pipefail
folder=${1:?usage: cifar10_5000.sh FOLDER [SEED...]}
shift
seeds=("${@:-0}")
root=$(cd "$(dirname "$0")/.." && pwd)
python=python
[[ -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"

run() { # run NAME SEED OVERRIDES...
    "$python" "$root/train_with_gradient_descent.py" "name=$1_$2" "seed=$2" "impl.checkpoint.name=checkpoints/cifar10_5000/$1_$2" \
        data=imagefolder "data.path=$folder" data.size=5000 data.valid_size=2000 \
        'data.augmentations_train={RandomCrop: [32, 4], RandomHorizontalFlip: 0.5}' \
        model=resnet20 hyp.steps=100 impl.memory=channels_last impl.validate_every_nth_step=5 "${@:3}"
}

long=(hyp.warmup=13 hyp.scheduler=cosine-decay)
for seed in "${seeds[@]}"; do
    run base_sgd "$seed" hyp=base_sgd impl.mixed_precision=True
    run fb1 "$seed" hyp=fb1 impl.mixed_precision=True
    run fbclip "$seed" hyp=fbclip "${long[@]}" impl.mixed_precision=True
    run gradreg "$seed" hyp=gradreg "${long[@]}"
    run gradreg_32 "$seed" hyp=gradreg data.batch_size=32 "${long[@]}"
done
