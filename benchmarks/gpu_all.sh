#!/usr/bin/env bash
# Everything that wants a GPU, in one go and inside a time budget: build, GPU tests, memory and race checks, benchmarks.
#
#     benchmarks/gpu_all.sh [--minutes 8] [--output benchmarks/results/<device>]
#     benchmarks/gpu_all.sh --host            the same steps without a GPU: kernels emulated on the CPU, tiny arrays
#
# Needs python3 (or $PYTHON) with NumPy, CuPy and NVRTC; uses nvcc, CMake, pybind11, PyTorch, pytest and compute-sanitizer
# where they are. Installs nothing and needs no network. Every step goes on whatever became of the others. The folder then
# holds summary.md, logs/<step>.log, and what `dlgpu bench` writes. The exit code is 0 if every step's was.
set -uo pipefail

minutes=8 output="" device=cuda
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2; shift 2 ;;
        --output) output=$2; shift 2 ;;
        --host) device=host-kernels; shift ;;
        *) sed -n '2,6p' "$0" | cut -c3-; exit 2 ;;
    esac
done
case $minutes in '' | *[!0-9]*) echo "--minutes must be a whole number; got '$minutes'" >&2; exit 2 ;; esac

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if [ -z "$output" ]; then
    name=$device
    if [ "$device" = cuda ]; then  # "NVIDIA H100 80GB HBM3" -> h100, "NVIDIA GeForce RTX 4090" -> rtx-4090
        name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr '[:upper:]' '[:lower:]' |
            sed 's/nvidia //; s/geforce //; s/ [0-9]*gb.*//; s/[^a-z0-9]\+/-/g')
    fi
    output=$root/benchmarks/results/${name:-unknown}
fi
mkdir -p "$output/logs" && output=$(cd "$output" && pwd) || exit 2
cd "$root" || exit 2
scratch=$(mktemp -d)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1

total=$((60 * minutes)) failed=0
{
    echo "# ${output##*/}: every step"
    echo
    echo "\`benchmarks/gpu_all.sh\`, $minutes minutes, commit $(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)," \
        "$(date -u +%Y-%m-%d)."
    echo
    echo "| step | exit code | seconds | last line |"
    echo "|---|---|---|---|"
} > "$output/summary.md"

left() { echo $((total - SECONDS)); }

finish() {
    rm -rf "$scratch"
    cat "$output/summary.md"
    [ "$failed" = 0 ]
    exit
}
trap 'failed=1; echo; echo "interrupted"; finish' INT TERM

# step NAME MOST_SECONDS COMMAND...: never longer than what is left
step() {
    local name=$1 most=$2 start=$SECONDS code now
    shift 2
    now=$(left)
    [ "$most" -gt "$now" ] && most=$now
    echo "== $name (at most $most s)"
    if [ "$most" -lt 5 ]; then
        code=skipped
        echo "no time left" > "$output/logs/$name.log"
    else
        timeout --kill-after=20 "$most" "$@" > "$output/logs/$name.log" 2>&1
        code=$?
        [ $code = 124 ] && echo "stopped after $most seconds" >> "$output/logs/$name.log"
        sed -i "s#$scratch#SCRATCH#g; s#$root#.#g" "$output/logs/$name.log"  # the paths of this machine say nothing
    fi
    [ "$code" = 0 ] || failed=1
    local last
    last=$(grep -v '^[[:space:]]*$' "$output/logs/$name.log" | tail -n 1 | tr '|' '/' | cut -c1-150)
    echo "| $name | $code | $((SECONDS - start)) | $last |" >> "$output/summary.md"
    echo "   exit code $code after $((SECONDS - start)) s"
}

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || echo compute-sanitizer)
bench=("$python" -m dlgpu bench --device "$device")
check=("${bench[@]}" conv product pool norm --tiny --check-only --budget-minutes 1)
if [ "$device" = cuda ]; then
    build='
from dlgpu.backends.kernels import sources
from dlgpu.backends.launchers.cupy import CupyLauncher, architecture, cubin
arch = architecture(CupyLauncher().capability)
for family in sources.families():
    print(*cubin(family, arch)[0].parts[-1:], flush=True)
'
    tests=(-m gpu tests)
    memory=("$sanitizer" --tool memcheck --leak-check no --error-exitcode 9 --target-processes all)
    races=("$sanitizer" --tool racecheck --error-exitcode 9 --target-processes all)
else
    build='
from dlgpu.backends.launchers.host import KERNELS, build
for flavour in ("fast", "asan", "check"):
    print(build(flavour, sorted(KERNELS.glob("*.cu"))).parent.name, flush=True)
'
    tests=(-k "host and not cuda and im2col" tests/test_kernels.py)
    memory=("$python" -m dlgpu.backends.launchers.host --flavour asan --)
    races=("$python" -m dlgpu.backends.launchers.host --flavour check --)
fi

step machine 30 bash -c "
    nvidia-smi; nvcc --version | tail -n 2; $python --version
    $python -m pip list 2>/dev/null | grep -iE '^(numpy|cupy|torch|nvidia|cuda|pytest|ml.dtypes|pybind11|click)'
    grep -m 1 'model name' /proc/cpuinfo; true"
# A copy, so that no build/ is left in the tree, into a folder that goes away.
step install 60 env DLGPU_CUDA=0 bash -c "
    mkdir $scratch/source && cp -r dlgpu kernels *.toml *.md setup.py LICENSE $scratch/source &&
    $python -m pip install --quiet --no-index --no-deps --no-build-isolation --target $scratch/site $scratch/source &&
    cd $scratch && PYTHONPATH=$scratch/site $python -m dlgpu --version"
step info 60 "$python" -m dlgpu info
# nvcc's module beside its launcher, for this GPU alone: the tests and the benchmarks then find both launchers.
[ "$device" = cuda ] && step native $((total / 4)) bash -c "
    capability=\$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    [ \$capability = 90 ] && capability=90a
    export DLGPU_CUDA_ARCHITECTURES=\$capability
    cmake -S . -B $scratch/native -DPython_EXECUTABLE=\$($python -c 'import sys; print(sys.executable)') &&
    cmake --build $scratch/native --parallel"
step build $((total / 4)) "$python" -c "$build"
step tests $((total * 3 / 10)) "$python" -m pytest -o addopts= -p no:cacheprovider -W default -q -rs "${tests[@]}"
step memcheck $((total / 8)) "${memory[@]}" "${check[@]}" --output "$scratch/memcheck"
step racecheck $((total / 10)) "${races[@]}" "${check[@]}" --output "$scratch/racecheck"
step launch-cost 60 "$python" -m benchmarks.test_launch_cost
now=$(left)
seconds=$((now > 60 ? now - 30 : now / 2))
step bench "$now" "${bench[@]}" --budget-minutes "$((seconds / 60)).$((seconds % 60 * 100 / 60 / 10))" \
    --case-seconds 60 --output "$output"
finish
