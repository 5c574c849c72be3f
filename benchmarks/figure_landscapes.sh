#!/usr/bin/env bash
# The paper's first figure in small: the loss along a random, filter-normalised direction around three minima of one
# network, found by full-batch gradient descent, with the gradient clipped, and clipped and regularized, too.
#   benchmarks/figure_landscapes.sh [FOLDER]
# Trains on the digits, computes the three lines and draws them side by side as landscapes.png; a few minutes on two cores.
# Everything is left in FOLDER (landscapes), where the line given again continues.
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
