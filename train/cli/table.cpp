#include "train/cli/table.h"

#include <algorithm>
#include <locale>
#include <sstream>

namespace braid::cli {
namespace {

/// Number of characters a terminal shows: bytes of UTF-8 that begin one.
size_t width(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xc0) != 0x80; }));
}

bool is_number(const std::string& text) { return !text.empty() && (std::string_view("0123456789-+.<>∞").find(text[0]) != std::string_view::npos); }

}  // namespace

void Table::print(std::ostream& out) const {
  std::vector<size_t> widths;
  for (const std::string& heading : headings_) widths.push_back(width(heading));
  for (const auto& row : rows_)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width(row[i]));
  const auto line = [&](const std::vector<std::string>& row, bool is_heading) {
    std::string text;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - width(row[i]), ' ');
      const bool right = i > 0 && (is_heading ? !rows_.empty() && is_number(rows_[0][i]) : is_number(row[i]));
      text += (i ? "  " : "") + (right ? padding + row[i] : row[i] + padding);
    }
    out << text.substr(0, text.find_last_not_of(' ') + 1) << '\n';
  };
  line(headings_, true);
  for (const auto& row : rows_) line(row, false);
}

std::string number(double value, int digits) {
  std::ostringstream text;
  text.imbue(std::locale::classic());
  text.precision(digits);
  text << value;
  return text.str();
}

std::string bytes(double value) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  for (; value >= 1024 && unit < 4; ++unit) value /= 1024;
  return number(value, unit == 0 ? 6 : 4) + " " + kUnits[unit];
}

}  // namespace braid::cli
