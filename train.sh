#!/usr/bin/env bash
# The experiments of "Stochastic Training is Not Necessary for Generalization" by name.
#   ./train.sh list                   the names and their command lines
#   ./train.sh NAME [overrides...]    run one, e.g. ./train.sh fbaug_gradreg_lr08 data.path=/data seed=1
set -euo pipefail

slurm="impl/setup=distributed impl.setup.rank=SLURM impl.setup.world_size=1 impl.setup.url=env://"

experiments() {
    cat <<TABLE
baseline_sgd                            hyp=base_sgd
fbaug_1                                 hyp=fb1
fbaug_2                                 hyp=fb2
fbaug_clip                              hyp=fbclip
fbaug_gradreg_lr08                      hyp=gradreg
fbaug_highreg_lr08                      hyp=gradreg data.batch_size=32
fbaug_highreg_lr08_shuffle              hyp=gradreg data.batch_size=32 hyp.shuffle=True
noaug_sgd                               hyp=base_sgd data.augmentations_train=
fb_noaug_1                              hyp=fb1 data.augmentations_train=
fb_noaug_2                              hyp=fb2 data.augmentations_train=
fb_noaug_clip                           hyp=fbclip data.augmentations_train=
fb_noaug_gradreg_lr08                   hyp=gradreg data.augmentations_train=
fb_noaug_highreg_lr08                   hyp=gradreg data.batch_size=32 data.augmentations_train=
TABLE
    for rounds in 10 40; do
        frozen="data/db=LMDB data.augmentations_train= data.db.rounds=$rounds"
        cat <<TABLE
SGD_${rounds}_CIFAR                            hyp=base_sgd $frozen hyp.train_semi_stochastic=True
fb_${rounds}_1                                 hyp=fb1 $frozen
fb_${rounds}_2                                 hyp=fb2 $frozen
fb_${rounds}_clip                              hyp=fbclip $frozen
fb_${rounds}_gradreg_lr08                      hyp=gradreg $frozen
fb_${rounds}_highreg_lr08                      hyp=gradreg data.batch_size=32 $frozen
TABLE
    done
    for model in resnet50 resnet152 densenet121; do
        cat <<TABLE
fbaug_1_$model                        hyp=fb1 model=$model $slurm impl.checkpoint.name=fbaug_1_$model
fbaug_2_$model                        hyp=fb2 model=$model $slurm impl.checkpoint.name=fbaug_2_$model
fbaug_clip_$model                     hyp=fbclip model=$model $slurm impl.checkpoint.name=fbaug_clip_$model
fbaug_gradreg_lr08_$model             hyp=gradreg model=$model $slurm impl.checkpoint.name=fbaug_gradreg_lr08_$model
fbaug_highreg_lr08_$model             hyp=gradreg data.batch_size=32 model=$model $slurm impl.checkpoint.name=fbaug_highreg_lr08_$model
fbaug_highreg_lr08_shuffle_$model     hyp=gradreg data.batch_size=32 hyp.shuffle=True model=$model $slurm impl.checkpoint.name=fbaug_highreg_lr08_shuffle_$model
TABLE
    done
}

name=${1:-list}
if [[ $name == list ]]; then
    experiments
    exit
fi
arguments=$(experiments | awk -v name="$name" '$1 == name { $1 = ""; print }')
if [[ -z $arguments ]]; then
    echo "train.sh: no experiment is named '$name'; ./train.sh list shows them all" >&2
    exit 2
fi
python=python
[[ -x "$(dirname "$0")/.venv/bin/python" ]] && python="$(dirname "$0")/.venv/bin/python"
read -ra words <<<"$arguments"
set -x
exec "$python" "$(dirname "$0")/train_with_gradient_descent.py" "name=$name" "${words[@]}" "${@:2}"
