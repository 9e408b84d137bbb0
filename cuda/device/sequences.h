// Which sequence of a packed batch a token is in.
#pragma once
#include <cstdint>

namespace braid::device {

/// The sequence that a walk over tokens is in: [begin, end) are its tokens. Sequences without tokens are never met.
struct SequenceWalk {
  const int64_t* starts;  // cu_seqlens [S+1]
  int64_t idx, begin, end;

  /// At `token`, 0 ≤ token < N.
  __device__ SequenceWalk(const int64_t* cu_seqlens, int64_t num_sequences, int64_t token) : starts(cu_seqlens) {
    int64_t low = 0, high = num_sequences;  // starts[low] ≤ token < starts[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      if (starts[middle] <= token) low = middle;
      else high = middle;
    }
    idx = low, begin = starts[low], end = starts[low + 1];
  }

  /// To the sequence of token `end`, which must exist.
  __device__ void advance() {
    const int64_t token = end;
    do ++idx;
    while (starts[idx + 1] <= token);
    begin = starts[idx], end = starts[idx + 1];
  }
};

}  // namespace braid::device
