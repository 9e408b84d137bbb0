#include "train/data_loader.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "core/random.h"

namespace braid {
namespace {

/// The order of epoch e of data set s.
uint64_t order_key(uint64_t seed, int64_t source, int64_t epoch) {
  return mixed_hash(mixed_hash(seed, static_cast<uint64_t>(source)), static_cast<uint64_t>(epoch));
}

/// Rows of one micro-batch being put together.
struct Packed {
  std::vector<int64_t> tokens, targets, cu_seqlens{0};
  int64_t num_targets = 0;

  void add(const TokenSource& source, int64_t begin, int64_t end) {
    const size_t base = tokens.size();
    const int64_t count = end - begin, with_next = std::min(end + 1, source.num_tokens()) - begin;
    tokens.resize(base + static_cast<size_t>(with_next));
    source.read(begin, with_next, tokens.data() + base);
    for (int64_t place = begin; place < end;) {
      const int64_t document_end = source.document_end(place), stop = std::min(document_end, end);
      for (; place < stop; ++place) {
        const bool has_target = place + 1 < document_end;
        targets.push_back(has_target ? tokens[base + static_cast<size_t>(place + 1 - begin)] : -1);
        num_targets += has_target;
      }
      cu_seqlens.push_back(static_cast<int64_t>(targets.size()));
    }
    tokens.resize(base + static_cast<size_t>(count));
  }
  Batch batch(Context& ctx) && {
    const int64_t N = static_cast<int64_t>(tokens.size());
    return {from_vector(ctx, tokens, {N}), from_vector(ctx, targets, {N}), Sequences(std::move(cu_seqlens)), num_targets};
  }
};

/// Tokens of [begin, end) that are followed by another one of their document.
int64_t count_targets(const TokenSource& source, int64_t begin, int64_t end) {
  int64_t count = 0;
  for (int64_t place = begin; place < end;) {
    const int64_t document_end = source.document_end(place), stop = std::min(document_end, end);
    count += stop - place - (stop == document_end ? 1 : 0);
    place = stop;
  }
  return count;
}

class MemorySource final : public TokenSource {
 public:
  explicit MemorySource(const std::vector<std::vector<int64_t>>& documents) {
    for (const auto& document : documents) {
      if (document.empty()) continue;
      tokens_.insert(tokens_.end(), document.begin(), document.end());
      ends_.push_back(static_cast<int64_t>(tokens_.size()));
      fingerprint_ = mixed_hash(fingerprint_, static_cast<uint64_t>(document.size()));
    }
    for (int64_t token : tokens_) fingerprint_ = mixed_hash(fingerprint_, static_cast<uint64_t>(token));
  }
  int64_t num_tokens() const override { return static_cast<int64_t>(tokens_.size()); }
  int64_t document_end(int64_t position) const override { return *std::upper_bound(ends_.begin(), ends_.end(), position); }
  void read(int64_t begin, int64_t count, int64_t* out) const override {
    BRAID_CHECK(begin >= 0 && count >= 0 && begin + count <= num_tokens(), "data: tokens [", begin, ", ", begin + count, ") are not within the ",
                num_tokens(), " there are");
    std::copy_n(tokens_.begin() + begin, count, out);
  }
  uint64_t fingerprint() const override { return fingerprint_; }

