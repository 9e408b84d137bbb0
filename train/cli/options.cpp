#include "train/cli/options.h"

#include <unistd.h>

#include <algorithm>
#include <boost/program_options.hpp>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <sstream>

#include "cuda/runtime/runtime.h"
#include "cuda/runtime/usable.h"
#include "train/cli/apart.h"

namespace braid::cli {
namespace po = boost::program_options;
namespace fs = std::filesystem;
namespace {

struct Declared {
  std::string expected;                                          // "a whole number of at least 1"
  std::function<bool(const std::vector<std::string>&)> convert;  // false: not what was expected
};

template <class T>
bool read_whole(const std::string& text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

template <class T>
std::string shown(T value) {
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof buffer, value);
  return error == std::errc{} ? std::string(buffer, end) : std::string("?");
}

template <class T>
std::string with_range(const std::string& what, T min, T max) {
  const bool low = min > std::numeric_limits<T>::lowest(), high = max < std::numeric_limits<T>::max();
  if (low && high) return what + " from " + shown(min) + " to " + shown(max);
  if (low) return what + " of at least " + shown(min);
  return high ? what + " of at most " + shown(max) : what;
}

std::string with_default(const std::string& help, const std::string& value) { return value.empty() ? help : help + " [" + value + "]"; }

std::string bare(const std::string& name) { return name.substr(std::min(name.size(), name.find_first_not_of('-'))); }

std::string joined(const std::vector<std::string>& parts, const char* separator) {
  std::string result;
  for (const std::string& part : parts) result += (result.empty() ? "" : separator) + part;
  return result;
}

}  // namespace

struct Options::State {
  std::string command, summary, example, positional_name, config;
  po::options_description description;
  po::positional_options_description positionals;
  std::map<std::string, Declared> declared;
  std::vector<std::string> required, read{"config"}, written;
  po::variables_map values;

