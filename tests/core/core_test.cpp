#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/communicator.h"
#include "core/owner.h"
#include "core/sequences.h"
#include "tests/support/error_of.h"

namespace braid {
namespace {

using testing::error_of;

TEST(DType, Bf16RoundsToNearestEven) {
  EXPECT_EQ(bf16(1.0f).bits, 0x3f80);
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // a tie goes to the even neighbour
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);
  EXPECT_EQ(bf16(std::bit_cast<float>(0x3f808001u)).bits, 0x3f81);
  EXPECT_TRUE(std::isnan(static_cast<float>(bf16(std::bit_cast<float>(0x7f800001u)))));
  EXPECT_EQ(static_cast<float>(bf16(std::numeric_limits<float>::infinity())), std::numeric_limits<float>::infinity());
}

TEST(DType, F16ReadsEveryKindOfValue) {
  EXPECT_EQ(static_cast<float>(f16{0x3c00}), 1.0f);
  EXPECT_EQ(static_cast<float>(f16{0xc000}), -2.0f);
  EXPECT_EQ(static_cast<float>(f16{0x0001}), std::ldexp(1.0f, -24));
  EXPECT_EQ(static_cast<float>(f16{0x7bff}), 65504.0f);
  EXPECT_TRUE(std::isinf(static_cast<float>(f16{0x7c00})));
  EXPECT_TRUE(std::isnan(static_cast<float>(f16{0x7c01})));
}

TEST(Tensor, ViewsShareBytesAndSlicesStride) {
  Context ctx;
  std::vector<float> values(24);
  std::iota(values.begin(), values.end(), 0.0f);
  const Tensor t = from_vector(ctx, values, {2, 3, 4});
  EXPECT_EQ(t.view({6, 4}).data<float>(), t.data<float>());
  const Tensor middle = t.slice(1, 1, 2);
  EXPECT_FALSE(middle.contiguous());
  EXPECT_EQ(to_vector<float>(ctx, middle), (std::vector<float>{4, 5, 6, 7, 16, 17, 18, 19}));
  EXPECT_EQ(to_vector<float>(ctx, t.slice(2, 3, 4)), (std::vector<float>{3, 7, 11, 15, 19, 23}));
  EXPECT_EQ(contiguous(ctx, middle).shape(), (Shape{2, 1, 4}));
}

TEST(Tensor, SaysWhatIsWrong) {
  Context ctx;
  const Tensor t = Tensor::zeros(ctx, {2, 3}, DType::f32);
  EXPECT_EQ(error_of([&] { t.data<double>(); }), "tensor: asked for f64 data of a f32 tensor [2, 3]");
  EXPECT_EQ(error_of([&] { t.view({5}); }), "view: [2, 3] cannot be seen as [5]");
  EXPECT_EQ(error_of([&] { t.slice(0, 1, 3); }), "slice: [1, 3) of dimension 0 is not inside [2, 3]");
  EXPECT_EQ(error_of([&] { Tensor().data<float>(); }), "tensor: an undefined tensor has no data");
  EXPECT_EQ(error_of([&] { Tensor::over(t.storage(), 4, {2, 3}, DType::f32); }), "tensor: f32 [2, 3] at byte 4 does not fit into 24 bytes");
}

TEST(Tensor, ConvertsBetweenTypes) {
  Context ctx;
  const Tensor t = from_vector<double>(ctx, {1.0, -2.5, 1e300, 0.1}, {4});
  EXPECT_EQ(to_vector<float>(ctx, converted(ctx, t, DType::bf16))[1], -2.5f);
  EXPECT_EQ(to_vector<double>(ctx, converted(ctx, t, DType::f32))[3], static_cast<double>(0.1f));
  const Tensor sum = from_vector<float>(ctx, {1, 1, 1, 1}, {4});
  convert_into(ctx, sum, from_vector<float>(ctx, {1, 2, 3, 4}, {4}), true);
  EXPECT_EQ(to_vector<float>(ctx, sum), (std::vector<float>{2, 3, 4, 5}));
}

TEST(Storage, GuardsSeeWritesOutside) {
  const int64_t before = num_damaged_storages();
  {
    auto storage = Storage::make(16, Stream{}, true);
    EXPECT_TRUE(std::isnan(*reinterpret_cast<float*>(storage->data())));
    EXPECT_TRUE(storage->guards_intact());
    volatile std::byte* past = storage->data() + 16;
    *past = std::byte{1};
    EXPECT_FALSE(storage->guards_intact());
  }
  EXPECT_EQ(num_damaged_storages(), before + 1);
}

TEST(Storage, SaysWhoAskedForTooMuch) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer ends a program that asks for too much";
#endif
  Context ctx(1);
  const Tensor held = Tensor::empty(ctx, {1000}, DType::f32);
  const WithOwner owner("somebody");
  const std::string message = error_of([&] { Tensor::empty(ctx, {int64_t{1} << 56}, DType::f32); });
  EXPECT_TRUE(message.starts_with("cpu: out of memory: somebody asked for 288230376151711744 bytes; ")) << message;
  EXPECT_NE(message.find("needs less"), std::string::npos) << message;
}

