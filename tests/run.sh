#!/usr/bin/env bash
# Installs what is missing, builds, and runs every test this machine can run. Last line: "N passed, N failed, N skipped".
#   tests/run.sh [--sanitize] [--preset cpu|asan|cuda]
# By default all CUDA code is compiled and linked too where a CUDA toolkit is found; tests of kernels run where there is a GPU. --sanitize
# adds a second build with the address and undefined-behaviour sanitizers and runs the same tests in it. --preset runs just that one.
set -u
cd "$(dirname "$0")/.." || exit 1
presets="" sanitize=0
while [ $# -gt 0 ]; do
  case "$1" in
    --preset) presets="${2:-}"; shift 2 || { echo "tests/run.sh: --preset needs a name: cpu, asan or cuda" >&2; exit 2; } ;;
    --sanitize) sanitize=1; shift ;;
    *) echo "tests/run.sh: unknown option $1 (expected --sanitize or --preset NAME)" >&2; exit 2 ;;
  esac
done
. examples/install.sh || exit 1

if [ -z "$presets" ]; then
  presets="cpu"
  [ -z "$(find_nvcc)" ] || presets="cuda"
  [ "$sanitize" = 0 ] || presets="$presets asan"
fi

passed=0 failed=0 skipped=0
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# Runs one test program, keeps its log, prints what failed.
run_program() {
  local program=$1 log=$2
  "$program" --gtest_color=no >"$log" 2>&1
  echo $? >"$log.status"
}

count() { grep -cE "$1" "$2"; }

collect() {
  local name=$1 log=$2 status ok bad none
  status=$(cat "$log.status")
  ok=$(count '^\[       OK \]' "$log")
  none=$(count '^\[  SKIPPED \].*ms\)$' "$log")
  bad=$(count '^\[  FAILED  \].*ms\)$' "$log")
  if [ "$status" != 0 ] && [ "$bad" = 0 ]; then bad=1; fi # it crashed
  echo "  $name: $ok passed, $bad failed, $none skipped"
  if [ "$bad" != 0 ]; then grep -vE '^\[ RUN      \]|^\[       OK \]' "$log" | tail -n 60; fi
  passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + none))
}

for preset in $presets; do
  echo "== $preset"
  build=$(preset_folder "$preset")
  nvcc=$(find_nvcc)
  if ! cmake --preset "$preset" -DBRAID_TESTS=ON ${nvcc:+-DCMAKE_CUDA_COMPILER="$nvcc"} >"$logs/configure" 2>&1; then
    tail -n 40 "$logs/configure"
    failed=$((failed + 1))
    continue
  fi
  if ! cmake --build "$build" -j "$(nproc)" >"$logs/build" 2>&1; then
    grep -E -A12 'error|FAILED' "$logs/build" | head -n 80
    failed=$((failed + 1))
    continue
  fi
  programs=$(find "$build/tests" -maxdepth 1 -name 'braid_test_*' -type f -executable | sort)
  for program in $programs; do # two at a time: most tests use one core
    while [ "$(jobs -rp | wc -l)" -ge 2 ]; do sleep 0.1; done
    run_program "$program" "$logs/$preset-$(basename "$program")" &
  done
  wait
  for program in $programs; do collect "$(basename "$program")" "$logs/$preset-$(basename "$program")"; done
done

# Configurations for these are in the tree; they run where they are installed.
checked() { # NAME STATUS
  echo "  $1: $([ "$2" = 0 ] && echo clean || echo FAILED)"
  if [ "$2" = 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
}
sources=$(find core autograd ops cuda models io train tests examples -name '*.h' -o -name '*.cpp' -o -name '*.cu')
if command -v clang-format >/dev/null; then
  clang-format --dry-run --Werror $sources >"$logs/format" 2>&1
  checked clang-format $?
  grep -m 10 'error' "$logs/format"
fi
# clang-tidy takes ten to twenty seconds a file: folder after folder while the whole script stays within twenty-five minutes on two cores.
if command -v clang-tidy >/dev/null && [ -f "$build/compile_commands.json" ]; then
  for room in core autograd io models; do
    if [ "$SECONDS" -ge 1080 ]; then
      echo "  clang-tidy ($room): left out after $SECONDS s"
      skipped=$((skipped + 1))
      continue
    fi
    find "$room" -name '*.cpp' | while read -r source; do # those of this build: the ranks of MPI are not in every one
      ! grep -q "/$source\"" "$build/compile_commands.json" || echo "$source"
    done | xargs -P "$(nproc)" -n 2 clang-tidy -p "$build" --quiet --extra-arg=-Wno-unknown-warning-option >"$logs/tidy" 2>/dev/null
    checked "clang-tidy ($room)" $?
    grep -m 10 'error' "$logs/tidy"
  done
fi

echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