  void add(const std::string& name, const std::string& help, Declared option, bool many) {
    auto* value = po::value<std::vector<std::string>>()->value_name(many ? "VALUE..." : "VALUE");
    description.add_options()(name.c_str(), many ? value->multitoken() : value, help.c_str());
    declared.emplace(name, std::move(option));
  }
  /// Given as an empty text.
  bool is_empty(const std::string& name) const {
    const auto* texts = boost::any_cast<std::vector<std::string>>(&values[name].value());
    return texts && std::all_of(texts->begin(), texts->end(), [](const std::string& text) { return text.empty(); });
  }
  std::string expected(const std::string& name) const {
    const auto found = declared.find(name);
    return found == declared.end() ? "no value" : found->second.expected;
  }
  [[noreturn]] void refuse_unknown(const std::string& given, const std::string& where) const {
    fail("unknown option --", bare(given), where, "; expected one that 'braid ", command, " --help' lists");
  }
  void store(const std::function<po::parsed_options()>& parse, const std::string& where);
  std::vector<NamedPath> paths_of(const std::vector<std::string>& names) const;
};

/// Every complaint of the parser in our words.
void Options::State::store(const std::function<po::parsed_options()>& parse, const std::string& where) {
  try {
    po::store(parse(), values);
  } catch (const po::unknown_option& error) {
    refuse_unknown(error.get_option_name(), where);
  } catch (const po::too_many_positional_options_error&) {
    fail("too many arguments", where, "; expected ", positional_name.empty() ? std::string("options only") : "one --" + positional_name);
  } catch (const po::error_with_option_name& error) {
    const std::string name = bare(error.get_option_name());
    if (name.empty()) fail("cannot read the options", where, ": ", error.what());
    const auto* syntax = dynamic_cast<const po::invalid_syntax*>(&error);
    const bool missing =
        syntax && (syntax->kind() == po::invalid_syntax::missing_parameter || syntax->kind() == po::invalid_syntax::empty_adjacent_parameter);
    fail("--", name, " must be ", expected(name), where, ", got ", missing ? "nothing" : "a value that does not fit");
  } catch (const po::error& error) {
    fail("cannot read the options", where, ": ", error.what());
  }
}

/// What the user gave for these options. "data.h5:0.3" is data.h5 where no file has the whole name.
std::vector<NamedPath> Options::State::paths_of(const std::vector<std::string>& names) const {
  std::vector<NamedPath> paths;
  for (const std::string& name : names) {
    if (!values.contains(name)) continue;
    for (const std::string& path : values[name].as<std::vector<std::string>>()) {
      std::error_code absent;
      const std::string whole = fs::exists(path, absent) ? path : path.substr(0, path.rfind(':'));
      if (!path.empty()) paths.push_back({"--" + name, whole});
    }
  }
  return paths;
}

Options::Options(std::string command, std::string summary, std::string example) : state_(std::make_unique<State>()) {
  state_->command = std::move(command);
  state_->summary = std::move(summary);
  state_->example = std::move(example);
  state_->description.add_options()("help,h", "explain this command");
  text("config", "read options from this file (name = value lines); the command line wins", state_->config);
}

Options::~Options() = default;

void Options::flag(const std::string& name, const std::string& help, bool& to) {
  state_->description.add_options()(name.c_str(), po::bool_switch(), help.c_str());
  state_->declared.emplace(name, Declared{"yes or no", {}});
  state_->declared.at(name).convert = [&to](const std::vector<std::string>&) { return to = true; };
}

void Options::integer(const std::string& name, const std::string& help, int64_t& to, int64_t min, int64_t max) {
  const auto convert = [&to, min, max](const std::vector<std::string>& given) {
    return given.size() == 1 && read_whole(given[0], to) && to >= min && to <= max;
  };
  state_->add(name, with_default(help, shown(to)), {with_range("a whole number", min, max), convert}, false);
}

void Options::number(const std::string& name, const std::string& help, double& to, double min, double max) {
  const auto convert = [&to, min, max](const std::vector<std::string>& given) {
    return given.size() == 1 && read_whole(given[0], to) && std::isfinite(to) && to >= min && to <= max;
  };
  state_->add(name, with_default(help, shown(to)), {with_range("a number", min, max), convert}, false);
}

void Options::text(const std::string& name, const std::string& help, std::string& to) {
  const auto convert = [&to](const std::vector<std::string>& given) {
    to = given.back();
    return given.size() == 1;
  };
  state_->add(name, with_default(help, to), {"one value", convert}, false);
}

void Options::choice(const std::string& name, const std::string& help, std::string& to, std::vector<std::string> allowed) {
  const std::string names = joined(allowed, ", ");
  const auto convert = [&to, allowed = std::move(allowed)](const std::vector<std::string>& given) {
    to = given.back();
    return given.size() == 1 && std::find(allowed.begin(), allowed.end(), to) != allowed.end();
  };
  state_->add(name, with_default(help + ": " + names, to), {"one of " + names, convert}, false);
}

void Options::list(const std::string& name, const std::string& help, std::vector<std::string>& to) {
  const auto convert = [&to](const std::vector<std::string>& given) {
    to = given;
    return true;
  };
  state_->add(name, with_default(help, joined(to, " ")), {"one value or more", convert}, true);
}

void Options::device(DeviceOptions& to) {
  choice("device", "where to compute (default: cuda if there is one, and for f64 cpu)", to.device, {"cpu", "cuda"});
  integer("threads", "threads on the CPU; 0: one per core", to.threads, 0, 4096);
}

void Options::json(std::string& to) {
  text("json", "also write the numbers to this file, as JSON", to);
  writes("json");
}

void Options::reads(const std::vector<std::string>& names) { state_->read.insert(state_->read.end(), names.begin(), names.end()); }

void Options::writes(const std::string& name) { state_->written.push_back(name); }

void Options::positional(const std::string& name) {
  state_->positional_name = name;
  state_->positionals.add(name.c_str(), -1);
}

void Options::require(const std::string& name) { state_->required.push_back(name); }

bool Options::given(const std::string& name) const {
  const auto found = state_->values.find(name);
  return found != state_->values.end() && !found->second.defaulted();
}

void Options::print_help() const {
  std::cout << "braid " << state_->command << ": " << state_->summary << "\n\noptions:\n"
            << state_->description << "\nexample:\n  " << state_->example << '\n';
}

bool Options::parse(const std::vector<std::string>& arguments) {
  State& s = *state_;
  // No guessing of shortened names: an option added later must not change what an old command line means.
  const int style = po::command_line_style::unix_style & ~po::command_line_style::allow_guessing;
  s.store([&] { return po::command_line_parser(arguments).options(s.description).positional(s.positionals).style(style).run(); }, "");
  if (given("help")) {
    print_help();
    return false;
  }
  if (given("config")) {
    const std::string path = s.values["config"].as<std::vector<std::string>>().back();
    require_file("--config", path);
    std::ifstream file(path);
    s.store([&] { return po::parse_config_file(file, s.description); }, " in " + path);
  }
  for (const auto& [name, option] : s.declared) {
    if (!given(name)) continue;
    const boost::any& value = s.values[name].value();
    const auto* texts = boost::any_cast<std::vector<std::string>>(&value);
    if (!texts && !boost::any_cast<bool>(value)) continue;
    const std::vector<std::string> none, &words = texts ? *texts : none;
    if (!option.convert(words)) fail("--", name, " must be ", option.expected, ", got ", words.empty() ? "nothing" : joined(words, " "));
  }
  for (const std::string& name : s.required)
    if (!given(name) || s.is_empty(name)) fail("--", name, " must be given, got nothing; see 'braid ", s.command, " --help'");
  require_apart(s.paths_of(s.written), s.paths_of(s.read));
  return true;
}

Context make_context(const DeviceOptions& options, DType dtype) {
  BRAID_CHECK(options.device != "cuda" || dtype != DType::f64, "--dtype must be f32 or bf16 with --device cuda, got f64");
#ifdef BRAID_WITH_CUDA
  const bool usable = options.device != "cpu" && cuda::has_usable_device();
  BRAID_CHECK(options.device != "cuda" || usable,
              "--device must be cpu on this machine, which has no CUDA device that this build has code for, got cuda");
  if (options.device == "cuda" || (usable && dtype != DType::f64)) return cuda::make_context(0);
#else
  BRAID_CHECK(options.device != "cuda", "--device must be cpu in this build, which was made without CUDA, got cuda");
#endif
  return Context(static_cast<int>(options.threads));
}

DType compute_dtype(const std::string& given, const Context& ctx) {
  if (!given.empty()) return parse_compute_dtype("--dtype", given);
  return ctx.on_cpu() ? DType::f32 : DType::bf16;
}

void require_file(const std::string& option, const std::string& path) {
  std::error_code error;
  BRAID_CHECK(fs::exists(path, error), option, " must be an existing file, got ", path, ", which does not exist");
  BRAID_CHECK(!fs::is_directory(path, error), option, " must be a file, got the directory ", path);
  BRAID_CHECK(access(path.c_str(), R_OK) == 0, option, " must be a readable file, got ", path, ", which may not be read");
}

void require_path(const std::string& option, const std::string& path) {
  std::error_code error;
  BRAID_CHECK(fs::exists(path, error), option, " must be an existing file or directory, got ", path, ", which does not exist");
}

void require_writable_file(const std::string& option, const std::string& path) {
  if (path.empty()) return;
  std::error_code error;
  BRAID_CHECK(!fs::is_directory(path, error), option, " must be a file, got the directory ", path);
  const fs::path parent = fs::path(path).has_parent_path() ? fs::path(path).parent_path() : fs::path(".");
  const bool writable =
      fs::exists(path, error) ? access(path.c_str(), W_OK) == 0 : fs::is_directory(parent, error) && access(parent.c_str(), W_OK) == 0;
  BRAID_CHECK(writable, option, " must be a file that can be written, got ", path);
}

void require_writable_directory(const std::string& option, const std::string& path) {
  std::error_code error;
  fs::path there = fs::path(path);
  while (!there.empty() && !fs::exists(there, error)) there = there.has_relative_path() ? there.parent_path() : fs::path();
  if (there.empty()) there = ".";
  BRAID_CHECK(fs::is_directory(there, error) && access(there.c_str(), W_OK) == 0, option, " must be a directory that can be written, got ", path);
}

}  // namespace braid::cli
