#include "train/study/study.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "models/cost.h"
#include "models/hybrid_lm.h"
#include "train/study/report.h"

namespace braid {
namespace {

namespace fs = std::filesystem;

const std::vector<std::string> kOwnText = {std::string(BRAID_SOURCE_DIR) + "/core"};

StudyResult smoke_result() {
  static const StudyResult result = run_study(study_preset("smoke"), read_study_text(kOwnText), {});
  return result;
}

TEST(Study, QuickstartModelsAreOfOneSizeAndDifferInAttention) {
  const StudyOptions options = study_preset("quickstart");
  const auto baseline = static_cast<double>(model_cost(study_model(options, Family::transformer, "full")).parameters);
  EXPECT_GE(options.families.size(), 2u);
  EXPECT_GE(options.seeds.size(), 2u);
  for (Family family : options.families) {
    for (const auto& [ratio, attention] : {std::pair{"pure", 0}, {"6-1", 1}, {"3-1", 2}}) {
      const ModelConfig config = study_model(options, family, ratio);
      EXPECT_EQ(config.num_attention_layers(), attention);
      EXPECT_NEAR(static_cast<double>(model_cost(config).parameters) / baseline, 1, 0.1) << to_string(family) << " " << ratio;
    }
  }
}

TEST(Study, EveryFamilyMakesASoundModel) {
  const StudyOptions options = study_preset("quickstart");
  for (Family family : kFamilies)
    for (const char* ratio : {"pure", "2-1", "full"})
      EXPECT_NO_THROW(HybridLm(study_model(options, family, ratio))) << to_string(family) << " " << ratio;
}

TEST(Study, RunsTheGridAndReportsEveryRun) {
  const StudyResult result = smoke_result();
  ASSERT_EQ(result.runs.size(), 5u);  // two families × two ratios, and the Transformer
  const nlohmann::json json = to_json(result);
  for (const nlohmann::json& run : json.at("runs"))
    for (const char* key :
         {"family", "ratio", "seed", "parameters", "full_attention_layers", "tokens", "train_seconds", "recall_accuracy", "bits_per_byte"})
      EXPECT_TRUE(run.contains(key)) << key;
  for (const StudyRun& run : result.runs) {
    EXPECT_EQ(run.tokens, result.runs[0].tokens) << "all models see as many tokens";
    EXPECT_GT(run.bits_per_byte, 0);
    EXPECT_LT(run.bits_per_byte, 12);
    EXPECT_FALSE(run.recall_curve.empty());
  }
}

TEST(Study, GivesTheSameNumbersForAnyNumberOfJobs) {
  StudyOptions options = study_preset("smoke");
  options.jobs = 1;
  const StudyResult alone = run_study(options, read_study_text(kOwnText), {});
  const StudyResult together = smoke_result();
  for (size_t i = 0; i < alone.runs.size(); ++i) {
    EXPECT_EQ(alone.runs[i].recall_loss, together.runs[i].recall_loss);
    EXPECT_EQ(alone.runs[i].bits_per_byte, together.runs[i].bits_per_byte);
  }
}

TEST(Study, WritesASelfContainedReport) {
  const fs::path directory = fs::temp_directory_path() / ("braid_study_" + std::to_string(getpid()));
  write_report(directory, smoke_result());
  std::ifstream file(directory / "report.html");
  const std::string html((std::istreambuf_iterator<char>(file)), {});
  size_t figures = 0;
  for (size_t at = html.find("<svg"); at != std::string::npos; at = html.find("<svg", at + 1)) ++figures;
  EXPECT_EQ(figures, 4u);
  EXPECT_EQ(html.find("<script"), std::string::npos);
  EXPECT_EQ(html.find("href="), std::string::npos);
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_TRUE(fs::exists(directory / "results.json"));
  EXPECT_TRUE(fs::exists(directory / "recall.svg"));
  fs::remove_all(directory);
}

TEST(Study, FindingsAreHonestBothWays) {
  StudyResult result;
  const auto add = [&](const char* ratio, int64_t attention, double recall) {
    StudyRun run;
    run.family = "gla";
    run.ratio = ratio;
    run.full_attention_layers = attention;
    run.num_layers = 6;
    run.recall_accuracy = recall;
    result.runs.push_back(run);
  };
  add("pure", 0, 0.3);
  add("3-1", 2, 0.8);
  EXPECT_NE(findings(result)[0].find("lifts recall clearly: from 0.300 (pure) to 0.800 (3-1), +0.500; every seed agrees"), std::string::npos)
      << findings(result)[0];
  result.runs[1].recall_accuracy = 0.25;
  EXPECT_NE(findings(result)[0].find("does not lift recall here"), std::string::npos) << findings(result)[0];
}

TEST(Study, ReadsAGridAndRefusesWhatItDoesNotKnow) {
  const StudyOptions options = parse_study(nlohmann::json::parse(R"({"preset": "smoke", "families": ["hgrn2"], "recall": {"num_pairs": 4}})"));
  EXPECT_EQ(options.families, std::vector<Family>{Family::hgrn2});
  EXPECT_EQ(options.recall.num_pairs, 4);
  EXPECT_EQ(parse_study(nlohmann::json::parse(R"({"families": ["deltanet", "gdn"]})")).families,
            (std::vector<Family>{Family::delta_net, Family::gated_deltanet}));
  EXPECT_TRUE(parse_study(nlohmann::json::parse(R"({"families": []})")).families.empty());  // the Transformer alone
  for (const char* text : {R"({"presett": "smoke"})",
                           R"({"families": ["mamba"]})",
                           R"({"families": ["transformer"]})",
                           R"({"ratios": ["3:1"]})",
                           R"({"ratios": ["0-1"]})",
                           R"({"ratios": ["7-1"]})",
                           R"({"ratios": []})",
                           R"({"families": [], "transformer": false})",
                           R"({"seeds": "one"})",
                           R"({"recall": {"pairs": 4}})",
                           R"({"num_heads": 5})",
                           R"({"seeds": []})",
                           "[]",
                           R"({"seeds": [1, 1]})",
                           R"({"seeds": [-1]})",
                           R"({"seeds": [1.5]})",
                           R"({"ratios": ["pure", "3-1", "pure"]})",
                           R"({"families": ["gdn", "gated_deltanet"]})",
                           R"({"text_context": 100})",
                           R"({"text_learning_rate": 0})",
                           R"({"recall_learning_rate": -1})",
                           R"({"text_val_tokens": -1})",
                           R"({"num_layers": 2.5})",
                           R"({"recall": {"num_pairs": 1, "num_keys": 1, "num_values": 2}})"})
    EXPECT_THROW(parse_study(nlohmann::json::parse(text)), Error) << text;
  EXPECT_THROW(read_study_text({"/no/such/folder"}), Error);
}

TEST(Figure, DrawsAnythingAndEscapesLabels) {
  EXPECT_NE(to_svg({.title = "nothing", .x_label = "", .y_label = "", .series = {}}).find("</svg>"), std::string::npos);
  const std::string svg =
      to_svg({.title = "a < b & c", .x_label = "x", .y_label = "y", .series = {{"one", {{1, 1}}}, {"bad", {{0, NAN}, {-1, 2}}}}, .log_x = true});
  EXPECT_NE(svg.find("a &lt; b &amp; c"), std::string::npos);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

}  // namespace
}  // namespace braid
