#!/usr/bin/env bash
# All that is to be measured on a machine with a CUDA device, without network: the tests for it, the table of speeds, the
# paper's runs at full size.
#   benchmarks/gpu.sh [--try] FOLDER MINUTES [RESULTS]
# FOLDER holds CIFAR-10 as pictures: train/<class>/* and test/<class>/*. Each of the five runs gets MINUTES and goes on
# when the line is given again. RESULTS (gpu_results) takes tests.log, speed_<block size>.log and .json (ResNet-18, compiled,
# too), others_<block size>.log and .json (ResNet-20, DenseNet-121), bfloat16 and float16.log and .json (what they do to
# gradients), full_size.log, and the runs' outputs/, tables/ and checkpoints/. What fails is told at the end and keeps
# nothing else from being done.
# --try does all of it in small, on a CPU, within minutes.
set -uo pipefail
try=
[[ ${1-} == --try ]] && try=yes && shift
usage='usage: gpu.sh [--try] FOLDER MINUTES [RESULTS]'
folder=$(realpath -e "${1:?$usage}") || exit 2
minutes=${2:?$usage}
root=$(cd "$(dirname "$0")/.." && pwd)
python=python
[[ -x "$root/.venv/bin/python" ]] && python="$root/.venv/bin/python"
mkdir -p "${3:-gpu_results}" && results=$(cd "${3:-gpu_results}" && pwd) || exit 2
failed=()
trap 'exit 130' INT TERM

part() { # part NAME COMMAND...: one part, its words in NAME.log
    echo "$1: ${*:2}" >&2
    "${@:2}" 2>&1 | tee "$results/$1.log" || failed+=("$1")
}

speed() { # speed NAME BLOCK_SIZE ARGUMENTS...
    part "$1_$2" "$python" "$root/benchmarks/speed.py" --batch-sizes "$2" --json "$results/$1_$2.json" "${@:3}"
}

low_precision() { # low_precision PRECISION ARGUMENTS...
    part "$1" "$python" "$root/benchmarks/low_precision.py" --data "$folder" --precision "$1" --json "$results/$1.json" "${@:2}"
}

cd "$results" || exit 2
if [[ $try ]]; then
    # on a CPU every test for a GPU is skipped: what is tried is that they are found
    part tests "$python" -m pytest "$root/tests" --rootdir="$root" -c "$root/pyproject.toml" -m gpu --collect-only -q
    speed speed 4 --models resnet20 --samples 8 --turns 1 --short-turns 1 --device cpu --threads 1 --workers 1 \
        --only limits data gradient regularized allocator products overhead memory scaling
    for precision in bfloat16 float16; do
        low_precision "$precision" --model resnet20 --samples 16 --steps 1 --seeds 1 --accuracy-steps 1 --limit 1 \
            --emulated --device cpu --threads 1
    done
    part full_size "$root/benchmarks/full_size.sh" "$folder" "$minutes" dryrun=True data.size=16 data.batch_size=8 \
        model=resnet20 impl.device=cpu impl.threads=1
else
    part tests "$python" -m pytest "$root/tests" --rootdir="$root" -c "$root/pyproject.toml" -m gpu
    many=(--samples 4096 --workers "$(nproc)" --device cuda)
    for size in 128 32 512; do
        speed speed "$size" --models resnet18 --compile "${many[@]}"
    done
    for size in 128 32 512; do
        speed others "$size" --models resnet20 densenet121 --only gradient regularized products overhead memory "${many[@]}"
    done
    for precision in bfloat16 float16; do
        low_precision "$precision" --model resnet18 --lr 0.02 --samples 10000 --device cuda
    done
    part full_size "$root/benchmarks/full_size.sh" "$folder" "$minutes"
fi
[[ ${#failed[@]} == 0 ]] && echo "all of it is in $results" && exit
echo "not everything went well: ${failed[*]}; see $results" >&2
exit 1
