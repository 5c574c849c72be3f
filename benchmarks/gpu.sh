#!/usr/bin/env bash
# All measurements that need a CUDA device, without network: its tests, the table of speeds, the effect of low precision on
# gradients, the paper's runs at full size.
#   benchmarks/gpu.sh [--try] FOLDER MINUTES [RESULTS [PART...]]
# FOLDER contains CIFAR-10 as images: train/<class>/* and test/<class>/*. Each of the five runs stops after MINUTES (0.5 is
# half a minute) and continues when the command is repeated. The PARTs write to RESULTS (gpu_results). Without a PART all
# of them run, in this order:
#   tests      tests.log
#   speed      speed_<block size>.log and .json, cost.log and .json: ResNet-18, also compiled
#   precision  bfloat16_<seed>.log and .json, float16_<seed>.log and .json: the gradients of a ResNet-18; accuracy.log;
#              regularized.log: the regularized gradient compared with float64
#   full_size  full_size.log, and the runs' outputs/, tables/ and checkpoints/
#   others     others_<block size>.log and .json: ResNet-20, DenseNet-121
# A failure does not prevent the other measurements and is reported at the end. --try makes small versions of all of them on
# a CPU, within minutes.
set -uo pipefail
try=
[[ ${1-} == --try ]] && try=yes && shift
usage='usage: gpu.sh [--try] FOLDER MINUTES [RESULTS [PART...]]'
folder=$(realpath -e "${1:?$usage}") || exit 2
minutes=${2:?$usage}
parts=("${@:4}")
[[ ${#parts[@]} == 0 ]] && parts=(tests speed precision full_size others)
for name in "${parts[@]}"; do
    [[ $name =~ ^(tests|speed|precision|full_size|others)$ ]] || { echo "$name: unknown part; $usage" >&2 && exit 2; }
done
root=$(cd "$(dirname "$0")/.." && pwd)
python=python
[[ -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"
mkdir -p "${3:-gpu_results}" && results=$(cd "${3:-gpu_results}" && pwd) || exit 2
failed=()
trap 'exit 130' INT TERM

step() { # step NAME COMMAND...: its output in NAME.log
    echo "$1: ${*:2}" >&2
    "${@:2}" 2>&1 | tee "$results/$1.log" || failed+=("$1")
}

measure() { # measure NAME ARGUMENTS...: a table of speeds
    step "$1" "$python" "$root/benchmarks/speed.py" --json "$results/$1.json" "${@:2}"
}

low() { # low NAME ARGUMENTS...: low precision compared with float32
    step "$1" "$python" "$root/benchmarks/low_precision.py" --json "$results/$1.json" "${@:2}"
}

run_tests() { # run_tests ARGUMENTS...: the tests for a GPU
    step tests "$python" -m pytest "$root/tests" --rootdir="$root" -c "$root/pyproject.toml" -p no:benchmark -m gpu "$@"
}

small=(--turns 1 --short-turns 1 --device cpu --threads 1 --workers 1)
many=(--device cuda --turns 3 --workers "$(nproc)")

tests() {
    # on a CPU all of them would be skipped: only collect them
    if [[ $try ]]; then run_tests --collect-only -q; else run_tests -q -n auto --maxprocesses 8; fi
}

speed() {
    if [[ $try ]]; then
        measure speed_4 --models resnet20 --batch-sizes 4 --samples 8 "${small[@]}" \
            --only limits data gradient regularized allocator products overhead memory scaling kernels
        return
    fi
    measure speed_128 --batch-sizes 128 --samples 16384 "${many[@]}" --compile \
        --only limits data gradient regularized overhead digits scaling
    measure speed_32 --batch-sizes 32 --samples 4096 "${many[@]}" --compile --only gradient regularized
    measure speed_512 --batch-sizes 512 --samples 16384 "${many[@]}" --compile --only limits gradient regularized kernels
    # no --compile: exact products are compiled as a whole, which takes minutes
    measure cost --batch-sizes 128 --samples 4096 "${many[@]}" --only products memory
}

precision() {
    local name seed few=(data.size=4096 model=resnet18 impl.device=cuda)
    [[ $try ]] && few=(data.size=16 data.batch_size=8 model=resnet20 impl.device=cpu impl.threads=1)
    step regularized "$python" "$root/measure_floating_point_accuracy.py" hyp=gradreg data=imagefolder \
        "data.path=$folder" "${few[@]}"
    for name in bfloat16 float16; do
        if [[ $try ]]; then
            low "${name}_0" --data "$folder" --precision "$name" --samples 16 --steps 1 --seeds 1 --accuracy-steps 1 \
                --limit 1 --emulated --device cpu
            continue
        fi
        for seed in 0 1 2; do
            low "${name}_$seed" --data "$folder" --precision "$name" --only gradient --model resnet18 --lr 0.02 \
                --samples 10000 --seed "$seed" --device cuda
        done
    done
    [[ $try ]] || low accuracy --only accuracy --device cuda
}

full_size() {
    local more=()
    [[ $try ]] && more=(dryrun=True data.size=16 data.batch_size=8 model=resnet20 impl.device=cpu impl.threads=1)
    step full_size "$root/benchmarks/full_size.sh" "$folder" "$minutes" "${more[@]}"
}

others() {
    local size
    [[ $try ]] && return
    for size in 128 32 512; do
        measure "others_$size" --models resnet20 densenet121 --batch-sizes "$size" --samples 4096 "${many[@]}" \
            --only gradient regularized products overhead memory
    done
}

cd "$results" || exit 2
for name in "${parts[@]}"; do "$name"; done
[[ ${#failed[@]} == 0 ]] && echo "all results are in $results" && exit
echo "failed: ${failed[*]}; see $results" >&2
exit 1
