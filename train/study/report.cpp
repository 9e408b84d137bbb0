#include "train/study/report.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <sstream>

#include "io/file.h"

namespace braid {
namespace {

using Rows = std::vector<std::vector<std::string>>;

std::string html_table(const Rows& rows) {
  std::ostringstream html;
  html << "<table>\n";
  for (size_t i = 0; i < rows.size(); ++i) {
    html << "<tr>";
    for (const std::string& cell : rows[i]) html << (i ? "<td>" : "<th>") << escape_markup(cell) << (i ? "</td>" : "</th>");
    html << "</tr>\n";
  }
  html << "</table>\n";
  return html.str();
}

/// A figure's numbers: x, series, y.
std::string numbers_of(const Figure& figure) {
  Rows rows = {{"series", figure.x_label, figure.y_label}};
  for (const Series& series : figure.series)
    for (const auto& [x, y] : series.points) rows.push_back({series.label, format_number(x), format_number(y)});
  return "<details><summary>Numbers</summary>\n" + html_table(rows) + "</details>\n";
}

/// Loss curves of one task: the mean over seeds of each family and ratio.
Figure curve_figure(const StudyResult& result, const std::string& title, std::vector<LossPoint> StudyRun::*curve) {
  Figure figure{.title = title, .x_label = "training tokens", .y_label = "loss (nats per target)", .series = {}};
  for (const StudySummary& summary : summarize(result)) {
    Series series{.label = summary.family + " " + summary.ratio, .points = {}, .markers = false};
    for (const StudyRun& run : result.runs) {
      if (run.family != summary.family || run.ratio != summary.ratio) continue;
      const std::vector<LossPoint>& points = run.*curve;
      if (series.points.empty())
        for (const LossPoint& point : points) series.points.emplace_back(static_cast<double>(point.tokens), 0.0);
      for (size_t i = 0; i < std::min(points.size(), series.points.size()); ++i)
        series.points[i].second += points[i].loss / static_cast<double>(summary.num_runs);
    }
    figure.series.push_back(std::move(series));
  }
  return figure;
}

Figure memory_figure(const StudyResult& result) {
  Figure figure{.title = "Memory of one sequence while decoding",
                .x_label = "context length (tokens)",
                .y_label = "state + KV cache (bytes)",
                .series = {},
                .log_x = true,
                .log_y = true};
  for (const StudySummary& summary : summarize(result)) {
    Series series{.label = summary.family + " " + summary.ratio, .points = {}};
    for (double tokens = 64; tokens <= 65536; tokens *= 4)
      series.points.emplace_back(
          tokens, static_cast<double>(summary.cost.state_bytes_per_sequence) + tokens * static_cast<double>(summary.cost.kv_bytes_per_token));
    figure.series.push_back(std::move(series));
  }
  return figure;
}

std::string section(const Figure& figure, const std::string& text) {
  return "<h2>" + escape_markup(figure.title) + "</h2>\n<p>" + escape_markup(text) + "</p>\n" + to_svg(figure) + numbers_of(figure);
}

std::string main_table(const StudyResult& result) {
  Rows rows = {{"family", "ratio", "full-attention layers", "parameters", "runs", "recall", "least", "most", "bits per byte", "training seconds"}};
  for (const StudySummary& s : summarize(result)) {
    rows.push_back({s.family, s.ratio, std::to_string(s.full_attention_layers) + " of " + std::to_string(s.num_layers), std::to_string(s.parameters),
                    std::to_string(s.num_runs), format_number(s.recall_mean), format_number(s.recall_min), format_number(s.recall_max),
                    format_number(s.bits_mean), format_number(s.seconds_mean)});
  }
  return html_table(rows);
}

std::string method_text(const StudyResult& result) {
  const StudyOptions& o = result.options;
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text << "Every model has " << o.num_layers << " layers of width " << o.hidden_size
       << " and about the same number of parameters (the width of its MLP is chosen so); "
       << "a recurrent head keeps a state of " << o.key_dim << " x " << o.hidden_size / o.num_heads
       << " numbers. R-1 means one full-attention layer in every R, which is how the "
       << "published checkpoints of the paper are laid out; pure has none. Each is trained from scratch twice: on associative recall ("
       << o.recall.num_pairs << " key-value pairs over " << o.recall.num_keys << " keys and " << o.recall.num_values << " values, then "
       << o.recall.num_queries << " queries; " << o.recall_steps << " steps of " << o.recall_examples
       << " sequences; loss and accuracy at the answers only; test examples never occur in training) and on text in bytes (" << o.text_steps
       << " steps of " << o.text_batch_tokens << " tokens, context " << o.text_context
       << "; scored on files that were held out). All models see the same data. These are toy sizes: they show an effect, they do not rank the "
          "families.";
  return text.str();
}

}  // namespace

Figure recall_figure(const StudyResult& result) {
  Figure figure{.title = "Recall against the share of full attention",
                .x_label = "share of full-attention layers",
                .y_label = "recall accuracy (mean over seeds)",
                .series = {}};
  for (const StudySummary& summary : summarize(result)) {
    auto at = std::find_if(figure.series.begin(), figure.series.end(), [&](const Series& series) { return series.label == summary.family; });
    if (at == figure.series.end()) at = figure.series.insert(figure.series.end(), Series{.label = summary.family, .points = {}});
    at->points.emplace_back(summary.attention_share(), summary.recall_mean);
  }
  for (Series& series : figure.series) std::sort(series.points.begin(), series.points.end());
  figure.series.push_back({.label = "guessing", .points = {{0, result.recall_chance}, {1, result.recall_chance}}, .markers = false});
  return figure;
}

std::string to_html(const StudyResult& result) {
  std::ostringstream html;
  html << "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>Braid study: " << escape_markup(result.options.name) << "</title>\n"
       << "<style>body{font-family:sans-serif;max-width:860px;margin:2em auto;padding:0 "
          "1em;color:#222;line-height:1.45}table{border-collapse:collapse;margin:1em 0}"
       << "th,td{border:1px solid #ccc;padding:.25em "
          ".6em;text-align:right}th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}</style></head><body>\n"
       << "<h1>How much full attention does recall need?</h1>\n<p>" << escape_markup(method_text(result)) << "</p>\n"
       << "<h2>Results</h2>\n"
       << main_table(result) << "<ul>\n";
  for (const std::string& line : findings(result)) html << "<li>" << escape_markup(line) << "</li>\n";
  html << "</ul>\n<p>The same program on the same text and the same processor gives these numbers again, all but the seconds. Another processor or a "
          "GPU rounds differently, and its numbers will be others.</p>\n"
       << section(recall_figure(result), "Accuracy at the answers on unseen examples. The dots of a family are its pure form and its hybrids.")
       << section(curve_figure(result, "Loss while learning recall", &StudyRun::recall_curve), "Mean over seeds, at the answers only.")
       << section(curve_figure(result, "Loss while learning text", &StudyRun::text_curve), "Mean over seeds, per byte.")
       << section(memory_figure(result),
                  "Recurrent states and convolution tails do not grow with the context; the KV cache of attention layers does (bf16).")
       << "<p>Source of the question: A Systematic Analysis of Hybrid Linear Attention, arXiv 2507.06457.</p>\n</body></html>\n";
  return html.str();
}

void write_report(const std::filesystem::path& directory, const StudyResult& result) {
  make_directories(directory);
  write_file(directory / "results.json", to_json(result).dump(2) + "\n");
  write_file(directory / "report.html", to_html(result));
  write_file(directory / "recall.svg", to_svg(recall_figure(result)));
}

}  // namespace braid
