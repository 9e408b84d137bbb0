// What a command writes must not be what it reads.
#pragma once
#include <string>
#include <vector>

namespace braid::cli {

/// A path and the option that names it.
struct NamedPath {
  std::string option, path;
};

/// Throws Error, naming the option, when a file of `written` is a file of `taken`, is one by its name in a model directory, run or checkpoint of
/// `taken` (there or not: nothing else may become a run's config.json), or is written twice. Links count as what they lead to. What is no regular
/// file (a terminal, /dev/null) may be anything.
void require_apart(const std::vector<NamedPath>& written, const std::vector<NamedPath>& taken);

}  // namespace braid::cli
