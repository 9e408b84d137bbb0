// SHA-256 (NIST FIPS 180-4).
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "io/file.h"
#include "io/sha256_blocks.h"

namespace braid {

/// The digest of bytes given piece by piece.
class Sha256 {
 public:
  void update(const void* bytes, int64_t count);
  /// The digest of all bytes so far as 64 lower-case hexadecimal digits. The object can go on taking bytes.
  std::string hex() const;

 private:
  detail::Sha256State state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  uint64_t num_bytes_ = 0;
};

std::string sha256_of(std::string_view bytes);
/// Digest of a file's content, read in pieces.
std::string sha256_of_file(const Path& path);

}  // namespace braid