 private:
  std::vector<int64_t> tokens_, ends_;
  uint64_t fingerprint_ = 0;
};

int64_t num_rows_of(const TokenSource& source, int64_t context) { return (source.num_tokens() + context - 1) / context; }

}  // namespace

std::shared_ptr<const TokenSource> make_token_source(const std::vector<std::vector<int64_t>>& documents) {
  return std::make_shared<MemorySource>(documents);
}

bool has_target(const TokenSource& source, int64_t num_tokens) {
  const int64_t stop = num_tokens > 0 ? std::min(num_tokens, source.num_tokens()) : source.num_tokens();
  for (int64_t place = 0; place < stop;) {
    const int64_t end = source.document_end(place);
    if (end - place > 1) return true;
    place = end;
  }
  return false;
}

DataLoader::DataLoader(std::vector<WeightedSource> sources, const LoaderOptions& options)
    : sources_(std::move(sources)), options_(options), drawn_(sources_.size(), 0) {
  BRAID_CHECK(!sources_.empty(), "data: at least one data set is needed");
  BRAID_CHECK(options.context >= 1, "data: the context must be at least 1 token, got ", options.context);
  BRAID_CHECK(options.batch_tokens >= options.context && options.batch_tokens % options.context == 0,
              "data: batch tokens must be a multiple of context = ", options.context, ", got ", options.batch_tokens);
  check_share("data", "rows of a step (batch tokens / context)", options.batch_tokens / options.context, options.share);
  double total = 0;
  for (const WeightedSource& source : sources_) {
    BRAID_CHECK(source.source && source.source->num_tokens() > 0, "data: a data set must hold at least one token");
    BRAID_CHECK(source.weight > 0 && std::isfinite(source.weight), "data: a weight must be positive, got ", source.weight);
    total += source.weight;
  }
  for (WeightedSource& source : sources_) source.weight /= total;
}

DataLoader::Row DataLoader::draw() {
  int64_t num_drawn = 0, chosen = 0;
  for (int64_t count : drawn_) num_drawn += count;
  double largest_lack = 0;
  for (size_t i = 0; i < sources_.size(); ++i) {
    const double lack = sources_[i].weight * static_cast<double>(num_drawn + 1) - static_cast<double>(drawn_[i]);
    if (i > 0 && lack <= largest_lack) continue;
    largest_lack = lack;
    chosen = static_cast<int64_t>(i);
  }
  const int64_t rows = num_rows_of(*sources_[chosen].source, options_.context);
  const int64_t count = drawn_[chosen]++, epoch = count / rows, index = count % rows;
  return {chosen, options_.shuffle ? permuted(index, rows, order_key(options_.seed, chosen, epoch)) : index};
}

StepBatch DataLoader::next(Context& ctx) {
  const int64_t num_rows = options_.batch_tokens / options_.context;
  StepBatch step;
  std::vector<Row> rows;
  const auto bounds = [&](const Row& row) {
    const int64_t begin = row.index * options_.context;
    return std::pair(begin, std::min(begin + options_.context, sources_[row.source].source->num_tokens()));
  };
  for (int64_t i = 0; i < num_rows; ++i) {
    const Row row = rows.emplace_back(draw());
    const auto [begin, end] = bounds(row);
    step.num_tokens += end - begin;
    step.num_targets += count_targets(*sources_[row.source].source, begin, end);
  }
  for (int64_t micro = 0; micro < options_.share.num_micro_batches; ++micro) {
    const auto [first, last] = micro_batch_range(options_.share, num_rows, micro);
    Packed packed;
    for (int64_t i = first; i < last; ++i) {
      const auto [begin, end] = bounds(rows[i]);
      packed.add(*sources_[rows[i].source].source, begin, end);
    }
    step.micro_batches.push_back(std::move(packed).batch(ctx));
  }
  return step;
}

DataPosition DataLoader::position() const { return {drawn_, fingerprint()}; }

void DataLoader::restore(const DataPosition& position) {
  BRAID_CHECK(position.drawn.size() == drawn_.size() && position.fingerprint == fingerprint(),
              "data: the saved position belongs to other data sets, weights, context or seed than those given");
  drawn_ = position.drawn;
}

uint64_t DataLoader::fingerprint() const {
  uint64_t hash = mixed_hash(options_.seed, static_cast<uint64_t>(options_.context) * 2 + (options_.shuffle ? 1 : 0));
  for (const WeightedSource& source : sources_) {
    hash = mixed_hash(hash, source.source->fingerprint());
    hash = mixed_hash(hash, std::bit_cast<uint64_t>(source.weight));
  }
  return hash;
}

double DataLoader::epochs(int64_t i) const {
  return static_cast<double>(drawn_[i]) / static_cast<double>(num_rows_of(*sources_[i].source, options_.context));
}

Batch read_rows(Context& ctx, const TokenSource& source, int64_t begin, int64_t end, int64_t context) {
  BRAID_CHECK(context >= 1 && begin >= 0 && begin % context == 0 && end <= source.num_tokens(),
              "data: rows must start at a multiple of context = ", context, " and end within the ", source.num_tokens(), " tokens there are, got [",
              begin, ", ", end, ")");
  Packed packed;
  for (int64_t row = begin; row < end; row += context) packed.add(source, row, std::min(row + context, end));
  return std::move(packed).batch(ctx);
}

int64_t permuted(int64_t index, int64_t size, uint64_t key) {
  const int half_bits = (std::bit_width(static_cast<uint64_t>(size - 1)) + 1) / 2;
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t value = static_cast<uint64_t>(index);
  do {
    uint64_t left = value >> half_bits, right = value & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (philox(key, right, round)[0] & mask);
      left = right;
      right = next;
    }
    value = left << half_bits | right;
  } while (value >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(value);
}

}  // namespace braid
