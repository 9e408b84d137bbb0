#include "cuda/runtime/runtime.h"

#include <gtest/gtest.h>

#include "core/owner.h"
#include "core/transfers.h"
#include "cuda/runtime/memory.h"
#include "ops/linear.h"
#include "tests/support/error_of.h"
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

TEST_F(CudaRuntime, ConvertsBetweenAllTypesAsTheHostDoes) {
  Context host, gpu = cuda::make_context();
  Random random(2);
  const Tensor x = uniform(host, random, {1000}), y = uniform(host, random, {1000});
  for (const DType from : {DType::f64, DType::f32, DType::bf16})
    for (const DType to : {DType::f64, DType::f32, DType::bf16})
      for (const bool add : {false, true}) {
        const Tensor value = converted(host, x, from), on_host = copied(host, converted(host, y, to)), on_gpu = copied(gpu, on_host);
        convert_into(host, on_host, value, add);
        convert_into(gpu, on_gpu, copied(gpu, value), add);
        EXPECT_TRUE(same_bits(gpu, on_gpu, on_host)) << to_string(from) << " to " << to_string(to) << (add ? ", added" : "");
      }
}

TEST_F(CudaRuntime, CountsMemoryAndSaysWhenItIsOut) {
  Context gpu = cuda::make_context();
  const int64_t before = cuda::memory_use().used_bytes;
  const Tensor kept = Tensor::zeros(gpu, {1 << 20}, DType::f32);
  EXPECT_EQ(cuda::memory_use().used_bytes - before, 4 << 20);
  const WithOwner owner("somebody");
  try {
    Tensor::empty(gpu, {int64_t{1} << 42}, DType::f32);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("activations and scratch "), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("cuda:0: out of memory: somebody asked for 17592186044416 bytes"), std::string::npos) << error.what();
  }
}

int64_t held_by(const std::string& owner) {
  for (const HeldBytes& held : cuda::memory_held())
    if (held.owner == owner) return held.bytes;
  return 0;
}

TEST_F(CudaRuntime, TellsWhichOperatorAskedAndWhichHold) {
  Context gpu = cuda::make_context();
  const Tensor x = Tensor::zeros(gpu, {1024, 64}, DType::f32), weight = Tensor::zeros(gpu, {256, 64}, DType::f32);
  const int64_t before = held_by("linear");
  const Tensor y = linear(gpu, x, weight);
  EXPECT_EQ(held_by("linear") - before, y.nbytes());
  const Tensor endless = Tensor::empty(gpu, {int64_t{1} << 42, 0}, DType::f32), none = Tensor::empty(gpu, {1, 0}, DType::f32);
  const std::string message = error_of([&] { linear(gpu, endless, none); });
  EXPECT_TRUE(message.starts_with("cuda:0: out of memory: linear asked for 17592186044416 bytes; in use ")) << message;
  EXPECT_NE(message.find("linear " + std::to_string(held_by("linear"))), std::string::npos) << message;
  EXPECT_TRUE(message.ends_with("; a shorter context or a smaller batch needs less")) << message;
}

TEST_F(CudaRuntime, CountsWhatARecordedGraphHolds) {
  Context gpu = cuda::make_context();
  const Tensor x = Tensor::zeros(gpu, {256}, DType::f32);
  const int64_t before = cuda::memory_use().used_bytes, graphs = held_by("recorded graph");
  {
    cuda::Graph graph;
    graph.record(gpu, [&] { copied(gpu, x); });
    EXPECT_GE(held_by("recorded graph") - graphs, x.nbytes());
    EXPECT_EQ(cuda::memory_use().used_bytes - before, held_by("recorded graph") - graphs);
    const std::string message = error_of([&] { graph.record(gpu, [&] { Tensor::empty(gpu, {int64_t{1} << 42}, DType::f32); }); });
    EXPECT_TRUE(message.starts_with("cuda:0: out of memory: a recorded graph (activations and scratch) asked for 17592186044416 bytes; in use "))
        << message;
  }
  EXPECT_EQ(cuda::memory_use().used_bytes, before);
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

TEST_F(CudaRuntime, UploadsAndReadsWithoutWaiting) {
  Context gpu = cuda::make_context();
  std::vector<Tensor> tensors;
  std::vector<std::unique_ptr<PendingRead>> reads;
  for (int i = 0; i < 200; ++i) {  // the host's values are gone before the device has them
    tensors.push_back(from_vector<float>(gpu, std::vector<float>(1000, static_cast<float>(i)), {1000}));
    reads.push_back(transfers_of(gpu.device()).read(tensors.back().raw(), 4000, gpu.stream()));
  }
  for (int i = 0; i < 200; ++i) EXPECT_EQ(reinterpret_cast<const float*>(reads[i]->wait())[999], static_cast<float>(i));
  const std::vector<float> large(40 << 20, 3);  // more than is staged at once
  EXPECT_EQ(to_vector<float>(gpu, from_vector(gpu, large, {40 << 20})), large);
}

TEST_F(CudaRuntime, GraphsKeepWhatTheyMade) {
  Context gpu = cuda::make_context();
  const Tensor x = Tensor::zeros(gpu, {256}, DType::f32), one = from_vector<float>(gpu, std::vector<float>(256, 1), {256});
  Tensor made;
  cuda::Graph graph;
  graph.record(gpu, [&] {
    convert_into(gpu, x, one, true);
    for (int i = 0; i < 3; ++i) made = copied(gpu, x);
  });
  const Tensor other = Tensor::zeros(gpu, {256}, DType::f32);
  for (int i = 1; i <= 3; ++i) {
    graph.replay(gpu);
    EXPECT_EQ(to_vector<float>(gpu, made)[255], static_cast<float>(i));
  }
  EXPECT_EQ(to_vector<float>(gpu, other)[255], 0);
  EXPECT_THROW(graph.record(gpu, [&] { from_vector<float>(gpu, {1}, {1}); }), Error);
}

TEST_F(CudaRuntime, RefusesADeviceThatIsNotThere) { EXPECT_THROW(cuda::make_context(99), Error); }

}  // namespace
}  // namespace braid::testing
