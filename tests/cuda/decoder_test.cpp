// Decoding from a graph gives what a forward pass over the whole text gives.
#include "train/decoder.h"

#include <gtest/gtest.h>

#include "cuda/runtime/runtime.h"
#include "tests/cuda/families.h"
#include "tests/support/random_tensors.h"

namespace braid::testing {
namespace {

constexpr int64_t kPrompt = 70, kTokens = 30;

struct DecoderCase {
  std::string name;
  ModelConfig config;
  friend void PrintTo(const DecoderCase& which, std::ostream* out) { *out << which.name; }
};

std::vector<DecoderCase> cases() {
  std::vector<DecoderCase> result;
  for (const std::string& family : kFamilyNames) {
    result.push_back({family, config_of(family, false)});
    if (family != "transformer") result.push_back({family + "_hybrid", config_of(family, true)});
  }
  ModelConfig window = config_of("gdn", true);
  window.attn[0].window_size = 24;
  result.push_back({"window", window});
  return result;
}

class CudaDecoder : public ::testing::TestWithParam<DecoderCase> {};

TEST_P(CudaDecoder, FollowsTheForwardPass) {
  if (cuda::num_devices() == 0) GTEST_SKIP() << "no GPU";
  Context host(0), gpu = cuda::make_context();
  const ModelConfig& config = GetParam().config;
  HybridLm on_host(config), on_gpu(config);
  initialize(host, on_host, DType::f32, 0.05, 1);
  for (size_t i = 0; i < on_host.parameters().size(); ++i) on_gpu.parameters()[i]->value = copied(gpu, on_host.parameters()[i]->value);
  Random random(9);
  std::vector<int64_t> tokens(kPrompt + kTokens);
  for (int64_t& token : tokens) token = static_cast<int64_t>(random.below(kFamilyVocab));
  const Tensor hidden = on_host.hidden(host, from_vector(host, tokens, {kPrompt + kTokens}), Sequences::single(kPrompt + kTokens));
  const std::vector<double> expected = to_vector<double>(host, on_host.logits(host, hidden));
  for (DType dtype : {DType::f32, DType::bf16}) {
    SCOPED_TRACE(to_string(dtype));
    set_compute_dtype(gpu, on_gpu, dtype);
    Decoder decoder(gpu, on_gpu, kPrompt + kTokens);
    std::vector<double> logits = decoder.prefill({tokens.begin(), tokens.begin() + kPrompt}, 32);
    for (int64_t i = kPrompt - 1;; ++i) {
      const Tensor actual = from_vector(host, logits, {kFamilyVocab});
      const std::vector<double> row(expected.begin() + i * kFamilyVocab, expected.begin() + (i + 1) * kFamilyVocab);
      EXPECT_LE(relative_error(host, actual, from_vector(host, row, {kFamilyVocab})), dtype == DType::f32 ? 1e-4 : 0.1) << "token " << i;
      if (i + 1 == kPrompt + kTokens) break;
      logits = decoder.advance(tokens[i + 1]);
    }
    EXPECT_TRUE(decoder.has_graph());
    EXPECT_THROW(decoder.advance(0), Error) << "there is no room for one more";
  }
}

INSTANTIATE_TEST_SUITE_P(Models, CudaDecoder, ::testing::ValuesIn(cases()), [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace braid::testing
