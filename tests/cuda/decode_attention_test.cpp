// Attention of one new token to a ring is attention to the ring's live rows.
#include "ops/decode_attention.h"

#include <gtest/gtest.h>

#include <limits>

#include "ops/attention.h"
#include "tests/support/cuda_laws.h"

namespace braid::testing {
namespace {

struct Case {
  int64_t H, HK, D, capacity, position;
};

/// Rows of a ring in f64: normal where live before the new one, NaN elsewhere.
Tensor ring_of(Context& host, Random& random, const Case& c) {
  const Tensor ring = normal(host, random, {c.capacity, c.HK, c.D});
  for (int64_t i = std::min(c.position, c.capacity) * c.HK * c.D; i < ring.numel(); ++i)
    ring.data<double>()[i] = std::numeric_limits<double>::quiet_NaN();
  return ring;
}

void expect_attention(Context& gpu, const Case& c, DType dtype) {
  SCOPED_TRACE(::testing::Message() << c.H << " and " << c.HK << " heads of " << c.D << ", position " << c.position << " in " << c.capacity << ", "
                                    << to_string(dtype));
  Context host;
  Random random(3);
  const auto rounded = [&](const Tensor& tensor) { return converted(host, tensor, dtype); };
  const Tensor q = rounded(normal(host, random, {1, c.H, c.D})), k = rounded(normal(host, random, {1, c.HK, c.D}));
  const Tensor v = rounded(normal(host, random, {1, c.HK, c.D})), ring_k = rounded(ring_of(host, random, c)),
               ring_v = rounded(ring_of(host, random, c));
  const Tensor on_gpu_k = copied(gpu, ring_k), on_gpu_v = copied(gpu, ring_v), position = from_vector<int64_t>(gpu, {c.position}, {1});
  const Tensor o = decode_attention_cuda(gpu, copied(gpu, q), copied(gpu, k), copied(gpu, v), on_gpu_k, on_gpu_v, position);

  const int64_t row = c.position % c.capacity, live = std::min(c.position + 1, c.capacity);
  copy_into(host, ring_k.slice(0, row, row + 1), k);
  copy_into(host, ring_v.slice(0, row, row + 1), v);
  EXPECT_TRUE(same_bits(host, converted(host, copied(host, on_gpu_k.slice(0, 0, live)), dtype), ring_k.slice(0, 0, live)));
  const auto wide = [&](const Tensor& tensor) { return converted(host, contiguous(host, tensor), DType::f64); };
  const Tensor expected = apply<Attention>(host, {wide(q), wide(ring_k.slice(0, 0, live)), wide(ring_v.slice(0, 0, live))},
                                           {.q_seqs = Sequences::single(1), .k_seqs = Sequences::single(live)})
                              .o;
  const Tensor actual = from_vector(host, to_vector<double>(gpu, o), o.shape());
  EXPECT_LE(relative_error(host, actual, expected), cuda_tolerance(dtype, false, "o"));
}

TEST(CudaDecodeAttention, IsAttentionToTheLiveRows) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context gpu = cuda::make_context();
  const Case cases[] = {{4, 2, 64, 100, 0}, {4, 2, 64, 100, 70}, {8, 2, 128, 3000, 2600}, {2, 2, 256, 300, 299},  {4, 1, 128, 200, 777},
                        {6, 3, 40, 50, 20}, {6, 3, 40, 50, 120}, {40, 2, 64, 70, 30},     {16, 16, 128, 9000, 5}, {16, 1, 64, 5000, 4999}};
  for (const Case& c : cases)
    for (DType dtype : {DType::f32, DType::bf16}) expect_attention(gpu, c, dtype);
}

}  // namespace
}  // namespace braid::testing
