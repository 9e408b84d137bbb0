#include "train/recall.h"

#include <algorithm>
#include <numeric>

#include "core/context.h"

namespace braid {
namespace {

constexpr int kMaxDraws = 4096;

template <class T>
void shuffle(std::vector<T>& values, Random& random) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random.below(i)]);
}

void check_at_least(const char* task, const char* what, int64_t given, int64_t least) {
  BRAID_CHECK(given >= least, task, ": ", what, " must be at least ", least, ", got ", given);
}

class AssociativeRecall final : public RecallTask {
 public:
  AssociativeRecall(const AssociativeRecallOptions& options, uint64_t seed) : RecallTask(seed), options_(options) {
    const auto& o = options_;
    check_at_least("recall", "the number of pairs", o.num_pairs, 1);
    check_at_least("recall", "the number of values", o.num_values, 2);
    check_at_least("recall", "the number of queries", o.num_queries, 1);
    check_at_least("recall", "the gap", o.gap, 0);
    BRAID_CHECK(o.num_keys >= o.num_pairs, "recall: the number of keys must be at least that of pairs = ", o.num_pairs, ", got ", o.num_keys);
    const int64_t least = 2 * o.num_pairs + o.gap + 2 * o.num_queries;
    if (o.length == 0) options_.length = least;
    check_at_least("recall", "the length (2 · pairs + gap + 2 · queries)", options_.length, least);
    num_free_ = options_.length - least;
  }
  std::string_view name() const override { return "associative recall"; }
  int64_t vocab_size() const override { return options_.num_keys + options_.num_values + 1; }
  int64_t sequence_length() const override { return options_.length; }
  double chance() const override { return 1.0 / static_cast<double>(options_.num_values); }

 protected:
  RecallExample draw(Random& random) const override {
    const auto& o = options_;
    std::vector<int64_t> keys(o.num_keys);
    std::iota(keys.begin(), keys.end(), 0);
    shuffle(keys, random);
    keys.resize(o.num_pairs);
    std::vector<int64_t> value_of(o.num_keys, -1);
    RecallExample example;
    for (int64_t key : keys) {
      value_of[key] = o.num_keys + static_cast<int64_t>(random.below(o.num_values));
      add(example, key, -1);
      add(example, value_of[key], -1);
    }
    for (int64_t value : value_of) example.content = mixed_hash(example.content, static_cast<uint64_t>(value));
    add_fillers(example, o.gap);
    std::vector<int64_t> free_before(o.num_queries, 0);
    for (int64_t i = 0; i < num_free_; ++i) ++free_before[random.below(o.num_queries)];
    for (int64_t query = 0; query < o.num_queries; ++query) {
      if (query % o.num_pairs == 0) shuffle(keys, random);
      const int64_t key = keys[query % o.num_pairs];
      add_fillers(example, free_before[query]);
      add(example, key, value_of[key]);
      add(example, value_of[key], -1);
    }
    return example;
  }

 private:
  static void add(RecallExample& example, int64_t token, int64_t target) {
    example.tokens.push_back(token);
    example.targets.push_back(target);
  }
  void add_fillers(RecallExample& example, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) add(example, options_.num_keys + options_.num_values, -1);
  }
  AssociativeRecallOptions options_;
  int64_t num_free_ = 0;
};

/// Bytes as tokens; the target of each byte from `first_answer - 1` on is the next one.
RecallExample byte_example(const std::string& text, int64_t first_answer, int64_t num_answers) {
  RecallExample example;
  for (char c : text) example.tokens.push_back(static_cast<unsigned char>(c));
  example.targets.assign(text.size(), -1);
  for (int64_t i = first_answer; i < first_answer + num_answers; ++i) example.targets[i - 1] = example.tokens[i];
  return example;
}

