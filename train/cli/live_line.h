// How far long work is, for people: on a terminal one line of stderr that changes in place, in a log a plain line now and then.
#pragma once
#include <chrono>
#include <string>

namespace braid::cli {

class LiveLine {
 public:
  LiveLine();
  /// Takes the live line away.
  ~LiveLine();
  LiveLine(const LiveLine&) = delete;
  LiveLine& operator=(const LiveLine&) = delete;

  /// Whether the next text would be shown: five a second on a terminal, one in ten seconds in a log, the first of them after that time.
  bool is_due() const;
  /// Shows `text` if it is due.
  void show(const std::string& text);

 private:
  bool live_, shown_ = false;
  std::chrono::steady_clock::time_point last_;
};

}  // namespace braid::cli
