// Options of a command: declared once, read from the command line and from --config, checked, and explained by --help.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "core/context.h"

namespace braid::cli {

/// The two options every computing command has.
struct DeviceOptions {
  std::string device;   // "cpu" or "cuda"; empty: cuda if there is one
  int64_t threads = 0;  // 0: one per usable core
};

/// The context the user asked for, or the best there is for what is computed in `dtype`: without --device a GPU that this build has code for,
/// else, and for f64, which the kernels do not know, the CPU. Throws Error, naming --device, when this build or machine has no such device.
Context make_context(const DeviceOptions& options, DType dtype);

/// The --dtype given; empty: what the device is fast in, f32 on the CPU and bf16 on a GPU.
DType compute_dtype(const std::string& given, const Context& ctx);

/// Options bound to variables; a variable's value at declaration is its default. Every mistake of the user is an Error of one line
/// that names the option, what was expected and what was given. Values are read independently of the locale.
class Options {
 public:
  /// `example`: one or more whole command lines, shown by --help.
  Options(std::string command, std::string summary, std::string example);
  ~Options();
  Options(const Options&) = delete;
  Options& operator=(const Options&) = delete;

  void flag(const std::string& name, const std::string& help, bool& to);
  /// No count of tokens or steps is larger than kMaxCount, so that the product of a few does not overflow.
  static constexpr int64_t kMaxCount = int64_t{1} << 40;
  void integer(const std::string& name, const std::string& help, int64_t& to, int64_t min = 0, int64_t max = kMaxCount);
  /// A finite number in [min, max].
  void number(const std::string& name, const std::string& help, double& to, double min = 0, double max = std::numeric_limits<double>::max());
  void text(const std::string& name, const std::string& help, std::string& to);
  void choice(const std::string& name, const std::string& help, std::string& to, std::vector<std::string> allowed);
  void list(const std::string& name, const std::string& help, std::vector<std::string>& to);
  /// --device and --threads.
  void device(DeviceOptions& to);
  /// --json FILE: where the numbers go besides the table.
  void json(std::string& to);

  /// Options (text or list) whose files and directories are read, or are a model or run that is written; a path may have ":WEIGHT" behind it.
  void reads(const std::vector<std::string>& names);
  /// Options whose file is written; json() is one. None of them, nor two of them, may be a file of the others (apart.h).
  void writes(const std::string& name);

  /// The option `name` (text or list) takes the arguments that belong to no option.
  void positional(const std::string& name);
  /// The option must be given, here or in the configuration file, and not be empty.
  void require(const std::string& name);

  /// Reads the arguments (without program and command). False: --help was asked for and printed.
  bool parse(const std::vector<std::string>& arguments);
  /// Whether the user gave it.
  bool given(const std::string& name) const;

 private:
  struct State;
  void print_help() const;
  std::unique_ptr<State> state_;
};

/// Throws Error, naming the option, unless `path` is an existing readable file / an existing file or directory.
void require_file(const std::string& option, const std::string& path);
void require_path(const std::string& option, const std::string& path);
/// Throws Error, naming the option, unless a file could be made at `path` (or the one there overwritten). Empty: not asked for.
void require_writable_file(const std::string& option, const std::string& path);
/// The same for a directory that is there or can be made. Makes nothing.
void require_writable_directory(const std::string& option, const std::string& path);

}  // namespace braid::cli