class CopyTask final : public RecallTask {
 public:
  CopyTask(const CopyOptions& options, uint64_t seed) : RecallTask(seed), options_(options) {
    check_at_least("copy", "the length", options.length, 1);
    BRAID_CHECK(options.alphabet >= 2 && options.alphabet <= 26, "copy: the alphabet must have 2 to 26 letters, got ", options.alphabet);
  }
  std::string_view name() const override { return "copy"; }
  int64_t vocab_size() const override { return 256; }
  int64_t sequence_length() const override { return 2 * options_.length + 1; }
  double chance() const override { return 1.0 / static_cast<double>(options_.alphabet); }

 protected:
  RecallExample draw(Random& random) const override {
    std::string text;
    uint64_t content = 0;
    for (int64_t i = 0; i < options_.length; ++i) {
      text += static_cast<char>('a' + random.below(options_.alphabet));
      content = mixed_hash(content, static_cast<unsigned char>(text.back()));
    }
    RecallExample example = byte_example(text + '|' + text, options_.length + 1, options_.length);
    example.content = content;
    return example;
  }

 private:
  CopyOptions options_;
};

class NeedleTask final : public RecallTask {
 public:
  NeedleTask(const NeedleOptions& options, uint64_t seed) : RecallTask(seed), options_(options) {
    BRAID_CHECK(options.num_needles >= 1 && options.num_needles <= 16, "needle: the number of needles must be 1 to 16, got ", options.num_needles);
    BRAID_CHECK(options.num_digits >= 1 && options.num_digits <= 9, "needle: the number of digits must be 1 to 9, got ", options.num_digits);
    const int64_t least = (options.num_needles + 1) * (kLongestSentence + options.num_digits);
    check_at_least("needle", "the length", options.length, least);
  }
  std::string_view name() const override { return "needle"; }
  int64_t vocab_size() const override { return 256; }
  int64_t sequence_length() const override { return options_.length; }
  double chance() const override { return 0.1; }

 protected:
  RecallExample draw(Random& random) const override {
    std::vector<int64_t> name_indices(kNames.size());
    std::iota(name_indices.begin(), name_indices.end(), 0);
    shuffle(name_indices, random);
    name_indices.resize(options_.num_needles);
    std::vector<std::string> needles;
    uint64_t content = 0;
    std::vector<std::string> codes;
    for (int64_t name : name_indices) {
      std::string code;
      for (int64_t i = 0; i < options_.num_digits; ++i) code += static_cast<char>('0' + random.below(10));
      codes.push_back(code);
      needles.push_back(sentence(name) + code + ". ");
      content += mixed_hash(static_cast<uint64_t>(name) + 1, static_cast<uint64_t>(std::stoll(code)));  // a sum: order does not matter
    }
    const int64_t asked = static_cast<int64_t>(random.below(options_.num_needles));
    const std::string question = sentence(name_indices[asked]) + codes[asked];
    RecallExample example = byte_example(haystack(needles, options_.length - static_cast<int64_t>(question.size()), random) + question,
                                         options_.length - options_.num_digits, options_.num_digits);
    example.content = content;
    return example;
  }

 private:
  static constexpr std::array<std::string_view, 24> kNames = {"anna", "ben",  "carl", "dora", "emil",  "fay",  "gus",  "hana",
                                                              "ivan", "jana", "kurt", "lea",  "milan", "nora", "otto", "pia",
                                                              "quin", "rosa", "sven", "tara", "uma",   "vito", "wim",  "zoe"};
  static constexpr std::array<std::string_view, 20> kWords = {"the",  "sun",  "was",  "warm", "and", "birds", "sang", "over", "green", "hills",
                                                              "wind", "went", "down", "to",   "old", "river", "a",    "boat", "lay",   "still"};
  static constexpr int64_t kLongestSentence = 24;  // "the code of milan is " and ". "

  static std::string sentence(int64_t name) { return "the code of " + std::string(kNames[name]) + " is "; }

