// What every rank does in tests/core/communicator_mpi_test.cpp: mpirun … braid_mpi_ranks SCENARIO. Exit status 0: all was right;
// 1: a line on stdout says what was not; 2: an Error, on stderr.
#include <signal.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <thread>

#include "core/communicator_mpi.h"
#include "tests/support/error_of.h"

namespace braid {
namespace {

using testing::error_of;

int num_wrong = 0;

void expect(bool right, const std::string& what) {
  if (right) return;
  ++num_wrong;
  std::printf("wrong: %s\n", what.c_str());
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() && (a.nbytes() == 0 || std::memcmp(a.raw(), b.raw(), static_cast<size_t>(a.nbytes())) == 0);
}

/// What rank `rank` brings: the same on every rank that asks, values whose sums round.
Tensor values_of(Context& ctx, int rank, int64_t numel, DType dtype) {
  std::vector<double> values(numel);
  uint64_t bits = static_cast<uint64_t>(rank) + 7;
  for (double& value : values) {
    bits = bits * 6364136223846793005u + 1442695040888963407u;
    value = std::ldexp(static_cast<double>(bits >> 33) - 1e9, -static_cast<int>(bits >> 60));
  }
  return converted(ctx, from_vector(ctx, values, {numel}), dtype);
}

/// The sum as the interface states it: in the order of ranks, in the tensor's own type, bf16 in float32.
Tensor expected_sum(Context& ctx, int size, int64_t numel, DType dtype) {
  const DType wide = dtype == DType::bf16 ? DType::f32 : dtype;
  Tensor total = copied(ctx, converted(ctx, values_of(ctx, 0, numel, dtype), wide));
  for (int rank = 1; rank < size; ++rank) {
    const Tensor next = converted(ctx, values_of(ctx, rank, numel, dtype), wide);
    for (int64_t i = 0; i < numel; ++i) {
      if (wide == DType::f64) total.data<double>()[i] += next.data<double>()[i];
      else if (wide == DType::f32) total.data<float>()[i] += next.data<float>()[i];
      else total.data<int64_t>()[i] += next.data<int64_t>()[i];
    }
  }
  return converted(ctx, total, dtype);
}

void check_sums(Context& ctx, Communicator& ranks, int64_t numel, DType dtype) {
  const int size = ranks.size(), rank = ranks.rank();
  const std::string what = " of " + std::to_string(numel) + " " + std::string(to_string(dtype)) + " on rank " + std::to_string(rank);
  const Tensor expected = expected_sum(ctx, size, numel, dtype);
  const Tensor all = copied(ctx, values_of(ctx, rank, numel, dtype));
  ranks.all_reduce(ctx, all, Reduction::sum);
  expect(same_bits(all, expected), "all_reduce" + what);
  if (numel % size != 0) return;
  const int64_t part = numel / size;
  const Tensor mine = Tensor::empty(ctx, {part}, dtype), gathered = Tensor::zeros(ctx, {numel}, dtype);
  ranks.reduce_scatter(ctx, values_of(ctx, rank, numel, dtype), mine);
  expect(same_bits(mine, contiguous(ctx, expected.slice(0, rank * part, (rank + 1) * part))), "reduce_scatter" + what);
  ranks.all_gather(ctx, mine, gathered);
  expect(same_bits(gathered, expected), "all_gather" + what);
}

void collectives(Context& ctx, Communicator& ranks) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16, DType::i64}) check_sums(ctx, ranks, 1200, dtype);
  for (const int64_t numel : {0, 1, 2, 1001}) check_sums(ctx, ranks, numel, DType::f32);
  check_sums(ctx, ranks, 12 * ((int64_t{1} << 20) + 1), DType::f32);  // several pieces of each part
  const int rank = ranks.rank(), last = ranks.size() - 1;
  const Tensor most = from_vector<double>(ctx, {static_cast<double>(rank), -1.0 * rank, rank == last ? std::nan("") : 5.0}, {3});
  ranks.all_reduce(ctx, most, Reduction::max);
  expect(most.data<double>()[0] == last && most.data<double>()[1] == 0 && std::isnan(most.data<double>()[2]), "maximum");
  for (int root = 0; root <= last; ++root) {
    const Tensor said = copied(ctx, values_of(ctx, rank, 5, DType::f32));
    ranks.broadcast(ctx, said, root);
    expect(same_bits(said, values_of(ctx, root, 5, DType::f32)), "broadcast");
  }
  ranks.barrier();
}

