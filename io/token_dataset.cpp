#include "io/token_dataset.h"

#include <algorithm>
#include <bit>
#include <optional>

#include "core/error.h"

namespace braid {
namespace {

static_assert(std::endian::native == std::endian::little, "token bytes are hashed as they lie in memory");

constexpr int64_t kBlockTokens = int64_t{1} << 15;  // of a chunk on disk, and of what is read at once
constexpr int64_t kBlockDocuments = int64_t{1} << 13;
constexpr int kDeflate = 4;
constexpr int64_t kMaxVocabSize = int64_t{1} << 32;
constexpr int64_t kMaxShortVocabSize = int64_t{1} << 16;

}  // namespace

struct TokenDatasetWriter::State {
  State(const Path& path, int64_t vocab, const std::string& tokenizer)
      : target(path),
        vocab_size(vocab),
        file(Hdf5File::create(target.temporary(), path)),
        tokens(create_tokens()),
        documents(file.create_growing<uint64_t>("documents", kBlockDocuments, kDeflate)) {
    file.set_attribute<int64_t>("vocab_size", vocab_size);
    file.set_attribute("tokenizer", tokenizer);
  }

  bool is_short() const { return vocab_size <= kMaxShortVocabSize; }
  Hdf5Dataset create_tokens() {
    if (is_short()) return file.create_growing<uint16_t>("tokens", kBlockTokens, kDeflate);
    return file.create_growing<uint32_t>("tokens", kBlockTokens, kDeflate);
  }

  void flush_tokens() {
    const auto count = static_cast<int64_t>(pending.size());
    if (is_short()) {
      const std::vector<uint16_t> narrow(pending.begin(), pending.end());
      digest.update(narrow.data(), count * 2);
      tokens.append(narrow.data(), count);
    } else {
      digest.update(pending.data(), count * 4);
      tokens.append(pending.data(), count);
    }
    pending.clear();
  }

  void flush_documents() {
    documents.append(starts.data(), static_cast<int64_t>(starts.size()));
    starts.clear();
  }

  AtomicPath target;  // before the file: it is removed after the file is closed
  int64_t vocab_size;
  Hdf5File file;
  Hdf5Dataset tokens, documents;
  std::vector<uint32_t> pending;
  std::vector<uint64_t> starts;
  int64_t num_tokens = 0, num_documents = 0;
  Sha256 digest;
};

TokenDatasetWriter::TokenDatasetWriter(const Path& path, int64_t vocab_size, const std::string& tokenizer) {
  BRAID_CHECK(vocab_size > 0 && vocab_size <= kMaxVocabSize, "token data set: vocab_size must be in [1, ", kMaxVocabSize, "], got ", vocab_size);
  state_ = std::make_unique<State>(path, vocab_size, tokenizer);
}

TokenDatasetWriter::~TokenDatasetWriter() = default;

int64_t TokenDatasetWriter::num_tokens() const { return state_->num_tokens; }
int64_t TokenDatasetWriter::num_documents() const { return state_->num_documents; }

void TokenDatasetWriter::begin_document() {
  State& s = *state_;
  s.starts.push_back(static_cast<uint64_t>(s.num_tokens));
  ++s.num_documents;
  if (static_cast<int64_t>(s.starts.size()) == kBlockDocuments) s.flush_documents();
}

void TokenDatasetWriter::append(const int64_t* tokens, int64_t count) {
  State& s = *state_;
  BRAID_CHECK(s.num_documents > 0, "token data set: begin_document must come before the first token");
  for (int64_t i = 0; i < count; ++i) {
    BRAID_CHECK(tokens[i] >= 0 && tokens[i] < s.vocab_size, "token data set: a token must be in [0, ", s.vocab_size, "), got ", tokens[i]);
    s.pending.push_back(static_cast<uint32_t>(tokens[i]));
    ++s.num_tokens;
    if (static_cast<int64_t>(s.pending.size()) == kBlockTokens) s.flush_tokens();
  }
}

void TokenDatasetWriter::add_document(const std::vector<int64_t>& tokens) {
  begin_document();
  append(tokens.data(), static_cast<int64_t>(tokens.size()));
}

void TokenDatasetWriter::close() {
  State& s = *state_;
  BRAID_CHECK(s.num_tokens > 0, "cannot write ", s.target.path().string(), ": there is no token to put into it");
  s.flush_tokens();
  s.flush_documents();
  s.file.set_attribute("sha256", s.digest.hex());
  s.file.close();
  s.target.commit();
}

struct TokenDataset::State {
  explicit State(const Path& given) : path(given), file(Hdf5File::open(given)), tokens(file.dataset("tokens")) {}

  void load_attributes() {
    vocab_size = file.attribute<int64_t>("vocab_size");
    BRAID_CHECK(vocab_size > 0 && vocab_size <= kMaxVocabSize, name(), ": vocab_size must be in [1, ", kMaxVocabSize, "], got ", vocab_size);
    tokenizer = file.attribute<std::string>("tokenizer");
    sha256 = file.attribute<std::string>("sha256");
    const bool known = tokens.type_name() == "u16" || tokens.type_name() == "u32";
    BRAID_CHECK(tokens.extents().size() == 1 && known, name(), ": tokens must be a list of uint16 or uint32, got ", tokens.extents().size(),
                " dimensions of ", tokens.type_name());
    num_tokens = tokens.size();
  }

