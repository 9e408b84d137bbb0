#include "core/memory_accounts.h"

#include <algorithm>
#include <locale>
#include <map>
#include <sstream>

namespace braid {

/// By address, not by text: operators are few, and each has its name in one place.
size_t MemoryAccounts::account_of(std::string_view owner) {
  const auto same = [&](const Account& account) { return account.owner.data() == owner.data() && account.owner.size() == owner.size(); };
  const auto found = std::find_if(accounts_.begin(), accounts_.end(), same);
  if (found != accounts_.end()) return static_cast<size_t>(found - accounts_.begin());
  accounts_.push_back({owner});
  return accounts_.size() - 1;
}

void MemoryAccounts::add(const void* pointer, int64_t bytes, std::string_view owner) {
  const std::lock_guard lock(mutex_);
  const size_t account = account_of(owner);
  pieces_[pointer] = {account, bytes};
  accounts_[account].bytes += bytes;
  used_ += bytes;
  if (used_ < peak_) return;
  peak_ = used_;
  at_peak_is_stale_ = true;
}

void MemoryAccounts::remove(const void* pointer) noexcept {
  const std::lock_guard lock(mutex_);
  const auto piece = pieces_.find(pointer);
  if (piece == pieces_.end()) return;
  if (at_peak_is_stale_) {  // the peak is over: this is what it was made of
    for (Account& account : accounts_) account.at_peak = account.bytes;
    at_peak_is_stale_ = false;
  }
  accounts_[piece->second.account].bytes -= piece->second.bytes;
  used_ -= piece->second.bytes;
  pieces_.erase(piece);
}

void MemoryAccounts::reset_peak() {
  const std::lock_guard lock(mutex_);
  peak_ = used_;
  at_peak_is_stale_ = true;
}

int64_t MemoryAccounts::used_bytes() const {
  const std::lock_guard lock(mutex_);
  return used_;
}

int64_t MemoryAccounts::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

std::vector<HeldBytes> MemoryAccounts::held() const {
  const std::lock_guard lock(mutex_);
  return sorted(&Account::bytes);
}

std::vector<HeldBytes> MemoryAccounts::held_at_peak() const {
  const std::lock_guard lock(mutex_);
  return sorted(at_peak_is_stale_ ? &Account::bytes : &Account::at_peak);
}

int64_t MemoryAccounts::held_by(std::string_view owner) const {
  const std::lock_guard lock(mutex_);
  int64_t sum = 0;
  for (const Account& account : accounts_) sum += account.owner == owner ? account.bytes : 0;
  return sum;
}

std::string MemoryAccounts::summary() const {
  constexpr size_t kMost = 6;
  const std::vector<HeldBytes> all = held();
  int64_t total = 0, others = 0;
  std::ostringstream list;
  list.imbue(std::locale::classic());
  for (size_t i = 0; i < all.size(); ++i) {
    total += all[i].bytes;
    if (i < kMost) list << (i ? ", " : ": ") << all[i].owner << ' ' << all[i].bytes;
    else others += all[i].bytes;
  }
  if (others) list << ", others " << others;
  return "in use " + std::to_string(total) + list.str();
}

std::vector<HeldBytes> MemoryAccounts::sorted(int64_t Account::*bytes) const {
  std::map<std::string_view, int64_t> by_owner;
  for (const Account& account : accounts_) by_owner[account.owner] += account.*bytes;
  std::vector<HeldBytes> result;
  for (const auto& [owner, sum] : by_owner)
    if (sum > 0) result.push_back({std::string(owner), sum});
  std::stable_sort(result.begin(), result.end(), [](const HeldBytes& a, const HeldBytes& b) { return a.bytes > b.bytes; });
  return result;
}

}  // namespace braid