void point_to_point(Context& ctx, Communicator& ranks) {
  if (ranks.size() == 1) return;
  const int rank = ranks.rank(), size = ranks.size(), next = (rank + 1) % size, before = (rank + size - 1) % size;
  for (const int64_t numel : {1, 3'000'000}) {  // larger than what MPI buffers: only a group keeps a ring from waiting for itself
    const Tensor got = Tensor::zeros(ctx, {numel}, DType::f32), total = from_vector<int64_t>(ctx, {1}, {1});
    ranks.begin_group();
    ranks.send(ctx, values_of(ctx, rank, numel, DType::f32), next);
    ranks.all_reduce(ctx, total, Reduction::sum);  // a collective inside a group is done at once
    expect(total.data<int64_t>()[0] == size, "all_reduce in a group");
    ranks.receive(ctx, got, before);
    ranks.end_group();
    expect(same_bits(got, values_of(ctx, before, numel, DType::f32)), "ring");
  }
  for (int to = 1; to < size; ++to) {  // without a group: one sends, one receives
    const Tensor got = Tensor::zeros(ctx, {4}, DType::f64);
    if (rank == 0) ranks.send(ctx, values_of(ctx, to, 4, DType::f64), to);
    if (rank == to) ranks.receive(ctx, got, 0);
    if (rank == to) expect(same_bits(got, values_of(ctx, rank, 4, DType::f64)), "send");
  }
}

void mistakes(Context& ctx, Communicator& ranks) {
  const Tensor two = Tensor::zeros(ctx, {2, 2}, DType::f32), odd = Tensor::zeros(ctx, {3}, DType::f32);
  const auto expect_refusal = [](const std::string& message, const std::string& part) {
    expect(message.find(part) != std::string::npos, "'" + part + "' in: " + message);
  };
  expect_refusal(error_of([&] { ranks.all_reduce(ctx, two.slice(1, 0, 1), Reduction::sum); }), "inout must be a contiguous tensor of the CPU");
  expect_refusal(error_of([&] { ranks.all_reduce(ctx, {}, Reduction::sum); }), "got nothing");
  expect_refusal(error_of([&] { ranks.all_reduce(ctx, Tensor::zeros(ctx, {2}, DType::u8), Reduction::sum); }), "dtype must be");
  expect_refusal(error_of([&] { ranks.reduce_scatter(ctx, two, odd); }), "reduce_scatter: out must hold 1/");
  expect_refusal(error_of([&] { ranks.all_gather(ctx, two, odd); }), "all_gather: out must hold");
  expect_refusal(error_of([&] { ranks.broadcast(ctx, two, ranks.size()); }), "root must be a rank below");
  expect_refusal(error_of([&] { ranks.send(ctx, two, ranks.rank()); }), "send: the other rank must be");
  expect_refusal(error_of([&] { ranks.receive(ctx, two, -1); }), "receive: the other rank must be");
  expect_refusal(error_of([&] { ranks.end_group(); }), "no group is open");
  expect_refusal(error_of([&] { make_mpi_communicator(); }), "one communicator per process");
  ranks.barrier();  // none of these reached another rank
}

void work(Context& ctx, Communicator& ranks, int64_t numel = 1 << 20) {
  const Tensor values = Tensor::zeros(ctx, {numel}, DType::f32);
  for (int i = 0; i < 3; ++i) ranks.all_reduce(ctx, values, Reduction::sum);
}

void run_scenario(const std::string& scenario) {
  Context ctx(1);
  const auto ranks = make_mpi_communicator({.timeout_s = scenario == "hangs" || scenario == "differs" ? 0.5 : 20.0});
  if (scenario == "right") {
    collectives(ctx, *ranks);
    point_to_point(ctx, *ranks);
    mistakes(ctx, *ranks);
    if (ranks->rank() == 0) std::printf("%d ranks\n", ranks->size());
    return;
  }
  work(ctx, *ranks);
  const bool is_the_one = ranks->rank() == 1;
  if (scenario == "throws" && is_the_one) fail("a mistake of rank 1 alone");
  if (scenario == "hangs" && is_the_one) std::this_thread::sleep_for(std::chrono::seconds(300));
  if (scenario == "dies" && is_the_one) ::raise(SIGKILL);
  if (scenario == "size" && is_the_one) work(ctx, *ranks, 40);
  if (scenario == "differs" && is_the_one) ranks->barrier();
  work(ctx, *ranks);
}

}  // namespace
}  // namespace braid

int main(int argc, char** argv) {
  try {
    braid::run_scenario(argc > 1 ? argv[1] : "right");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
  return braid::num_wrong == 0 ? 0 : 1;
}
