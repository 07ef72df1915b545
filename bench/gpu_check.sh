#!/bin/bash
# One command on a machine with an NVIDIA GPU: is the CUDA engine right there, and how fast is it?
#
#     bench/gpu_check.sh            # results in bench/results/gpu-DATE.jsonl, logs in out/gpu_check/
#
# Needs nvcc, cmake, ninja and a Python with pybind11, numpy, pillow, safetensors, click, rich, torch and pytest; no network, no
# installation: the package is built for the GPU that is there, into out/gpu_check/site. Every stage has its own limit. They
# are more than the eight minutes together, so a stage leaves the later ones half of theirs, or its own part where there is less.
# One that fails leaves the others' results. Exit status: how many stages failed.
#
# To be set: PYTHON (python3), P2P_GPU_CHECK_SECONDS (470), P2P_CUDA_ARCHITECTURES (native: the GPU that is there; a number
# builds without one, so that the other stages can be seen to fail), COMMIT (git's; where the source came without .git, unknown),
# and STAGES (all, in this order; their limits in seconds are in MOST):
STAGES=${STAGES:-build tests memcheck racecheck floor kernels network pdl plain compile}
declare -A MOST=([build]=240 [tests]=100 [memcheck]=40 [racecheck]=40 [floor]=45 [kernels]=60 [network]=110 [pdl]=25 [plain]=25
  [compile]=90)
set -u
ROOT=$(cd "$(dirname "$0")/.." && pwd)
OUT=$ROOT/out/gpu_check
SITE=$OUT/site
PYTHON=$(command -v "${PYTHON:-python3}") || { echo "gpu_check: no Python (set PYTHON)"; exit 99; }
DATE=$(date -u +%Y-%m-%dT%H:%MZ)
RESULTS=$ROOT/bench/results/gpu-${DATE%T*}.jsonl
END=$(($(date +%s) + ${P2P_GPU_CHECK_SECONDS:-470}))
GPU=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -1)
DRIVER=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1)
if [ -z "${COMMIT:-}" ]; then
  COMMIT=$(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null) || COMMIT=unknown
  [ "$COMMIT" = unknown ] || git -C "$ROOT" diff --quiet HEAD || COMMIT=$COMMIT+
