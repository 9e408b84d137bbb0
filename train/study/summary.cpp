#include <algorithm>
#include <iomanip>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "train/study/report.h"

namespace braid {
namespace {

nlohmann::json curve_json(const std::vector<LossPoint>& curve) {
  nlohmann::json points = nlohmann::json::array();
  for (const LossPoint& point : curve) points.push_back({point.tokens, point.loss});
  return points;
}

nlohmann::json run_json(const StudyRun& run) {
  return {{"family", run.family},
          {"ratio", run.ratio},
          {"seed", run.seed},
          {"parameters", run.cost.parameters},
          {"full_attention_layers", run.full_attention_layers},
          {"layers", run.num_layers},
          {"tokens", run.tokens},
          {"train_seconds", run.train_seconds},
          {"recall_accuracy", run.recall_accuracy},
          {"recall_loss", run.recall_loss},
          {"bits_per_byte", run.bits_per_byte},
          {"state_bytes_per_sequence", run.cost.state_bytes_per_sequence},
          {"kv_bytes_per_token", run.cost.kv_bytes_per_token},
          {"recall_curve", curve_json(run.recall_curve)},
          {"text_curve", curve_json(run.text_curve)}};
}

nlohmann::json settings_json(const StudyOptions& options) {
  return {{"num_layers", options.num_layers},
          {"hidden_size", options.hidden_size},
          {"num_heads", options.num_heads},
          {"key_dim", options.key_dim},
          {"vocab_size", options.vocab_size},
          {"recall",
           {{"num_pairs", options.recall.num_pairs},
            {"num_keys", options.recall.num_keys},
            {"num_values", options.recall.num_values},
            {"num_queries", options.recall.num_queries},
            {"gap", options.recall.gap},
            {"length", options.recall.length}}},
          {"recall_steps", options.recall_steps},
          {"recall_examples", options.recall_examples},
          {"recall_learning_rate", options.recall_learning_rate},
          {"recall_test_examples", options.recall_test_examples},
          {"text_steps", options.text_steps},
          {"text_batch_tokens", options.text_batch_tokens},
          {"text_context", options.text_context},
          {"text_learning_rate", options.text_learning_rate},
          {"text_val_tokens", options.text_val_tokens}};
}

std::string fixed(double value, int digits) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << std::fixed << std::setprecision(digits) << value;
  return text.str();
}

}  // namespace

std::vector<StudySummary> summarize(const StudyResult& result) {
  std::vector<StudySummary> summaries;
  for (const StudyRun& run : result.runs) {
    auto at = std::find_if(summaries.begin(), summaries.end(), [&](const StudySummary& s) { return s.family == run.family && s.ratio == run.ratio; });
    if (at == summaries.end()) {
      StudySummary first;
      first.family = run.family;
      first.ratio = run.ratio;
      first.parameters = run.cost.parameters;
      first.full_attention_layers = run.full_attention_layers;
      first.num_layers = run.num_layers;
      first.recall_min = first.recall_max = run.recall_accuracy;
      first.bits_min = first.bits_max = run.bits_per_byte;
      first.cost = run.cost;
      at = summaries.insert(summaries.end(), first);
    }
    const double n = static_cast<double>(++at->num_runs);
    at->recall_mean += (run.recall_accuracy - at->recall_mean) / n;
    at->bits_mean += (run.bits_per_byte - at->bits_mean) / n;
    at->seconds_mean += (run.train_seconds - at->seconds_mean) / n;
    at->recall_min = std::min(at->recall_min, run.recall_accuracy);
    at->recall_max = std::max(at->recall_max, run.recall_accuracy);
    at->bits_min = std::min(at->bits_min, run.bits_per_byte);
    at->bits_max = std::max(at->bits_max, run.bits_per_byte);
  }
  return summaries;
}

nlohmann::json to_json(const StudyResult& result) {
  nlohmann::json json = {{"study", result.options.name},    {"settings", settings_json(result.options)}, {"recall_chance", result.recall_chance},
                         {"runs", nlohmann::json::array()}, {"summary", nlohmann::json::array()},        {"findings", findings(result)}};
  for (const StudyRun& run : result.runs) json["runs"].push_back(run_json(run));
  for (const StudySummary& s : summarize(result)) {
    json["summary"].push_back({{"family", s.family},
                               {"ratio", s.ratio},
                               {"runs", s.num_runs},
                               {"parameters", s.parameters},
                               {"attention_share", s.attention_share()},
                               {"recall_accuracy", s.recall_mean},
                               {"bits_per_byte", s.bits_mean}});
  }
  return json;
}

std::string to_table(const StudyResult& result) {
  std::ostringstream table;
  table.imbue(std::locale::classic());
  table << std::left << std::setw(16) << "family" << std::setw(7) << "ratio" << std::right << std::setw(7) << "full" << std::setw(12) << "parameters"
        << std::setw(9) << "recall" << std::setw(17) << "(min to max)" << std::setw(11) << "bits/byte" << std::setw(9) << "seconds" << '\n';
  for (const StudySummary& s : summarize(result)) {
    table << std::left << std::setw(16) << s.family << std::setw(7) << s.ratio << std::right << std::setw(7)
          << std::to_string(s.full_attention_layers) + "/" + std::to_string(s.num_layers) << std::setw(12) << s.parameters << std::setw(9)
          << fixed(s.recall_mean, 3) << std::setw(17) << "(" + fixed(s.recall_min, 3) + " to " + fixed(s.recall_max, 3) + ")" << std::setw(11)
          << fixed(s.bits_mean, 3) << std::setw(9) << fixed(s.seconds_mean, 1) << '\n';
  }
  return table.str();
}

std::vector<std::string> findings(const StudyResult& result) {
  std::map<std::string, std::pair<const StudySummary*, const StudySummary*>> ends;  // least and most attention of each family
  const std::vector<StudySummary> summaries = summarize(result);
  for (const StudySummary& s : summaries) {
    auto& [least, most] = ends[s.family];
    if (!least || s.attention_share() < least->attention_share()) least = &s;
    if (!most || s.attention_share() > most->attention_share()) most = &s;
  }
  std::vector<std::string> lines;
  for (const auto& [family, pair] : ends) {
    const auto& [least, most] = pair;
    if (least == most) {
      lines.push_back(family + " (" + least->ratio + "): recall " + fixed(least->recall_mean, 3) + ".");
      continue;
    }
    const double gain = most->recall_mean - least->recall_mean;
    const bool apart = most->recall_min > least->recall_max;
    const std::string verdict = gain >= 0.2   ? "Full attention lifts recall clearly"
                                : gain > 0.02 ? "Full attention lifts recall a little"
                                              : "Full attention does not lift recall here";
    lines.push_back(family + ": " + verdict + ": from " + fixed(least->recall_mean, 3) + " (" + least->ratio + ") to " + fixed(most->recall_mean, 3) +
                    " (" + most->ratio + "), " + (gain < 0 ? "" : "+") + fixed(gain, 3) +
                    (apart ? "; every seed agrees." : "; the seeds overlap, so more of them are needed to be sure."));
  }
  lines.push_back("Guessing among the values would reach " + fixed(result.recall_chance, 3) + ".");
  return lines;
}

}  // namespace braid
