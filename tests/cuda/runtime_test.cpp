#include "cuda/runtime/runtime.h"

#include <gtest/gtest.h>

#include "tests/support/random_tensors.h"

namespace braid::testing {
namespace {

class CudaRuntime : public ::testing::Test {
 protected:
  void SetUp() override {
    if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  }
};

TEST_F(CudaRuntime, CopiesAndConverts) {
  Context host, gpu = cuda::make_context();
  Random random(1);
  const Tensor x = uniform(host, random, {1000});
  const Tensor y = converted(gpu, copied(gpu, x), DType::bf16);
  EXPECT_TRUE(same_bits(gpu, y, converted(host, x, DType::bf16)));
  const Tensor sum = copied(gpu, x);
  convert_into(gpu, sum, copied(gpu, x), true);
  EXPECT_EQ(to_vector<double>(gpu, sum)[7], 2 * to_vector<double>(host, x)[7]);
}

TEST_F(CudaRuntime, CountsMemoryAndSaysWhenItIsOut) {
  Context gpu = cuda::make_context();
  const int64_t before = cuda::memory_use().used_bytes;
  const Tensor kept = Tensor::zeros(gpu, {1 << 20}, DType::f32);
  EXPECT_EQ(cuda::memory_use().used_bytes - before, 4 << 20);
  try {
    Tensor::empty(gpu, {int64_t{1} << 42}, DType::f32);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("cuda:0: out of memory: asked for 17592186044416 bytes"), std::string::npos) << error.what();
  }
}

TEST_F(CudaRuntime, EventsTimeAndGraphsReplay) {
  Context gpu = cuda::make_context();
  const Tensor a = Tensor::zeros(gpu, {4}, DType::f32);
  const Tensor one = copied(gpu, from_vector<float>(*std::make_unique<Context>(), {1, 1, 1, 1}, {4}));
  cuda::Graph graph;
  graph.record(gpu, [&] { convert_into(gpu, a, one, true); });
  cuda::Event begin, end;
  begin.record(gpu.stream());
  for (int i = 0; i < 3; ++i) graph.replay(gpu);
  end.record(gpu.stream());
  end.synchronize();
  EXPECT_GT(cuda::Event::elapsed_ms(begin, end), 0);
  EXPECT_EQ(to_vector<float>(gpu, a)[0], 3);
}

TEST_F(CudaRuntime, RefusesADeviceThatIsNotThere) { EXPECT_THROW(cuda::make_context(99), Error); }

}  // namespace
}  // namespace braid::testing
