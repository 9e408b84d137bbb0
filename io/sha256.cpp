#include "io/sha256.h"

#include <algorithm>
#include <cstring>

namespace braid {

void Sha256::update(const void* bytes, int64_t count) {
  const auto* next = static_cast<const uint8_t*>(bytes);
  while (count > 0) {
    const int64_t used = static_cast<int64_t>(num_bytes_ % 64);
    int64_t taken = std::min<int64_t>(64 - used, count);
    if (taken == 64) {
      taken = count / 64 * 64;
      detail::sha256_blocks(state_, next, taken / 64);
    } else {
      std::memcpy(block_.data() + used, next, static_cast<size_t>(taken));
      if (used + taken == 64) detail::sha256_blocks(state_, block_.data(), 1);
    }
    num_bytes_ += static_cast<uint64_t>(taken);
    next += taken;
    count -= taken;
  }
}

std::string Sha256::hex() const {
  Sha256 last = *this;
  const uint64_t num_bits = num_bytes_ * 8;
  const uint8_t end = 0x80, zero = 0;
  last.update(&end, 1);
  while (last.num_bytes_ % 64 != 56) last.update(&zero, 1);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(num_bits >> (56 - 8 * i));
  last.update(length, 8);
  std::string digits;
  for (uint32_t word : last.state_)
    for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[(word >> shift) & 15];
  return digits;
}

std::string sha256_of(std::string_view bytes) {
  Sha256 digest;
  digest.update(bytes.data(), static_cast<int64_t>(bytes.size()));
  return digest.hex();
}

std::string sha256_of_file(const Path& path) {
  InputFile file(path);
  Sha256 digest;
  std::string buffer(size_t{1} << 20, '\0');
  while (const int64_t got = file.read(buffer.data(), static_cast<int64_t>(buffer.size()))) digest.update(buffer.data(), got);
  return digest.hex();
}

}  // namespace braid
