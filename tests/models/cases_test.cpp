// Small models of an independent implementation: logits, loss and every gradient.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "io/safetensors.h"
#include "tests/models/small_models.h"

namespace braid::testing {
namespace {

std::string text_of(const std::filesystem::path& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

void load(Context& ctx, const HybridLm& model, const Safetensors& file) {
  ASSERT_EQ(file.entries().size(), model.parameters().size());
  for (Parameter* parameter : model.parameters()) {
    ASSERT_TRUE(file.contains(parameter->name)) << parameter->name;
    parameter->value = converted(ctx, file.get(parameter->name), DType::f64);
    ASSERT_EQ(parameter->value.shape(), parameter->shape) << parameter->name;
  }
}

/// Returns the worst relative error.
double check_case(const std::filesystem::path& folder) {
  constexpr double kTolerance = 1e-8;
  Context ctx(2);
  const HybridLm model(parse_config(std::string_view(text_of(folder / "config.json"))));
  load(ctx, model, Safetensors(folder / "model.safetensors"));
  if (::testing::Test::HasFatalFailure()) return 1;
  const Safetensors expected(folder / "case.safetensors");
  const Packed batch{to_vector<int64_t>(ctx, expected.get("tokens")), Sequences(to_vector<int64_t>(ctx, expected.get("cu_seqlens")))};
  const LossOutput out = run_loss(ctx, model, batch, true);
  const Tensor logits = model.logits(ctx, model.hidden(ctx, token_tensor(ctx, batch.tokens), batch.seqs));
  double worst = relative_error(ctx, logits, expected.get("logits"));
  worst = std::max(worst, relative_error(ctx, out.loss, expected.get("loss")));
  EXPECT_LE(worst, kTolerance) << "logits or loss";
  for (const Parameter* parameter : model.parameters()) {
    const double error = relative_error(ctx, parameter->grad, expected.get("grad." + parameter->name));
    EXPECT_LE(error, kTolerance) << parameter->name;
    worst = std::max(worst, error);
  }
  return worst;
}

/// BRAID_MODEL_CASES names another folder of cases than the tree's own.
TEST(ModelCases, LogitsLossAndGradients) {
  const char* given = std::getenv("BRAID_MODEL_CASES");
  const std::filesystem::path root = given ? given : std::filesystem::path(BRAID_SOURCE_DIR) / "tests/data/models";
  std::set<std::filesystem::path> folders;
  for (const auto& entry : std::filesystem::directory_iterator(root)) folders.insert(entry.path());
  ASSERT_FALSE(folders.empty());
  for (const auto& folder : folders) {
    SCOPED_TRACE(folder.filename().string());
    const double worst = check_case(folder);
    std::printf("%-24s worst relative error %.2e\n", folder.filename().c_str(), worst);
  }
}

}  // namespace
}  // namespace braid::testing
