#!/usr/bin/env bash
# On a machine with a GPU: builds with CUDA, holds every kernel to the CPU oracle, runs compute-sanitizer on small cases. Prints a table last.
#   tests/gpu.sh [FILTER]    FILTER: a GoogleTest filter of operator tests (default: every CUDA law)
# Needs no Boost and no network. Extra CMake options may be given in BRAID_CMAKE_OPTIONS.
set -u
cd "$(dirname "$0")/.." || exit 1
filter=${1:-*_cuda_*}
build=build-cuda
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
table=""
failed=0
row() { table+=$(printf '%-34s %s' "$1" "$2")$'\n'; }

echo "== build"
start=$SECONDS
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
if ! { cmake --preset cuda -DCMAKE_CUDA_COMPILER="$nvcc" ${BRAID_CMAKE_OPTIONS:-} && cmake --build $build -j "$(nproc)" --target braid_test_ops braid_test_cuda; } >"$log/build" 2>&1; then
  grep -E -A8 'error|Error|FAILED' "$log/build" | head -n 80
  echo "build failed"
  exit 1
fi
row "build" "$((SECONDS - start)) s"

run_tests() { # NAME PROGRAM FILTER
  "$2" --gtest_color=no --gtest_filter="$3" >"$log/$1" 2>&1
  local status=$? ok bad
  ok=$(grep -cE '^\[       OK \]' "$log/$1")
  bad=$(grep -cE '^\[  FAILED  \].*ms\)$' "$log/$1")
  if [ $status != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  row "$1" "$ok passed, $bad failed"
  if [ "$bad" != 0 ]; then
    failed=1
    grep -vE '^\[ RUN      \]|^\[       OK \]' "$log/$1" | tail -n 60
  fi
}

run_tests "runtime" $build/tests/braid_test_cuda '*'
run_tests "kernels against the CPU oracle" $build/tests/braid_test_ops "$filter"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    if compute-sanitizer --tool $tool --error-exitcode 9 $build/tests/braid_test_ops --gtest_color=no --gtest_filter="${BRAID_SANITIZER_FILTER:-RmsNorm.rows_cuda_*}" >"$log/$tool" 2>&1; then
      row "compute-sanitizer $tool" "clean"
    else
      row "compute-sanitizer $tool" "FAILED"
      failed=1
      grep -E 'ERROR|=========' "$log/$tool" | head -n 20
    fi
  done
fi

echo "== results on $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)"
printf '%s' "$table"
exit $failed
