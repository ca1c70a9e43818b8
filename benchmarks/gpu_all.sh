#!/usr/bin/env bash
# Everything that wants a GPU, in one go and inside a time budget: build, GPU tests, memory and race checks, benchmarks.
#
#     benchmarks/gpu_all.sh [--minutes 8] [--output benchmarks/results/<device>]
#     benchmarks/gpu_all.sh --host            the same steps without a GPU: kernels emulated on the CPU, tiny arrays
#
# Needs python3 (or $PYTHON) with NumPy, CuPy and NVRTC; uses nvcc, CMake, pybind11, PyTorch, pytest and compute-sanitizer
# where they are. Installs nothing and needs no network. Every step goes on whatever became of the others, and two fifths
# of the time are the benchmarks'. The folder then holds summary.md, logs/<step>.log, and what `dlgpu bench` writes. The
# exit code is 0 if every step's was. A copy of the tree without .git is told its commit by $DLGPU_COMMIT.
set -uo pipefail

minutes=8 output="" device=cuda
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2-}; shift; shift ;;
        --output) output=${2-}; shift; shift ;;
        --host) device=host-kernels; shift ;;
        *) sed -n '2,6p' "$0" | cut -c3-; exit 2 ;;
    esac
done
case $minutes in '' | 0* | *[!0-9]*) echo "--minutes must be a whole number from 1 on; got '$minutes'" >&2; exit 2 ;; esac

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
commit=${DLGPU_COMMIT:-$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}

total=$((60 * minutes))
reserved=$((total * 2 / 5))  # seconds that nothing but the benchmarks may use
{
    echo "# ${output##*/}: every step"
    echo
    echo "\`benchmarks/gpu_all.sh\`, $minutes minutes, commit $commit, $(date -u +%Y-%m-%d)."
    echo
    echo "| step | exit code | seconds | last line |"
    echo "|---|---|---|---|"
} > "$output/summary.md"

left() { echo $((total - reserved - SECONDS)); }

finish() {
    cat "$output/summary.md"
    local code=0
    [ -e "$scratch/failed" ] && code=1
    rm -rf "$scratch"
    exit $code
}