TEST(Storage, CountsHostMemory) {
  const int64_t before = host_memory().used_bytes;
  {
    const auto first = Storage::make(1000, Stream{});
    reset_host_peak();
    EXPECT_EQ(host_memory().used_bytes, before + 1000);
    EXPECT_EQ(host_memory().peak_bytes, before + 1000);
    Storage::make(500, Stream{});
    const auto third = Storage::make(200, Stream{});
    EXPECT_EQ(host_memory().used_bytes, before + 1200);
    EXPECT_EQ(host_memory().peak_bytes, before + 1500);
  }
  EXPECT_EQ(host_memory().used_bytes, before);
}

TEST(Device, CudaIsRefusedWithoutABackend) {
#ifndef BRAID_WITH_CUDA
  EXPECT_EQ(error_of([] { backend_of({DeviceKind::cuda, 1}); }), "cuda:1: this build or machine has no CUDA device");
#endif
}

TEST(Sequences, CheckTheirValues) {
  EXPECT_EQ(error_of([] { Sequences({1, 2}); }), "cu_seqlens: must start with 0, got 1");
  EXPECT_EQ(error_of([] { Sequences({0, 5, 3}); }), "cu_seqlens: must not fall, got 5 then 3 at index 2");
  EXPECT_EQ(error_of([] { Sequences::single(4).require_tokens("op", "x", 5); }), "op: cu_seqlens must end at N = 5 tokens of x, got 4");
  const Sequences seqs = Sequences::of_lengths({3, 0, 1});
  EXPECT_EQ(seqs.count(), 3);
  EXPECT_EQ(seqs.num_tokens(), 4);
  EXPECT_EQ(seqs.max_length(), 3);
  EXPECT_EQ(seqs.length(1), 0);
  Context ctx;
  EXPECT_EQ(to_vector<int64_t>(ctx, seqs.on_device(ctx)), (std::vector<int64_t>{0, 3, 3, 4}));
}

TEST(Parallel, EveryRangeRunsOnceWhateverTheThreads) {
  for (int threads : {1, 2, 7}) {
    ThreadPool pool(threads);
    std::vector<std::atomic<int>> hits(1000);
    for (int repeat = 0; repeat < 50; ++repeat) {
      pool.parallel_for(1000, 7, [&](int64_t begin, int64_t end) {
        EXPECT_EQ(begin % 7, 0);
        for (int64_t i = begin; i < end; ++i) hits[i].fetch_add(1);
      });
    }
    for (const auto& hit : hits) EXPECT_EQ(hit.load(), 50);
  }
}

TEST(Parallel, AnErrorInABodyComesOut) {
  ThreadPool pool(3);
  EXPECT_EQ(error_of([&] { pool.parallel_for(100, 1, [](int64_t begin, int64_t) { BRAID_CHECK(begin != 42, "the 42nd"); }); }), "the 42nd");
  std::atomic<int> count{0};
  pool.parallel_for(10, 1, [&](int64_t, int64_t) { ++count; });
  EXPECT_EQ(count.load(), 10);
}

TEST(Parallel, ACallFromInsideABodyRunsInPlace) {
  ThreadPool pool(2);
  std::atomic<int> count{0};
  pool.parallel_for(4, 1, [&](int64_t, int64_t) { pool.parallel_for(5, 1, [&](int64_t, int64_t) { ++count; }); });
  EXPECT_EQ(count.load(), 20);
}

// Known answers of Philox4x32-10 published with Random123 (Salmon et al.), key and counter all zeros and all ones.
TEST(Random, PhiloxGivesItsKnownAnswers) {
  EXPECT_EQ(philox(0, 0, 0), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull), (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, StateResumesTheSequenceAndSplitsDiffer) {
  Random random(3);
  random.normal();
  const Random::State state = random.state();
  const double next = random.uniform();
  random.set_state(state);
  EXPECT_EQ(random.uniform(), next);
  EXPECT_NE(random.split(1).next_u64(), random.split(2).next_u64());
  double sum = 0, square = 0;
  for (int i = 0; i < 20000; ++i) {
    const double x = random.normal();
    sum += x;
    square += x * x;
  }
  EXPECT_NEAR(sum / 20000, 0, 0.03);
  EXPECT_NEAR(square / 20000, 1, 0.05);
  for (int i = 0; i < 100; ++i) EXPECT_LT(random.below(3), 3u);
}

TEST(Communicator, OneProcessKeepsItsOwn) {
  Context ctx;
  const auto one = make_single_process_communicator();
  const Tensor in = from_vector<float>(ctx, {1, 2}, {2}), out = Tensor::zeros(ctx, {2}, DType::f32);
  one->all_reduce(ctx, in, Reduction::sum);
  one->all_gather(ctx, in, out);
  EXPECT_EQ(to_vector<float>(ctx, out), (std::vector<float>{1, 2}));
  EXPECT_EQ(error_of([&] { one->send(ctx, in, 1); }), "send: one process has no rank 1 to send to");
}

}  // namespace
}  // namespace braid
