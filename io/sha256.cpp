#include "io/sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace braid {
namespace {

// FIPS 180-4, 4.2.2: the first 32 bits of the fractional parts of the cube roots of the first 64 primes.
constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be,
    0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa,
    0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85,
    0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3,
    0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f,
    0x682e6ff3, 0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t load_big_endian(const uint8_t* bytes) {
  return uint32_t{bytes[0]} << 24 | uint32_t{bytes[1]} << 16 | uint32_t{bytes[2]} << 8 | uint32_t{bytes[3]};
}

}  // namespace

void Sha256::compress(const uint8_t* block) {
  uint32_t w[64];
  for (int t = 0; t < 16; ++t) w[t] = load_big_endian(block + 4 * t);
  for (int t = 16; t < 64; ++t) {
    const uint32_t low = std::rotr(w[t - 15], 7) ^ std::rotr(w[t - 15], 18) ^ (w[t - 15] >> 3);
    const uint32_t high = std::rotr(w[t - 2], 17) ^ std::rotr(w[t - 2], 19) ^ (w[t - 2] >> 10);
    w[t] = high + w[t - 7] + low + w[t - 16];
  }
  auto [a, b, c, d, e, f, g, h] = state_;
  for (int t = 0; t < 64; ++t) {
    const uint32_t sum_e = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
    const uint32_t t1 = h + sum_e + ((e & f) ^ (~e & g)) + kRound[t] + w[t];
    const uint32_t sum_a = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
    const uint32_t t2 = sum_a + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + t1;
    d = c, c = b, b = a, a = t1 + t2;
  }
  const std::array<uint32_t, 8> added = {a, b, c, d, e, f, g, h};
  for (int i = 0; i < 8; ++i) state_[i] += added[i];
}

void Sha256::update(const void* bytes, int64_t count) {
  const auto* next = static_cast<const uint8_t*>(bytes);
  while (count > 0) {
    const int64_t used = static_cast<int64_t>(num_bytes_ % 64);
    const int64_t taken = std::min<int64_t>(64 - used, count);
    if (taken == 64) {
      compress(next);
    } else {
      std::memcpy(block_.data() + used, next, static_cast<size_t>(taken));
      if (used + taken == 64) compress(block_.data());
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
