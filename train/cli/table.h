// Tables and numbers as the commands print them.
#pragma once
#include <ostream>
#include <string>
#include <vector>

namespace braid::cli {

/// Rows of text under headings; the first column is left-aligned, the others right-aligned where `numeric`.
class Table {
 public:
  explicit Table(std::vector<std::string> headings) : headings_(std::move(headings)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void print(std::ostream& out) const;

 private:
  std::vector<std::string> headings_;
  std::vector<std::vector<std::string>> rows_;
};

/// "0.00123", "1.2e-12": `digits` significant ones, in the classic locale.
std::string number(double value, int digits = 3);
/// "12 B", "3.4 KiB", "5.6 GiB".
std::string bytes(double value);

}  // namespace braid::cli