fi
ARCHITECTURES=${P2P_CUDA_ARCHITECTURES:-native}
FAILED=0
mkdir -p "$OUT" "$ROOT/bench/results"
rm -f "$OUT"/*.jsonl "$OUT"/*.log
case " $STAGES " in *" build "*) rm -rf "$SITE" ;; esac
export PATH=$PATH:/usr/local/cuda/bin PYTHONPATH=$SITE PYTHONUNBUFFERED=1

# Lines of a stage to the results, each with who measured and when.
collect() {
  [ -s "$1" ] || return 0
  GPU=$GPU DRIVER=$DRIVER DATE=$DATE COMMIT=$COMMIT "$PYTHON" - "$1" >>"$RESULTS" <<'PY'
import json, os, sys
head = {key: os.environ[key.upper()] for key in ("gpu", "driver", "date", "commit")}
for line in open(sys.argv[1]):
    try:
        print(json.dumps(head | json.loads(line)))
    except ValueError:  # a line that its writer did not finish
        print("gpu_check: not JSON:", line.strip()[:200], file=sys.stderr)
PY
}

# stage NAME SECONDS LATER: LATER is what the stages to come may take. Output to a log, the end of it shown on failure.
stage() {
  local name=$1 most=$2 later=$3 left limit status begin
  left=$((END - $(date +%s)))
  limit=$((left * most / (most + later)))
  [ $((left - later / 2)) -lt "$limit" ] || limit=$((left - later / 2))
  [ "$most" -gt "$limit" ] || limit=$most
  begin=$(date +%s)
  if [ "$limit" -lt 5 ]; then
    status=124
    echo "no time is left" >"$OUT/$name.log"
  else
    export LIMIT=$limit OUT ROOT SITE PYTHON ARCHITECTURES
    export -f "run_$name" need need_gpu
    timeout -k 5 "$limit" bash -c "set -u; run_$name" >"$OUT/$name.log" 2>&1
    status=$?
  fi
  local seconds=$(($(date +%s) - begin)) said
  if [ $status = 0 ]; then
    echo "$name: passed in $seconds s"
  else
    FAILED=$((FAILED + 1))
    [ $status = 124 ] && echo "stopped after $limit s" >>"$OUT/$name.log"
    echo "$name: FAILED (status $status, $seconds s): $OUT/$name.log ends"
    tail -n 5 "$OUT/$name.log" | sed 's/^/    /'
  fi
  said=$(grep -v '^$' "$OUT/$name.log" | tail -n 1 | sed "s#$ROOT/##g" | tr -d '"\\\000-\037' | cut -c1-200)
  printf '{"stage": "%s", "status": %d, "seconds": %d, "said": "%s"}\n' "$name" $status $seconds "$said" >"$OUT/stage.jsonl"
  collect "$OUT/stage.jsonl"
  collect "$OUT/$name.jsonl"
}

# need WORD FILE: for stages that need what an earlier one should have made.
need() { [ -e "$2" ] || { echo "needs $1, which is not there: ${2#"$ROOT"/}"; exit 4; }; }

need_gpu() {
  command -v nvidia-smi >/dev/null || { echo "no NVIDIA driver: nvidia-smi was not found"; exit 3; }
  nvidia-smi -L || { echo "nvidia-smi finds no GPU"; exit 3; }
}

run_build() {
  local tool
  for tool in nvcc cmake ninja; do command -v $tool >/dev/null || { echo "$tool was not found"; exit 2; }; done
  "$PYTHON" -c "import pybind11, numpy, PIL, safetensors, click, rich" || exit 2
  [ "$ARCHITECTURES" != native ] || need_gpu
  mkdir -p "$SITE"
  cp -r "$ROOT/pix2pix_fast" "$SITE/pix2pix_fast" && rm -f "$SITE"/pix2pix_fast/_core*.so
  cp -r "$ROOT/train" "$SITE/pix2pix_fast/train"
  cmake -S "$ROOT" -B "$OUT/build" -G Ninja -DP2P_CUDA=on -DP2P_CUDA_ARCHITECTURES="$ARCHITECTURES" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$PYTHON" -DPYTHON_EXECUTABLE="$PYTHON" \
    -DP2P_MODULE_DIR="$SITE/pix2pix_fast" && cmake --build "$OUT/build" --target _core && touch "$SITE/built" || exit 1
  cd / && "$PYTHON" -c "
from pix2pix_fast import _core, backends
print(_core.cuda())
missing = backends.available()['cuda']
raise SystemExit(missing and f'the CUDA back-end cannot run: {missing}')"
}

run_tests() {  # a test that skips for want of a GPU is a failure here
  need "the build" "$SITE/built"
  cd "$ROOT" && "$PYTHON" -P -m pytest -q -rs -p no:cacheprovider tests/test_cuda_gpu.py | tee "$OUT/tests.txt"
  [ "${PIPESTATUS[0]}" = 0 ] && ! grep -E "needs an NVIDIA GPU|no CUDA device" "$OUT/tests.txt"
}

run_memcheck() {
  need "the build" "$SITE/built"
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer was not found"; exit 2; }
  cd / && compute-sanitizer --tool memcheck --error-exitcode 9 "$PYTHON" "$ROOT/bench/gpu_twin.py"
}

run_racecheck() {
  need "the build" "$SITE/built"
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer was not found"; exit 2; }
  cd / && compute-sanitizer --tool racecheck --error-exitcode 9 "$PYTHON" "$ROOT/bench/gpu_twin.py"
}

run_floor() {
  command -v nvcc >/dev/null || { echo "nvcc was not found"; exit 2; }
  need_gpu
  nvcc -O3 -std=c++20 -arch=native "$ROOT/bench/gpu_floor.cu" -o "$OUT/gpu_floor" && "$OUT/gpu_floor" >"$OUT/floor.jsonl"
}

run_kernels() {
  need "the build" "$SITE/built"
  cd / && "$PYTHON" "$ROOT/bench/gpu.py" kernels --out "$OUT/kernels.jsonl" --floor "$OUT/floor.jsonl"
}

run_network() {
  need "the build" "$SITE/built"
  cd / && "$PYTHON" "$ROOT/bench/gpu.py" network --out "$OUT/network.jsonl" --seconds $((LIMIT - 25))
}

run_pdl() {
  need "the build" "$SITE/built"
  cd / && P2P_CUDA_PDL=1 "$PYTHON" "$ROOT/bench/gpu.py" network --ours --out "$OUT/pdl.jsonl"
}

run_plain() {  # without thread-block clusters
  need "the build" "$SITE/built"
  cd / && P2P_CUDA_CLUSTER=0 "$PYTHON" "$ROOT/bench/gpu.py" network --ours --out "$OUT/plain.jsonl"
}

run_compile() {
  need "the build" "$SITE/built"
  cd / && "$PYTHON" "$ROOT/bench/gpu.py" network --compile --out "$OUT/compile.jsonl"
}

echo "${GPU:-no GPU}, driver ${DRIVER:-none}, $DATE, commit $COMMIT"
later=0
for name in $STAGES; do later=$((later + ${MOST[$name]})); done
for name in $STAGES; do
  later=$((later - ${MOST[$name]}))
  stage "$name" "${MOST[$name]}" "$later"
done
echo "results: $RESULTS"
exit $FAILED
