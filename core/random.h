// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once
#include <array>
#include <cstdint>

namespace braid {

/// The four words of Philox4x32-10 for this key and counter.
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_low, uint64_t counter_high);

/// A reproducible sequence: all its state is two numbers, so it is saved and restored exactly.
class Random {
 public:
  struct State {
    uint64_t seed = 0, position = 0;
    friend bool operator==(const State&, const State&) = default;
  };

  explicit Random(uint64_t seed = 0, uint64_t stream = 0) : state_{seed, 0}, stream_(stream) {}

  uint64_t next_u64();
  /// Uniform in [0, 1), 53 bits.
  double uniform();
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  /// Standard normal (Box-Muller).
  double normal();
  /// Uniform in [0, bound), without bias; bound > 0.
  uint64_t below(uint64_t bound);

  State state() const { return state_; }
  void set_state(State state) { state_ = state; }
  /// An independent sequence named by `stream` (a layer, a data set, an evaluation).
  Random split(uint64_t stream) const;

 private:
  State state_;
  uint64_t stream_;
};

}  // namespace braid
