// Element types of tensors.
#pragma once
#include <bit>
#include <cstdint>
#include <string_view>

#include "core/error.h"

namespace braid {

enum class DType : uint8_t { f64, f32, bf16, f16, i64, i32, u16, u8 };

constexpr std::string_view to_string(DType dtype) {
  constexpr std::string_view kNames[] = {"f64", "f32", "bf16", "f16", "i64", "i32", "u16", "u8"};
  return kNames[static_cast<int>(dtype)];
}
inline std::ostream& operator<<(std::ostream& out, DType dtype) { return out << to_string(dtype); }

constexpr int64_t size_bytes(DType dtype) {
  constexpr int64_t kSizes[] = {8, 4, 2, 2, 8, 4, 2, 1};
  return kSizes[static_cast<int>(dtype)];
}

constexpr bool is_floating(DType dtype) { return dtype <= DType::f16; }

/// The type in which states, reductions and gates of a `dtype` computation are kept: f64 for f64, else f32.
constexpr DType accumulator(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

/// "f64", "f32", "bf16": the compute types a user may choose. Throws Error naming `what` otherwise.
DType parse_compute_dtype(std::string_view what, std::string_view text);

/// bfloat16 on the host: storage only; arithmetic is done in float. Rounds to nearest even, keeps NaN.
struct bf16 {
  uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    const uint32_t raw = std::bit_cast<uint32_t>(value);
    const bool nan = (raw & 0x7fffffffu) > 0x7f800000u;
    bits = static_cast<uint16_t>(nan ? (raw >> 16) | 0x40u : (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

/// IEEE half precision on the host: read from model files, never computed in.
struct f16 {
  uint16_t bits = 0;
  explicit operator float() const;
};

template <class T>
constexpr DType dtype_of() = delete;
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<bf16>() {
  return DType::bf16;
}
template <>
constexpr DType dtype_of<f16>() {
  return DType::f16;
}
template <>
constexpr DType dtype_of<int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<uint16_t>() {
  return DType::u16;
}
template <>
constexpr DType dtype_of<uint8_t>() {
  return DType::u8;
}

}  // namespace braid
