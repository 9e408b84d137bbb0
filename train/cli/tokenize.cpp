// braid tokenize: text or JSON lines to a token data set, in a stream.
#include <iostream>

#include "io/json.h"
#include "io/text.h"
#include "io/token_dataset.h"
#include "io/tokenizer.h"
#include "train/cli/commands.h"
#include "train/cli/live_line.h"
#include "train/cli/options.h"
#include "train/cli/table.h"
#include "train/metrics.h"

namespace braid::cli {
namespace {

struct TokenizeOptions {
  std::vector<std::string> inputs;
  std::string tokenizer = "bytes", out, format = "automatic", field = "text", json;
};

TextOptions text_options(const TokenizeOptions& o) {
  TextOptions text;
  text.field = o.field;
  if (o.format == "text") text.format = TextOptions::Format::plain;
  if (o.format == "jsonl") text.format = TextOptions::Format::json_lines;
  return text;
}

void write_all(TextReader& reader, const Tokenizer& tokenizer, TokenDatasetWriter& writer) {
  LiveLine progress;
  TextPiece piece;
  while (reader.next(piece)) {
    if (piece.begins_document) writer.begin_document();
    const std::vector<int64_t> tokens = tokenizer.encode(piece.text);
    writer.append(tokens.data(), static_cast<int64_t>(tokens.size()));
    if (progress.is_due())
      progress.show(bytes(static_cast<double>(reader.bytes_read())) + " of " + bytes(static_cast<double>(reader.bytes_total())) + " read");
  }
}

}  // namespace

int run_tokenize(const Arguments& arguments) {
  TokenizeOptions o;
  Options options("tokenize", "make a token data set of text files or JSON lines; inputs may exceed memory",
                  "braid tokenize --input book.txt articles.jsonl --tokenizer bytes --out data.h5");
  options.list("input", "text files (each a document) or JSON lines (each line a document)", o.inputs);
  options.positional("input");
  options.require("input");
  options.text("tokenizer", "bytes (SentencePiece models are not supported yet)", o.tokenizer);
  options.text("out", "the data set to write", o.out);
  options.require("out");
  options.choice("format", "what the inputs are; automatic goes by the name (.jsonl)", o.format, {"automatic", "text", "jsonl"});
  options.text("field", "JSON lines: the key that holds the text", o.field);
  options.reads({"input"});
  options.writes("out");
  options.json(o.json);
  if (!options.parse(arguments)) return kDone;
  require_writable_file("--out", o.out);
  for (const std::string& input : o.inputs) require_file("--input", input);
  require_writable_file("--json", o.json);
  const auto tokenizer = make_tokenizer(o.tokenizer);
  TextReader reader(std::vector<Path>(o.inputs.begin(), o.inputs.end()), text_options(o));
  TokenDatasetWriter writer(o.out, tokenizer->vocab_size(), tokenizer->name());
  write_all(reader, *tokenizer, writer);
  const int64_t tokens = writer.num_tokens(), documents = writer.num_documents();
  writer.close();
  std::cout << o.out << ": " << tokens << " tokens, " << documents << " documents, vocabulary " << tokenizer->vocab_size() << '\n';
  if (!o.json.empty())
    write_json(
        o.json,
        {{"out", o.out}, {"tokens", tokens}, {"documents", documents}, {"vocab_size", tokenizer->vocab_size()}, {"tokenizer", tokenizer->name()}});
  return kDone;
}

}  // namespace braid::cli
