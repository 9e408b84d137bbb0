#!/usr/bin/env bash
# The program on a GPU, from text to text: what tests of kernels and layers do not see. Last line: "N passed, N failed".
#   tests/gpu_program.sh PROGRAM [DEVICE]    DEVICE: cuda, or cpu to try the script itself
set -u
cd "$(dirname "$0")/.." || exit 1
program=$(realpath "$1") device=${2:-cuda}
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT
passed=0 failed=0
holds() { # NAME COMMAND...: it succeeds
  if "${@:2}" >"$run/log" 2>&1; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    echo "FAILED: $1"
    tail -n 5 "$run/log"
  fi
}
number() { grep -oE "\"$2\": *[-0-9.e+]+" "$1" | head -n 1 | grep -oE '[-0-9.e+]+$'; } # FILE KEY
close() { awk -v a="$1" -v b="$2" -v most="$3" 'BEGIN { d = a - b; exit !(a != "" && b != "" && (d < 0 ? -d : d) <= most * b) }'; }

holds "tokenize" "$program" tokenize --input README.md cuda/README.md examples/real_text.md --out "$run/data.h5"
train() { # MODEL OUT STEPS OPTIONS...
  "$program" train --model "$1" --data "$run/data.h5" --out "$run/$2" --steps "$3" --batch-tokens 2048 --context 256 --device "$device" "${@:4}"
}
perplexity() { # OUT DEVICE DTYPE
  "$program" eval --model "$run/$1" --data "$run/data.h5" --context 256 --max-tokens 8192 --device "$2" --dtype "$3" --json "$run/$1-$2-$3.json"
}
same_perplexity() { # OUT, and how far the numbers of bf16 and of f32 on DEVICE may be from the CPU's
  perplexity "$1" cpu f32 && perplexity "$1" "$device" bf16 && perplexity "$1" "$device" f32 &&
    close "$(number "$run/$1-$device-bf16.json" perplexity)" "$(number "$run/$1-cpu-f32.json" perplexity)" "$2" &&
    close "$(number "$run/$1-$device-f32.json" perplexity)" "$(number "$run/$1-cpu-f32.json" perplexity)" "$3"
}
generate() { # OUT DEVICE DTYPE: the likeliest continuation
  "$program" generate --model "$run/$1" --prompt "The " --temperature 0 --max-tokens 24 --device "$2" --dtype "$3"
}
same_text() {
  generate "$1" cpu f32 >"$run/cpu.txt" && generate "$1" "$device" f32 >"$run/f32.txt" && generate "$1" "$device" bf16 >"$run/bf16.txt" &&
    cmp "$run/cpu.txt" "$run/f32.txt" && [ -s "$run/bf16.txt" ]
}
for family in gdn-3-1 hgrn2-3-1 retnet-3-1; do
  holds "train tiny-$family" train tiny-$family $family 40 --save-every 20 --keep 0
  holds "perplexity of $family, the CPU's" same_perplexity $family 0.02 1e-4
  holds "text of $family, the CPU's" same_text $family
done
# Gone on from the middle: the same bits as never stopped (in HDF5 itself there is the time of writing).
export_run() { "$program" convert --from "$run/$1" --to "$run/$1-exported"; }
goes_on() {
  cp -r "$run/gdn-3-1" "$run/part" && rm -r "$run/part/checkpoints/step-00000040" && train tiny-gdn-3-1 part 40 --save-every 20 --keep 0 --resume &&
    export_run gdn-3-1 && export_run part && cmp "$run"/{gdn-3-1,part}-exported/model.safetensors
}
holds "resume" goes_on
holds "the report of memory" train tiny-gdn-3-1 memory 3 --memory
for dtype in f32 bf16; do
  holds "check of every operator in $dtype" "$program" check --file tests/data/ops/*.safetensors --dtype $dtype --device "$device"
done
for model in tests/data/models/*; do
  holds "forward of $model" "$program" forward --model "$model" --tokens "$model/case.safetensors" --out "$run/logits.safetensors" --grad --dtype f32 --device "$device"
done
holds "bench" "$program" bench --op rms_norm --budget-ms 5 --device "$device"
if "$program" generate --model "$run/none" --device "$device" >"$run/log" 2>&1; then failed=$((failed + 1)); else passed=$((passed + 1)); fi
echo "$passed passed, $failed failed"
[ $failed = 0 ]
