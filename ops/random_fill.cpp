#include "ops/random_fill.h"

#include "autograd/operator.h"
#include "ops/eigen.h"

namespace braid {

namespace {

constexpr uint64_t kDrawsPerNormal = 2;  // Random::normal

}  // namespace

RandomKey split_key(uint64_t seed, uint64_t name) {
  const auto words = philox(seed, name, 1);
  return {uint64_t{words[0]} << 32 | words[1], uint64_t{words[2]} << 32 | words[3]};
}

void fill_normal(Context& ctx, const Tensor& values, const RandomKey& key, double scale) {
  BRAID_CHECK(values.contiguous(), "fill_normal: the tensor must be contiguous");
  if constexpr (kWithCuda)
    if (!ctx.on_cpu()) return fill_normal_cuda(ctx, values, key, scale);
  constexpr int64_t kGrain = 1 << 14;
  dispatch_real("fill_normal", values.dtype(), [&]<class T>() {
    T* to = values.data<T>();
    ctx.parallel_for(values.numel(), kGrain, [&](int64_t begin, int64_t end) {
      Random random(key.seed, key.stream);
      random.set_state({key.seed, kDrawsPerNormal * static_cast<uint64_t>(begin)});
      for (int64_t i = begin; i < end; ++i) to[i] = static_cast<T>(scale * random.normal());
    });
  });
}

}  // namespace braid
