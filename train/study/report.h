// What a study found, for people and for programs.
#pragma once
#include <filesystem>

#include "train/study/figure.h"
#include "train/study/study.h"

namespace braid {

/// Mean and spread over the seeds of one family and ratio.
struct StudySummary {
  std::string family, ratio;
  int64_t num_runs = 0;
  int64_t parameters = 0;
  int64_t full_attention_layers = 0, num_layers = 0;
  double attention_share() const { return static_cast<double>(full_attention_layers) / static_cast<double>(num_layers); }
  double recall_mean = 0, recall_min = 0, recall_max = 0;
  double bits_mean = 0, bits_min = 0, bits_max = 0;
  double seconds_mean = 0;
  ModelCost cost;
};
std::vector<StudySummary> summarize(const StudyResult& result);

/// {"study", "settings", "recall_chance", "runs": [{family, ratio, seed, parameters, full_attention_layers, tokens, train_seconds,
/// recall_accuracy, bits_per_byte, …}], "summary": […]}
nlohmann::json to_json(const StudyResult& result);
/// The table of means as plain text.
std::string to_table(const StudyResult& result);
/// What the numbers say, one sentence a line, for and against: how recall at the highest share of attention compares with none.
std::vector<std::string> findings(const StudyResult& result);

/// Recall against the share of full-attention layers, one line a family.
Figure recall_figure(const StudyResult& result);

/// One self-contained page: the table, the findings, three figures, each with its numbers as a table.
std::string to_html(const StudyResult& result);

/// results.json, report.html and recall.svg in `directory` (made when missing), each whole or not at all.
void write_report(const std::filesystem::path& directory, const StudyResult& result);

}  // namespace braid
