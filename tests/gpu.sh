#!/usr/bin/env bash
# On a machine with a GPU: builds with CUDA, holds every kernel to the CPU oracle, runs compute-sanitizer on small cases of every operator,
# times every operator beside its floor and steps of 340M and 1.3B models, and compiles the kernels for sm_80 too. Prints one table last.
#   tests/gpu.sh [--tests | --benchmarks] [FILTER]    one half only; FILTER: a GoogleTest filter of operator tests (default: every CUDA law)
# Needs no network, and Boost only for the program (or one built elsewhere, in BRAID_PROGRAM). Extra CMake options may be given in
# BRAID_CMAKE_OPTIONS, those of the benchmark in BRAID_BENCH_OPTIONS (--quick, --op NAME).
set -u
cd "$(dirname "$0")/.." || exit 1
half=all
case "${1:-}" in --tests | --benchmarks) half=${1#--}; shift ;; esac
filter=${1:-*_cuda_*}
build=build-cuda
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
table=""
failed=0
row() { # shown as it comes, and in the table
  printf '   %s\n' "$2"
  table+=$(printf '%-34s %s' "$1" "$2")$'\n'
}

nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)
sanitizer=$(command -v compute-sanitizer || echo "$(dirname "$nvcc")/compute-sanitizer")
compile() { # NAME FOLDER TARGETS... -- CMAKE OPTIONS...
  local name=$1 folder=$2 start=$SECONDS targets=()
  shift 2
  while [ "$1" != -- ]; do targets+=("$1"); shift; done
  shift
  echo "== $name"
  if ! { cmake -S . -B "$folder" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBRAID_CUDA=ON -DCMAKE_CUDA_COMPILER="$nvcc" "$@" ${BRAID_CMAKE_OPTIONS:-} &&
    cmake --build "$folder" -j "$(nproc)" --target "${targets[@]}"; } >"$log/build" 2>&1; then
    grep -E -A8 'error|Error|FAILED' "$log/build" | head -n 80
    row "$name" "FAILED"
    failed=1
    return 1
  fi
  row "$name" "$((SECONDS - start)) s"
}

run_tests() { # NAME PROGRAM FILTER [PROCESSES]: most of the time is the oracle's, so that several at once share the GPU well
  echo "== $1"
  local start=$SECONDS processes=${4:-1} status=0 ok bad i jobs=()
  rm -f "$log"/tests*
  for ((i = 0; i < processes; ++i)); do
    GTEST_TOTAL_SHARDS=$processes GTEST_SHARD_INDEX=$i "$2" --gtest_color=no --gtest_filter="$3" >"$log/tests$i" 2>&1 &
    jobs+=($!)
  done
  for i in "${jobs[@]}"; do wait "$i" || status=1; done
  cat "$log"/tests[0-9]* >"$log/tests"
  ok=$(grep -cE '^\[       OK \]' "$log/tests")
  bad=$(grep -cE '^\[  FAILED  \].*ms\)$' "$log/tests")
  if [ $status != 0 ] && [ "$bad" = 0 ]; then bad=1; fi
  row "$1" "$ok passed, $bad failed in $((SECONDS - start)) s"
  if [ "$bad" != 0 ]; then
    failed=1
    grep -E '^\[  FAILED  \].*ms\)$' "$log/tests"
    for ((i = 0; i < processes; ++i)); do # what each process that failed had to say
      ! grep -qE '^\[  FAILED  \]' "$log/tests$i" || grep -vE '^\[ RUN      \]|^\[       OK \]|^\[---|^$' "$log/tests$i" | tail -n 40
    done
  fi
}

