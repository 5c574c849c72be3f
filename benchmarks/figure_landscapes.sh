#!/usr/bin/env bash
# The paper's first figure at small scale: the loss along a random, filter-normalized direction around three minima of one
# network, reached by full-batch gradient descent, with clipping, and with clipping and regularization.
#   benchmarks/figure_landscapes.sh [FOLDER]
# Trains on the digits, computes the three lines and draws them side by side in landscapes.png, in a few minutes on two
# cores. All files are written to FOLDER (landscapes); the same command continues there.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
python=python
[[ -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"
mkdir -p "${1:-landscapes}"
cd "${1:-landscapes}"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"

for name in fb fbclip gradreg; do
    template=$name
    [[ $name == fb ]] && template=fb2
    "$python" "$root/train_with_gradient_descent.py" "name=$name" "impl.checkpoint.name=$name" seed=0 \
        data=digits data.size=500 data.augmentations_train= model=resnet20 model.width=8 "hyp=$template" \
        hyp.steps=100 hyp.warmup=20 hyp.scheduler=cosine-decay hyp.optim.lr=0.4 impl.threads=1 \
        impl.validate_every_nth_step=50
    "$python" "$root/crunch_loss_landscape.py" "impl.checkpoint.name=$name" impl.threads=1 \
        viz.coordinates.x.num=21 'viz.formats=[csv]'
done
"$python" "$root/benchmarks/compare_landscapes.py" --image landscapes.png fb fbclip gradreg