  /// `length` bytes of everyday words with the needles between two of them, at random.
  std::string haystack(const std::vector<std::string>& needles, int64_t length, Random& random) const {
    int64_t num_free = length;
    for (const std::string& needle : needles) num_free -= static_cast<int64_t>(needle.size());
    std::vector<std::string> parts;
    while (num_free > 0) {
      std::string word = std::string(kWords[random.below(kWords.size())]) + ' ';
      if (static_cast<int64_t>(word.size()) > num_free) word = std::string(num_free - 1, '.') + ' ';
      num_free -= static_cast<int64_t>(word.size());
      parts.push_back(std::move(word));
    }
    for (const std::string& needle : needles) parts.insert(parts.begin() + static_cast<int64_t>(random.below(parts.size() + 1)), needle);
    std::string text;
    for (const std::string& part : parts) text += part;
    return text;
  }
  NeedleOptions options_;
};

}  // namespace

RecallExample RecallTask::example(Split split, uint64_t index) const {
  Random random = Random(seed_).split(static_cast<uint64_t>(split)).split(index);
  for (int draws = 0; draws < kMaxDraws; ++draws) {
    RecallExample example = draw(random);
    if (split_of(example.content) == split) return example;
  }
  fail(name(), ": no ", split == Split::test ? "test" : "training", " example in ", kMaxDraws, " draws; the task has too few different contents");
}

Batch RecallTask::batch(Context& ctx, Split split, uint64_t first, int64_t count) const {
  const int64_t length = sequence_length();
  std::vector<int64_t> tokens(count * length), targets(count * length);
  std::vector<int64_t> num_targets(count);
  ctx.parallel_for(count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const RecallExample example = this->example(split, first + static_cast<uint64_t>(i));
      std::copy(example.tokens.begin(), example.tokens.end(), tokens.begin() + i * length);
      std::copy(example.targets.begin(), example.targets.end(), targets.begin() + i * length);
      num_targets[i] = length - std::count(example.targets.begin(), example.targets.end(), -1);
    }
  });
  return {from_vector(ctx, tokens, {count * length}), from_vector(ctx, targets, {count * length}), Sequences::dense(count, length),
          std::accumulate(num_targets.begin(), num_targets.end(), int64_t{0})};
}

std::unique_ptr<RecallTask> make_associative_recall(const AssociativeRecallOptions& options, uint64_t seed) {
  return std::make_unique<AssociativeRecall>(options, seed);
}
std::unique_ptr<RecallTask> make_copy_task(const CopyOptions& options, uint64_t seed) { return std::make_unique<CopyTask>(options, seed); }
std::unique_ptr<RecallTask> make_needle_task(const NeedleOptions& options, uint64_t seed) { return std::make_unique<NeedleTask>(options, seed); }

RecallSource::RecallSource(const RecallTask& task, int64_t examples_per_batch, const BatchShare& share)
    : task_(task), examples_per_batch_(examples_per_batch), share_(share) {
  check_share("recall", "examples of a step", examples_per_batch, share);
}

StepBatch RecallSource::next(Context& ctx) {
  StepBatch step;
  for (int64_t i = 0; i < share_.num_micro_batches; ++i) {
    const auto [begin, end] = micro_batch_range(share_, examples_per_batch_, i);
    step.micro_batches.push_back(task_.batch(ctx, Split::train, static_cast<uint64_t>(drawn_ + begin), end - begin));
  }
  // Every example of a task has the same number of tokens and of targets.
  const Batch& any = step.micro_batches.front();
  step.num_tokens = examples_per_batch_ * task_.sequence_length();
  step.num_targets = examples_per_batch_ * (any.num_targets / any.sequences.count());
  drawn_ += examples_per_batch_;
  return step;
}

DataPosition RecallSource::position() const { return {{drawn_}, fingerprint()}; }

void RecallSource::restore(const DataPosition& position) {
  BRAID_CHECK(position.drawn.size() == 1 && position.fingerprint == fingerprint(), "recall: the saved position belongs to another task or seed");
  drawn_ = position.drawn[0];
}

uint64_t RecallSource::fingerprint() const {
  uint64_t hash = mixed_hash(static_cast<uint64_t>(task_.vocab_size()), task_.seed());
  for (int64_t token : task_.example(Split::train, 0).tokens) hash = mixed_hash(hash, static_cast<uint64_t>(token));
  return hash;
}

}  // namespace braid
