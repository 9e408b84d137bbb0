#!/usr/bin/env bash
# From a fresh clone to the paper's question answered in miniature: installs what is missing, builds, trains a grid of tiny models on
# associative recall and on this repository's own text, and writes quickstart/report.html and quickstart/results.json.
set -eu
cd "$(dirname "$0")/.."
. examples/install.sh

preset=cpu
nvcc=$(find_nvcc)
if has_gpu && [ -n "$nvcc" ]; then preset=cuda; fi
build=$(preset_folder "$preset")

echo "== building (a few minutes)"
cmake --preset "$preset" -DBRAID_TESTS=OFF ${nvcc:+-DCMAKE_CUDA_COMPILER="$nvcc"} >/dev/null
cmake --build "$build" --target braid -j "$(nproc)"

echo "== the study (less than ten minutes on two cores)"
"$build/braid" study --preset quickstart --text . --out quickstart "$@"