interrupted() {
    touch "$scratch/failed"
    cat "$scratch"/*.pid 2>/dev/null | xargs --no-run-if-empty kill
    wait
    echo "interrupted" | tee -a "$output/summary.md"
    finish
}
trap interrupted INT TERM

# step NAME MOST_SECONDS COMMAND...: never longer than what is left; `code` is what became of it. Out of time, a command
# gets SIGINT, upon which pytest still prints its summary.
step() {
    local name=$1 most=$2 start=$SECONDS now
    shift 2
    now=$(left)
    [ "$most" -gt "$now" ] && most=$now
    echo "== $name (at most $most s)"
    if [ "$most" -lt 5 ]; then
        code=skipped
        echo "no time left" > "$output/logs/$name.log"
    else
        timeout --signal=INT --kill-after=10 "$most" env --default-signal=INT "$@" > "$output/logs/$name.log" 2>&1 &
        echo $! > "$scratch/$name.pid"
        wait $!
        code=$?
        rm "$scratch/$name.pid"
        [ $code = 124 ] || [ $code = 137 ] && echo "stopped after $most seconds" >> "$output/logs/$name.log"
        sed -i "s#$scratch#SCRATCH#g; s#$output#OUTPUT#g; s#$root#.#g" "$output/logs/$name.log"  # paths say nothing
    fi
    [ "$code" = 0 ] || touch "$scratch/failed"
    local last
    last=$(grep -v '^[[:space:]]*$' "$output/logs/$name.log" | tail -n 1 | tr '|' '/' | cut -c1-150)
    echo "| $name | $code | $((SECONDS - start)) | $last |" >> "$output/summary.md"
    echo "   $name: exit code $code after $((SECONDS - start)) s"
}

# minutes_of SECONDS: as `dlgpu bench --budget-minutes` takes them
minutes_of() { awk "BEGIN { printf \"%.2f\", $1 / 60 }"; }

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || echo compute-sanitizer)
bench=("$python" -m dlgpu bench --device "$device")
algorithms=(--algorithm auto --algorithm winograd2 --algorithm winograd4)
pytest=("$python" -m pytest -o addopts= -p no:cacheprovider -W default -q -rfEs --tb=short --maxfail=100)
if [ "$device" = cuda ]; then
    build='
import multiprocessing
from dlgpu.backends.kernels import sources
from dlgpu.backends.launchers.cupy import CupyLauncher, architecture, cubin
arch = architecture(CupyLauncher().capability)
with multiprocessing.get_context("spawn").Pool() as pool:
    for path, _ in pool.starmap(cubin, [(family, arch) for family in sources.families()], chunksize=1):
        print(path.name, flush=True)
'
    # A few processes: while one computes what is expected, another has the GPU; and the next goes on if one dies.
    "$python" -c "import xdist" 2>/dev/null && pytest+=(-n 6 --dist worksteal)
    export DLGPU_NUM_THREADS=2
    tests=(-m gpu tests --ignore=tests/test_kernels_hopper.py)
    hopper=(-m gpu tests/test_kernels_hopper.py)
    memory=("$sanitizer" --tool memcheck --leak-check no --report-api-errors no --error-exitcode 9 --target-processes all)
    races=("$sanitizer" --tool racecheck --error-exitcode 9 --target-processes all)
else
    build='
from dlgpu.backends.launchers.host import KERNELS, build
for flavour in ("fast", "asan", "check"):
    print(build(flavour, sorted(KERNELS.glob("*.cu"))).parent.name, flush=True)
'
    tests=(-k "host and not cuda and im2col" tests/test_kernels.py)
    hopper=(-k "host and not cuda and nan" tests/test_kernels_hopper.py)
    memory=("$python" -m dlgpu.backends.launchers.host --flavour asan --)
    races=("$python" -m dlgpu.backends.launchers.host --flavour check --)
fi

# check NAME SECONDS TOOL...: a tool that looks over the shoulder of tiny cases; half the time is for what is slow to start
check() {
    local name=$1 most=$2
    shift 2
    step "$name" "$most" "$@" "${bench[@]}" conv product pool norm "${algorithms[@]}" --tiny --check-only --compare none \
        --budget-minutes "$(minutes_of $((most / 2)))" --output "$scratch/$name"
}

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
# nvcc's module beside its launcher, for this GPU alone: the tests and the benchmarks then find both launchers. It is
# compiled while NVRTC compiles the same kernels.
[ "$device" = cuda ] && step native $((total / 3)) bash -c "
    capability=\$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    [ \$capability = 90 ] && capability=90a
    export DLGPU_CUDA_ARCHITECTURES=\$capability
    cmake -S . -B $scratch/native -DPython_EXECUTABLE=\$($python -c 'import sys; print(sys.executable)') &&
    cmake --build $scratch/native --parallel" &
step build $((total / 3)) "$python" -c "$build"
wait
step tests $((total / 5)) "${pytest[@]}" "${tests[@]}"
step hopper $((total / 10)) "${pytest[@]}" "${hopper[@]}"
[ "$code" = 0 ] && algorithms+=(--algorithm hopper)  # kernels that may hang stay out of what follows
check memcheck $((total / 8)) "${memory[@]}"
check racecheck $((total / 8)) "${races[@]}"
step launch-cost 45 "$python" -m benchmarks.test_launch_cost
unset DLGPU_NUM_THREADS
reserved=0
seconds=$(($(left) * 3 / 4))
step bench "$seconds" "${bench[@]}" "${algorithms[@]}" --budget-minutes "$(minutes_of $((seconds - seconds / 8)))" \
    --case-seconds 45 --output "$output"
seconds=$(left)
step tuned "$seconds" "${bench[@]}" conv product --autotune --budget-minutes "$(minutes_of $((seconds - seconds / 4)))" \
    --case-seconds 45 --output "$output/tuned"
finish
