// The program: finds the command, runs it, and turns every exception into one line and an exit status.
#include <algorithm>
#include <csignal>
#include <exception>
#include <iostream>

#include "core/error.h"
#include "train/cli/commands.h"

namespace braid::cli {
namespace {

constexpr Command kCommands[] = {
    {"tokenize", "text or JSON lines to a token data set", run_tokenize},
    {"train", "train a model on token data sets", run_train},
    {"eval", "perplexity and recall of a model", run_eval},
    {"generate", "continue a prompt", run_generate},
    {"forward", "logits, loss and gradients of a model, to compare with", run_forward},
    {"check", "check operator outputs and gradients against the float64 oracle", run_check},
    {"convert", "checkpoints to model directories and back", run_convert},
    {"bench", "time operators and a training step beside their floor", run_bench},
    {"study", "train and evaluate a grid of family x ratio, write the report", run_study},
    {"models", "the presets with their sizes and costs", run_models},
    {"inspect", "what is in a checkpoint, data set, safetensors file or model directory", run_inspect},
};

void list_commands(std::ostream& out) {
  out << "usage: braid COMMAND [options]; 'braid COMMAND --help' explains one\n\n";
  for (const Command& command : kCommands) out << "  " << command.name << std::string(12 - command.name.size(), ' ') << command.summary << '\n';
}

std::string one_line(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return c == '\n' || c == '\r'; }, ' ');
  return text;
}

/// Tells why not, in one line. Errors of the engine may begin with the command's name themselves: it is said once.
int refuse(std::string_view command, std::string_view message) {
  const std::string prefix = std::string(command) + ": ";
  if (message.starts_with(prefix)) message.remove_prefix(prefix.size());
  std::cout.flush();
  std::cerr << "braid " << prefix << one_line(std::string(message)) << std::endl;
  return kRefused;
}

int run(const Command& command, const Arguments& arguments) {
  try {
    const int status = command.run(arguments);
    std::cout.flush();
    if (!std::cout) return refuse(command.name, "standard output cannot be written");
    return status;
  } catch (const std::bad_alloc&) {
    return refuse(command.name, "out of memory; lower the batch, the context or the model");
  } catch (const std::exception& error) {
    return refuse(command.name, error.what());
  }
}

}  // namespace
}  // namespace braid::cli

int main(int argc, char** argv) {
  using namespace braid::cli;
  std::ios::sync_with_stdio(false);
  std::signal(SIGXFSZ, SIG_IGN);  // a limit on the size of files is then an Error of the write, as a full disk is
  if (argc < 2) {
    list_commands(std::cerr);
    return kRefused;
  }
  const std::string name = argv[1];
  if (name == "--version") {
    std::cout << "braid " << BRAID_VERSION << std::endl;
    return kDone;
  }
  if (name == "--help" || name == "-h" || name == "help") {
    list_commands(std::cout);
    return kDone;
  }
  for (const Command& command : kCommands)
    if (command.name == name) return run(command, Arguments(argv + 2, argv + argc));
  if (name == "tokenizer") return refuse(name, "SentencePiece models are not supported yet; 'braid tokenize --tokenizer bytes' needs none");
  std::cerr << "braid: unknown command " << one_line(name) << "; expected one of";
  for (const Command& command : kCommands) std::cerr << ' ' << command.name;
  std::cerr << std::endl;
  return kRefused;
}