# The first bf16 cases of every operator (the small ones, written to hold boundaries of sequences), and small ones of the kernels for tensor cores:
# of gated_delta_rule, every plan of its walks. Then those named below, 200 tokens at most.
small_cases() {
  list_cases | awk -F. '
    $1 != before { before = $1; n = 0 }
    /_cuda_bf16$/ && $1 !~ /(Extremes|AttentionWide)$/ && (n++ < 4 || /heads_of_(64|128|256)_cuda|decoding_64_cuda|(head|channel)_wide_cuda|tiled_odd_width_cuda|chunks_(none|head_grouped|wide|many)_cuda|channel_(grouped|two_heads|many)_cuda/) {
      printf "%s:", $0
    }'
  # shellcheck disable=SC2086
  printf '%s:' $named_cases
}
list_cases() { # SUITE.CASE a line
  $build/tests/braid_test_ops --gtest_list_tests | awk '/^[^ ]/ { suite = $1 } /^ / { print suite $1 }'
}
# linear_attention: walks by warpgroups (a side of 256 and more), constant decay, strong decays. delta_rule: keys that repeat. The scan eight
# channels at a time, attention with a window, rows of several warps; and what has kernels, or paths through them, of its own in float32.
named_cases="
  GatedLinearAttentionWide.constant_256_by_64_cuda_bf16 GatedLinearAttentionWide.head_256_by_64_cuda_bf16
  GatedLinearAttentionWide.absent_64_by_256_cuda_bf16 GatedLinearAttentionWide.channel_64_by_256_cuda_bf16
  GatedLinearAttentionWide.constant_256_by_512_cuda_bf16 GatedLinearAttentionWide.channel_256_by_256_cuda_bf16
  GatedLinearAttentionExtremes.constant_square_strong_cuda_bf16 GatedLinearAttentionExtremes.channel_square_weak_and_strong_cuda_bf16
  GatedDeltaRuleLaws.chunks_identical_keys_cuda_bf16 GatedDeltaRuleLaws.chunks_identical_keys_none_cuda_bf16
  GatedDeltaRuleLaws.chunks_identical_keys_wide_cuda_bf16 GatedDeltaRuleLaws.channel_identical_keys_cuda_bf16
  GatedDeltaRuleLaws.channel_identical_keys_no_state_cuda_bf16 GatedDeltaRuleLaws.chunks_wide_identical_keys_beta_one_cuda_bf16
  GatedDeltaRuleLaws.channel_wide_identical_keys_beta_one_cuda_bf16 GatedDeltaRuleLaws.chunks_grouped_identical_keys_beta_one_cuda_bf16
  GatedDeltaRuleLaws.channel_grouped_identical_keys_beta_one_cuda_bf16 GatedDeltaRuleLaws.chunks_none_identical_keys_beta_two_cuda_bf16
  GatedDeltaRuleExtremes.chunks_some_infinite_cuda_bf16
  LinearRecurrence.vectors_of_a_tile_cuda_bf16 LinearRecurrence.vectors_mixed_decay_cuda_bf16
  Attention.heads_of_64_short_window_cuda_bf16 Attention.heads_of_128_short_window_cuda_bf16 Attention.heads_of_256_short_window_cuda_bf16
  RmsNorm.wide_2048_residual_cuda_bf16 RmsNorm.wide_2049_cuda_bf16 GatedRmsNorm.wide_2056_cuda_bf16
  Attention.heads_of_64_short_window_cuda_f32 GatedDeltaRuleLaws.token_head_grouped_cuda_f32 GatedDeltaRuleLaws.chunked_channel_grouped_cuda_f32
  GatedLinearAttention.constant_cuda_f32 GatedLinearAttention.channel_one_chunk_cuda_f32 LinearRecurrence.vectors_of_a_tile_cuda_f32
  LinearRecurrence.small_cuda_f32 RmsNorm.wide_2056_cuda_f32 GatedRmsNorm.odd_width_cuda_f32 ShortConv.silu_cuda_f32
  Embedding.repeated_cuda_f32 HgrnGate.bound_cuda_f32 LinearCrossEntropy.all_targets_cuda_f32"

# Sanitizers are slow and wait for each other's answers: they run beside the tests.
declare -A sanitizers
sanitize() { # TOOL FILTER: of the operators; and the launches that decode a token
  {
    "$sanitizer" --tool "$1" --error-exitcode 9 $build/tests/braid_test_ops --gtest_color=no --gtest_filter="$2" &&
      "$sanitizer" --tool "$1" --error-exitcode 9 $build/tests/braid_test_cuda --gtest_color=no --gtest_filter='OneToken.*'
  } >"$log/$1" 2>&1 &
  sanitizers[$1]=$!
}
sanitized() { # TOOL
  echo "== compute-sanitizer $1"
  if wait "${sanitizers[$1]}"; then
    row "compute-sanitizer $1" "clean, $(grep -cE '^\[       OK \]' "$log/$1") cases"
  else
    row "compute-sanitizer $1" "FAILED"
    failed=1
    grep -E 'ERROR|=========|FAILED' "$log/$1" | head -n 40
  fi
}

