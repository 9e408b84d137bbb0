#include "io/text.h"

#include <algorithm>
#include <cerrno>
#include <optional>

#include "core/error.h"
#include "io/json.h"

namespace braid {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

/// How much of a full buffer makes a piece: up to its last line end, else its last blank, else its last whole UTF-8 character.
size_t piece_length(std::string_view text) {
  if (const size_t line = text.rfind('\n'); line != std::string_view::npos) return line + 1;
  for (size_t i = text.size(); i > 0; --i)
    if (is_blank(text[i - 1])) return i;
  size_t start = text.size() - 1;
  while (start > 0 && text.size() - start < 4 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
  // A character that begins at `start` may go on in the next piece; what is no UTF-8 is cut anywhere.
  return start > 0 && static_cast<unsigned char>(text[start]) >= 0xC0 ? start : text.size();
}

bool is_json_lines(const Path& path, TextOptions::Format format) {
  if (format != TextOptions::Format::automatic) return format == TextOptions::Format::json_lines;
  return path.extension() == ".jsonl" || path.extension() == ".ndjson";
}

}  // namespace

struct TextReader::State {
  std::vector<Path> files;
  TextOptions options;
  size_t next_file = 0;
  std::optional<InputFile> file;
  bool json_lines = false;
  bool at_end = false;  // the file has no more bytes
  bool document_open = false;
  std::string buffer;   // read, not yet given out
  size_t used = 0;      // of the buffer
  size_t searched = 0;  // JSON lines: no line end before this
  int64_t line = 0;
  std::string document;
  int64_t bytes_read = 0, bytes_total = 0;

  void open_next() {
    file.emplace(files[next_file++]);
    json_lines = is_json_lines(file->path(), options.format);
    at_end = document_open = false;
    buffer.clear();
    used = searched = 0;
    line = 0;
  }

  /// Drops what was given out and reads on until there are `bytes` or the file ends.
  void fill(size_t bytes) {
    buffer.erase(0, used);
    searched -= std::min(searched, used);
    used = 0;
    const size_t have = buffer.size();
    if (at_end || have >= bytes) return;
    buffer.resize(bytes);
    const int64_t got = file->read(buffer.data() + have, static_cast<int64_t>(bytes - have));
    buffer.resize(have + static_cast<size_t>(got));
    bytes_read += got;
    at_end = buffer.size() < bytes;
  }

  bool next_plain(TextPiece& piece) {
    if (at_end && used == buffer.size() && document_open) return false;
    const auto limit = static_cast<size_t>(options.piece_bytes);
    fill(limit + 1);  // one more byte tells whether this piece is the last
    const bool last = buffer.size() <= limit;
    const size_t length = last ? buffer.size() : piece_length(std::string_view(buffer).substr(0, limit));
    piece = {std::string_view(buffer).substr(0, length), !document_open, last};
    document_open = true;
    used = length;
    return true;
  }

  /// The next line without its end; false after the last one.
  bool next_line(std::string_view& text) {
    for (;;) {
      searched = std::max(searched, used);
      const size_t end = buffer.find('\n', searched);
      if (end != std::string::npos || (at_end && used < buffer.size())) {
        const size_t stop = end == std::string::npos ? buffer.size() : end;
        text = std::string_view(buffer).substr(used, stop - used);
        used = end == std::string::npos ? stop : stop + 1;
        ++line;
        return true;
      }
      if (at_end) return false;
      const size_t kept = buffer.size() - used;
      searched = buffer.size();
      BRAID_CHECK(static_cast<int64_t>(kept) < options.line_bytes, place(1), ": the line is longer than ", options.line_bytes, " bytes");
      fill(std::max<size_t>(2 * kept, 1 << 16));
    }
  }

  std::string place(int64_t ahead = 0) const { return file->path().string() + ":" + std::to_string(line + ahead); }

  bool next_json(TextPiece& piece) {
    std::string_view text;
    do {
      if (!next_line(text)) return false;
    } while (std::all_of(text.begin(), text.end(), is_blank));
    document = required<std::string>(place(), parse_json(place(), text), options.field);
    piece = {document, true, true};
    return true;
  }
};

TextReader::TextReader(std::vector<Path> files, TextOptions options) : state_(std::make_unique<State>()) {
  BRAID_CHECK(options.piece_bytes >= 4, "text: a piece must have at least 4 bytes, got ", options.piece_bytes);
  state_->files = std::move(files);
  state_->options = std::move(options);
  for (const Path& path : state_->files) {
    std::error_code error;  // a pipe may be opened only once, so it is looked at without
    const auto kind = std::filesystem::status(path, error).type();
    if (kind == std::filesystem::file_type::not_found) fail_path("cannot open", path, ENOENT);
    if (kind == std::filesystem::file_type::regular) state_->bytes_total += InputFile(path).size_bytes();
  }
}

TextReader::~TextReader() = default;

bool TextReader::next(TextPiece& piece) {
  State& s = *state_;
  for (;;) {
    if (s.file && (s.json_lines ? s.next_json(piece) : s.next_plain(piece))) return true;
    if (s.next_file == s.files.size()) return false;
    s.open_next();
  }
}

int64_t TextReader::bytes_read() const { return state_->bytes_read; }
int64_t TextReader::bytes_total() const { return state_->bytes_total; }

}  // namespace braid
