#include "ops/embedding.h"

#include "tests/support/laws.h"

namespace braid::testing {
namespace {

OpCase<Embedding> embedding_case(const std::string& name, int64_t N, int64_t V, int64_t D) {
  return {.name = name,
          .inputs =
              [=](Context& ctx, Random& random) {
                std::vector<int64_t> tokens(N);
                for (int64_t& token : tokens) token = static_cast<int64_t>(random.below(V));
                return Embedding::Inputs{from_vector(ctx, tokens, {N}), normal(ctx, random, {V, D})};
              },
          .attrs = {}};
}

OpCase<Embedding> large_case(int64_t N, int64_t V, int64_t D) {
  OpCase<Embedding> c = embedding_case("large_" + std::to_string(V), N, V, D);
  c.gradcheck = false;
  return c;
}

const bool kLaws = register_laws<Embedding>(
    "Embedding", {embedding_case("few", 7, 5, 3), embedding_case("repeated", 500, 4, 8), embedding_case("wide", 60, 9, 200),
                  embedding_case("one_token", 1, 1, 4), embedding_case("no_tokens", 0, 6, 4), large_case(2500, 37, 128), large_case(1200, 5000, 64)});

TEST(Embedding, TakesRowsAndAddsToTheGivenGradient) {
  Context ctx;
  const Tensor weight = from_vector<double>(ctx, {0, 1, 10, 11, 20, 21}, {3, 2});
  const Tensor grad = from_vector<double>(ctx, {5, 5, 5, 5, 5, 5}, {3, 2});
  Tape tape;
  WithTape recording(ctx, &tape);
  const Tensor leaf = tape.leaf(weight, grad);
  const Tensor y = apply<Embedding>(ctx, {from_vector<int64_t>(ctx, {2, 0, 2}, {3}), leaf}).y;
  EXPECT_EQ(to_vector<double>(ctx, y), (std::vector<double>{20, 21, 0, 1, 20, 21}));
  tape.backward(ctx, y, from_vector<double>(ctx, {1, 2, 3, 4, 10, 20}, {3, 2}));
  EXPECT_EQ(to_vector<double>(ctx, grad), (std::vector<double>{8, 9, 5, 5, 16, 27}));
}

TEST(Embedding, NamesATokenOutsideTheVocabulary) {
  Context ctx;
  const Tensor weight = Tensor::zeros(ctx, {256, 2}, DType::f32);
  const auto refusal = [&](std::vector<int64_t> tokens) -> std::string {
    const int64_t N = static_cast<int64_t>(tokens.size());
    try {
      apply<Embedding>(ctx, {from_vector(ctx, tokens, {N}), weight});
    } catch (const Error& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(refusal({0, 1, 2, 3, 255, 300}), "embedding: token 300 at index 5 is outside the vocabulary of 256");
  EXPECT_EQ(refusal({-1}), "embedding: token -1 at index 0 is outside the vocabulary of 256");
  EXPECT_EQ(refusal({256}), "embedding: token 256 at index 0 is outside the vocabulary of 256");
  EXPECT_EQ(refusal({255, 0}), "accepted");
}

}  // namespace
}  // namespace braid::testing