compile "build" $build braid_test_ops braid_test_cuda braid_test_train braid_bench braid_bench_model -- || exit 1
# Of ninja's log (start, end, …, output), with as many compilers beside it as there are cores. The budget is 60 s.
slowest=$(awk '/\.cu\.o\t/ && $2 - $1 > most { most = $2 - $1; file = $4 }
  END { sub(/.*braid_cuda.dir\//, "", file); printf "%.0f s: %s", most / 1000, file }' $build/.ninja_log)
row "slowest kernel file" "$slowest"

hold_kernels() {
  # Beside the tests, which wait for the GPU half of their time; it must end before anything is timed.
  mkdir "$log/80"
  (log=$log/80 && renice -n 19 $BASHPID && compile "" build-cuda-80 braid_cuda -- -DBRAID_CUDA_ARCHITECTURES=80 -DBRAID_TESTS=OFF) >"$log/sm_80" 2>&1 &
  sm_80=$!
  run_tests "offsets past 2^31" $build/tests/braid_test_cuda 'CudaLarge*'
  if command -v "$sanitizer" >/dev/null; then
    # shellcheck disable=SC2086
    gone=$(comm -23 <(printf '%s\n' $named_cases | sort) <(list_cases | sort)) # a filter would pass over them
    if [ -n "$gone" ]; then row "cases for compute-sanitizer" "GONE: ${gone//$'\n'/ }"; failed=1; fi
    cases=${BRAID_SANITIZER_FILTER:-$(small_cases)}
    sanitize memcheck "$cases"
    sanitize racecheck "$cases"
  else
    row "compute-sanitizer" "FAILED: not installed"
    failed=1
  fi
  run_tests "runtime, training, built shapes" $build/tests/braid_test_cuda '-CudaLarge*' 6
  run_tests "kernels against the CPU oracle" $build/tests/braid_test_ops "$filter" 8
  run_tests "optimizer against the CPU's" $build/tests/braid_test_train '*Cuda*'
  # The program needs Boost: built where it is found; else one that was built elsewhere may be named.
  program=${BRAID_PROGRAM:-$build/braid}
  [ -n "${BRAID_PROGRAM:-}" ] || ! grep -q '^build braid:' $build/build.ninja || compile "program" $build braid --
  if [ -x "$program" ]; then
    echo "== the program"
    start=$SECONDS
    tests/gpu_program.sh "$program" >"$log/program" 2>&1 || failed=1
    grep FAILED -A5 "$log/program"
    row "the program, from text to text" "$(tail -n 1 "$log/program") in $((SECONDS - start)) s"
  else
    row "the program, from text to text" "not run: no Boost, and BRAID_PROGRAM names none"
  fi
  for tool in "${!sanitizers[@]}"; do sanitized $tool; done
  if wait $sm_80; then row "kernels for sm_80" "compiled"; else row "kernels for sm_80" "FAILED"; failed=1; cat "$log/sm_80"; fi
}

time_kernels() {
  echo "== benchmarks"
  # shellcheck disable=SC2086
  if $build/tests/braid_bench ${BRAID_BENCH_OPTIONS:-} --json $build/bench.json >"$log/bench" 2>&1; then
    row "benchmarks" "$(grep -c '|' "$log/bench") rows, also in $build/bench.json"
  else
    row "benchmarks" "FAILED"
    failed=1
  fi
  # The bars of operators, forward and backward, ms: the fields before "|" hold operator and shape, the first after it the figure.
  missed=$(awk -F'|' '
    function bar() {
      if (/^linear_recurrence .*D 2048/) return 0.7
      if (/^gated_linear_attention .*H 16 K 128 V 128, per channel/) return 3
      if (/^gated_linear_attention .*H 8 K 256 V 512, constant/) return 4
      if (/^gated_delta_rule .*(H 16 K 128 V 128|H 8 K 256 V 256).*(16x2048|4x8192)/) return 5
      if (/^gated_delta_rule .*(H 16 K 128 V 128|H 8 K 256 V 256).*1x32768/) return 7
      if (/^gated_delta_rule .*, (16x2048|4x8192|1x32768|mixed)/) return 12
      if (/^attention .*H 16 D 128, 16x2048/) return 4.1
      if (/^attention .*H 16 D 128, 4x8192/) return 12.6
      if (/^attention .*H 16 D 128, 1x32768/) return 50.9
      return 0
    }
    NF == 2 && bar() { ++held; if ($2 + 0 > bar()) print $1 "takes " $2 + 0 " ms, " bar() " allowed" }
    END { if (held < 60) print "only " held + 0 " rows have a bar" }' "$log/bench")
  if [ -n "${BRAID_BENCH_OPTIONS:-}" ] && [[ $BRAID_BENCH_OPTIONS == *--op* ]]; then :
  elif [ -z "$missed" ]; then row "bars of operators" "kept"
  else row "bars of operators" "MISSED"; failed=1; echo "$missed"; fi
  bench_model() { # OPTIONS...
    $build/tests/braid_bench_model "$@" >>"$log/models" 2>&1 || { row "braid_bench_model $*" "FAILED"; failed=1; }
  }

  # The training bar, in what fits into 80 GB (cuda/runtime/README.md). Documents of equal work: steps then differ by nothing but the engine. Steps of
  # more than a second: a chip at its power limit changes its clock faster than that, and shorter steps show it.
  echo "== models"
  batch_of() {
    case $1 in
      340M-*) echo "--batch-tokens 262144 --micro 8 --steps 12" ;;
      1.3B-transformer | 1.3B-retnet-3-1) echo "--batch-tokens 65536 --micro 2 --steps 14" ;;
      *) echo "--batch-tokens 65536 --micro 4 --steps 14" ;;
    esac
  }
  # shellcheck disable=SC2046
  train() { bench_model --model "$1" $(batch_of "$1") "${@:2}"; }
  families="transformer gdn-3-1 hgrn2-3-1 deltanet-pure hgrn-pure retnet-3-1 gla-3-1"
  train 1.3B-transformer --equal
  for name in ${families#transformer }; do train 1.3B-$name --equal --row; done
  for name in $families; do train 340M-$name --equal --row; done
  for name in transformer gdn-3-1; do train 1.3B-$name --steps 6 --row; done
  # Fields: model, micro-batches, recompute, documents, median, least, most, apart, apart at one clock, first, first/median, tokens/s, MFU, GB,
  # seconds to the first step.
  missed=$(awk '$4 == "equal" && NF == 15 {
    if ($8 + 0 > 2) print $1 ": settled steps are " $8 " apart"
    if ($1 ~ /^1.3B/ && $11 > 2) print $1 ": the first step takes " $11 " times the median"
    if ($1 ~ /^1.3B/ && $15 > 15) print $1 ": the first step is done after " $15 " s"
    if ($1 ~ /^1.3B-(transformer|gdn-3-1)$/ && $13 + 0 < 45) print $1 ": MFU " $13
  }' "$log/models")
  kept=$(grep -c ' equal ' "$log/models")
  if [ -z "$missed" ] && [ "$kept" = 14 ]; then row "training bar" "kept by $kept models"; else row "training bar" "MISSED"; failed=1; echo "$missed"; fi
  for prompt in 100 100000; do bench_model --model 1.3B-gdn --steps 0 --decode 100 --prompt $prompt; done
  tokens=$(sed -nE 's/.*decoding after.* then ([0-9.]+) ms a token.*/\1/p' "$log/models" | xargs)
  if awk -v t="$tokens" 'BEGIN { exit !(split(t, ms, " ") == 2 && ms[1] <= 2 && ms[2] <= 2 && ms[2] <= 1.1 * ms[1]) }'; then
    row "decoding bar" "kept: $tokens ms a token"
  else
    row "decoding bar" "MISSED: $tokens ms a token"
    failed=1
  fi
}

touch "$log/bench" "$log/models"
[ $half = benchmarks ] || hold_kernels
[ $half = tests ] || time_kernels

echo "== results on $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1)"
printf '%s' "$table"
cat "$log/bench" "$log/models"
exit $failed