  void load_documents() {
    const Hdf5Dataset stored = file.dataset("documents");
    BRAID_CHECK(stored.extents().size() == 1 && stored.type_name() == "u64", name(), ": documents must be a list of uint64, got ",
                stored.extents().size(), " dimensions of ", stored.type_name());
    const int64_t count = stored.size();
    BRAID_CHECK(count > 0 || num_tokens == 0, name(), ": there are tokens, but no document");
    int64_t before = 0;
    for (int64_t begin = 0; begin < count; begin += kBlockDocuments) {
      const int64_t size = std::min(kBlockDocuments, count - begin);
      starts.resize(static_cast<size_t>(begin + size));
      stored.read(begin, size, starts.data() + begin);
      for (int64_t i = begin; i < begin + size; ++i) {
        const int64_t start = starts[static_cast<size_t>(i)];
        BRAID_CHECK(i > 0 || start == 0, name(), ": the first document must start at token 0, got ", start);
        BRAID_CHECK(start >= before && start <= num_tokens, name(), ": document ", i, " must start in [", before, ", ", num_tokens, "], got ", start);
        before = start;
      }
    }
  }

  std::string name() const { return path.string(); }

  /// The block of tokens that holds `position`, read and checked once while it is asked for in a row.
  const std::vector<uint32_t>& block_at(int64_t position) {
    const int64_t index = position / kBlockTokens;
    if (index == block_index) return block;
    block_index = -1;
    const int64_t begin = index * kBlockTokens;
    block.resize(static_cast<size_t>(std::min(kBlockTokens, num_tokens - begin)));
    tokens.read(begin, static_cast<int64_t>(block.size()), block.data());
    for (size_t i = 0; i < block.size(); ++i)
      BRAID_CHECK(block[i] < vocab_size, name(), ": token ", begin + static_cast<int64_t>(i), " must be below vocab_size ", vocab_size, ", got ",
                  block[i]);
    block_index = index;
    return block;
  }

  Path path;
  Hdf5File file;
  Hdf5Dataset tokens;
  int64_t num_tokens = 0, vocab_size = 0;
  std::string tokenizer, sha256;
  std::vector<int64_t> starts;
  std::vector<uint32_t> block;
  int64_t block_index = -1;
};

TokenDataset::TokenDataset(const Path& path) : state_(std::make_unique<State>(path)) {
  state_->load_attributes();
  state_->load_documents();
}

TokenDataset::TokenDataset(TokenDataset&&) noexcept = default;
TokenDataset::~TokenDataset() = default;

const Path& TokenDataset::path() const { return state_->path; }
int64_t TokenDataset::num_tokens() const { return state_->num_tokens; }
int64_t TokenDataset::num_documents() const { return static_cast<int64_t>(state_->starts.size()); }
int64_t TokenDataset::vocab_size() const { return state_->vocab_size; }
const std::string& TokenDataset::tokenizer() const { return state_->tokenizer; }
const std::string& TokenDataset::sha256() const { return state_->sha256; }

std::vector<int64_t> TokenDataset::read(int64_t begin, int64_t count) const {
  require_range(begin, count);
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  read(begin, count, tokens.data());
  return tokens;
}

void TokenDataset::require_range(int64_t begin, int64_t count) const {
  const int64_t size = num_tokens();
  BRAID_CHECK(begin >= 0 && count >= 0 && count <= size && begin <= size - count, state_->name(), ": tokens ", begin, " and the ", count,
              " from there on lie outside its ", size);
}

void TokenDataset::read(int64_t begin, int64_t count, int64_t* to) const {
  require_range(begin, count);
  for (int64_t position = begin; position < begin + count;) {
    const std::vector<uint32_t>& block = state_->block_at(position);
    const int64_t offset = position % kBlockTokens;
    const int64_t taken = std::min(static_cast<int64_t>(block.size()) - offset, begin + count - position);
    std::copy_n(block.begin() + offset, taken, to);
    to += taken;
    position += taken;
  }
}

int64_t TokenDataset::document_begin(int64_t document) const {
  BRAID_CHECK(document >= 0 && document < num_documents(), state_->name(), ": document ", document, " lies outside its ", num_documents());
  return state_->starts[static_cast<size_t>(document)];
}

int64_t TokenDataset::document_end(int64_t document) const { return document + 1 == num_documents() ? num_tokens() : document_begin(document + 1); }

int64_t TokenDataset::document_of(int64_t position) const {
  BRAID_CHECK(position >= 0 && position < num_tokens(), state_->name(), ": token ", position, " lies outside its ", num_tokens());
  const auto& starts = state_->starts;
  return std::upper_bound(starts.begin(), starts.end(), position) - starts.begin() - 1;
}

void TokenDataset::verify() const {
  const bool is_short = state_->tokens.type_name() == "u16";
  Sha256 digest;
  for (int64_t position = 0; position < num_tokens(); position += kBlockTokens) {
    const std::vector<uint32_t>& block = state_->block_at(position);
    const auto count = static_cast<int64_t>(block.size());
    const std::vector<uint16_t> narrow(block.begin(), is_short ? block.end() : block.begin());
    if (is_short) digest.update(narrow.data(), count * 2);
    else digest.update(block.data(), count * 4);
  }
  BRAID_CHECK(digest.hex() == sha256(), state_->name(), ": its tokens have the SHA-256 ", digest.hex(), ", its attribute says ", sha256());
}

}  // namespace braid
