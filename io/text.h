// Documents out of text files, in a stream: memory does not grow with files or documents.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace braid {

/// A part of a document. A document comes as one or more pieces in order; an empty document is one empty piece.
struct TextPiece {
  std::string_view text;  // valid until the next call
  bool begins_document = false;
  bool ends_document = false;
};

struct TextOptions {
  enum class Format { automatic, plain, json_lines };
  Format format = Format::automatic;  // automatic: .jsonl and .ndjson are JSON lines, everything else is plain text
  std::string field = "text";         // JSON lines: the key that holds the document
  int64_t piece_bytes = 1 << 20;      // largest piece of plain text
  int64_t line_bytes = 1 << 28;       // longest JSON line
};

/// Reads files one after the other. Plain text: a file is a document, cut into pieces after a line end if there is one, else after
/// a blank, else between UTF-8 characters. JSON lines: a line is an object and its `field` a document; lines of white space are
/// skipped; a line that is not such an object is an Error "file:line: reason".
class TextReader {
 public:
  explicit TextReader(std::vector<Path> files, TextOptions options = {});
  ~TextReader();
  /// The next piece; false after the last one. Error when a file cannot be read.
  bool next(TextPiece& piece);
  /// Bytes of the files read so far, and of all files (0 for pipes): for progress.
  int64_t bytes_read() const;
  int64_t bytes_total() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace braid
