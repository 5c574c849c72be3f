#!/usr/bin/env bash
# The paper's runs at full size, one after the other: the stochastic baseline, full batch, clipped, regularized, and
# regularized in blocks of 32 with shuffling.
#   benchmarks/full_size.sh FOLDER MINUTES [OVERRIDE...]
# FOLDER contains CIFAR-10 as images: train/<class>/* and test/<class>/*. After MINUTES each run saves and stops; it
# continues when the command is repeated. A run that fails does not prevent the others. Tables are written to tables/ and
# outputs/, checkpoints to checkpoints/.
set -euo pipefail
folder=${1:?usage: full_size.sh FOLDER MINUTES [OVERRIDE...]}
minutes=${2:?usage: full_size.sh FOLDER MINUTES [OVERRIDE...]}
root=$(cd "$(dirname "$0")/.." && pwd)
python=python
[[ -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"
PAUSED=143 # 128 + SIGTERM
failed=()
trap 'exit 130' INT TERM

run() { # run NAME OVERRIDES...
    local status=0
    timeout --signal=TERM "${minutes}m" "$python" "$root/train_with_gradient_descent.py" "name=$1" seed=0 \
        "impl.checkpoint.name=checkpoints/full_size/$1" data=imagefolder "data.path=$folder" \
        'data.augmentations_train={RandomCrop: [32, 4], RandomHorizontalFlip: 0.5}' \
        impl=fast impl.validate_every_nth_step=10 impl.checkpoint.save_every_nth_step=10 "${@:2}" || status=$?
    # 124: timeout has ended it
    [[ $status == 0 || $status == 124 || $status == "$PAUSED" ]] || failed+=("$1")
}

more=("${@:3}")
run base_sgd hyp=base_sgd "${more[@]}"
run fb1 hyp=fb1 "${more[@]}"
run fbclip hyp=fbclip "${more[@]}"
run gradreg hyp=gradreg "${more[@]}"
run gradreg_32_shuffle hyp=gradreg data.batch_size=32 hyp.shuffle=True "${more[@]}"
[[ ${#failed[@]} == 0 ]] || { echo "failed: ${failed[*]}" >&2 && exit 1; }
