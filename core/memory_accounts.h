// Who holds how much of a device's memory.
#pragma once
#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace braid {

struct HeldBytes {
  std::string owner;
  int64_t bytes = 0;
};

/// Counts pieces of memory by owner (core/owner.h), now and when most was held. Any thread may call it.
class MemoryAccounts {
 public:
  /// From now on `owner`, whose name must live forever, holds the bytes at `pointer`.
  void add(const void* pointer, int64_t bytes, std::string_view owner);
  /// Nobody holds what is at `pointer` any more (a pointer that was not added: nothing happens).
  void remove(const void* pointer) noexcept;
  /// From now on the peak is counted from what is held now.
  void reset_peak();

  int64_t used_bytes() const;
  int64_t peak_bytes() const;
  /// Largest first.
  std::vector<HeldBytes> held() const;
  std::vector<HeldBytes> held_at_peak() const;
  int64_t held_by(std::string_view owner) const;
  /// "in use 30: parameters 20, linear 10": the largest holders, and others together.
  std::string summary() const;

 private:
  struct Account {
    std::string_view owner;
    int64_t bytes = 0, at_peak = 0;
  };
  struct Piece {
    size_t account;
    int64_t bytes;
  };
  size_t account_of(std::string_view owner);
  std::vector<HeldBytes> sorted(int64_t Account::*bytes) const;

  mutable std::mutex mutex_;
  int64_t used_ = 0, peak_ = 0;
  bool at_peak_is_stale_ = false;  // what is held now was the peak's until the next removal
  std::vector<Account> accounts_;  // one name may have several, of equal texts at different addresses
  std::unordered_map<const void*, Piece> pieces_;
};

}  // namespace braid
