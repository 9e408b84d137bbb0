#!/usr/bin/env bash
# A corpus of real prose from Debian's documentation packages, and a run on it.
#   examples/real_text.sh corpus DIR           downloads the packages and writes DIR/train.jsonl, DIR/valid.jsonl, one document a line
#   examples/real_text.sh train DIR [OPTIONS]  tokenizes them and trains 340M-gdn-3-1 for five minutes on a GPU: samples, perplexity and
#                                              recall before and after, in DIR/run and DIR/notes; OPTIONS go to `braid train`
# What came of it: real_text.md.
# Every 50th document is for validation. BRAID (the program) and STEPS may be set in the environment.
set -eu -o pipefail
packages="linux-doc-6.1 postgresql-doc-15 python3.11-doc perl-doc dict-gcide wordnet-base debian-handbook git-doc glibc-doc octave-doc maxima-doc"
command=${1:-} folder=${2:-}
[ -n "$folder" ] || { echo "usage: examples/real_text.sh corpus|train DIR" >&2; exit 2; }
mkdir -p "$folder"
here=$(cd "$(dirname "$0")/.." && pwd)

corpus() {
  work=$(mktemp -d "$folder/packages.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  for package in $packages; do
    (cd "$work" && apt-get download -qq "$package" >/dev/null 2>&1) || { echo "skipped: $package cannot be downloaded" >&2; continue; }
    dpkg -x "$work/$package"_*.deb "$work/tree"
  done
  for file in $(find "$work/tree" -name '*.dict.dz'); do gzip -dc <"$file" >"${file%.dz}"; done
  # HTML loses its tags, WordNet all but its glosses, a dictionary is cut into parts of 16 KB. Short documents and repeated lines go.
  find "$work/tree" -type f \( -name '*.html' -o -name '*.pod' -o -name '*.dict' -o -path '*wordnet/data.*' \) \
    ! \( -path '*debian-handbook*' ! -path '*en-US*' \) | LC_ALL=C sort |
    perl -e '
      my %entity = (lt => "<", gt => ">", amp => "&", quot => "\"", nbsp => " ", "#160" => " ", "#8217" => "\x27", "#39" => "\x27");
      my %seen;
      open my $train, ">", "$ARGV[0]/train.jsonl" or die; open my $valid, ">", "$ARGV[0]/valid.jsonl" or die;
      my $count = 0;
      sub document {
        my ($text) = @_;
        $text = join "\n", grep { length() < 40 || !$seen{$_}++ } split /\n/, $text;
        $text =~ s/[ \t]+/ /g; $text =~ s/\n\s*\n\s*/\n\n/g; $text =~ s/^\s+|\s+$//g;
        return if length $text < 400;
        $text =~ s/(["\\])/\\$1/g; $text =~ s/\n/\\n/g; $text =~ s/[\x00-\x1f]/ /g;
        print { ++$count % 50 ? $train : $valid } "{\"text\": \"$text\"}\n";
      }
      while (my $path = <STDIN>) {
        chomp $path;
        open my $file, "<", $path or next;
        local $/; my $text = <$file>;
        utf8::decode(my $copy = $text) or next;
        if ($path =~ /\.html$/) {
          $text =~ s/<(script|style|head|nav)\b.*?<\/\1>//gis; $text =~ s/<[^>]*>//g;
          $text =~ s/&(#?\w+);/$entity{$1} \/\/ " "/ge;
          document($text);
        } elsif ($path =~ /wordnet/) {
          my @gloss = map { /\| (.*)/ ? $1 : () } split /\n/, $text;
          document(join "\n", splice @gloss, 0, 100) while @gloss;
        } elsif ($path =~ /\.dict$/) {
          document($1) while $text =~ /\G(.{1,16384}(?:\n\n|\z))/gs;
        } else {
          document($text);
        }
      }' "$folder"
  ls -l "$folder"/train.jsonl "$folder"/valid.jsonl
  [ "$(cat "$folder"/*.jsonl | wc -c)" -ge 50000000 ] || { echo "examples/real_text.sh: less than 50 MB: too many packages were skipped" >&2; exit 1; }
}

train() {
  shift 2
  local braid=${BRAID:-$here/build-cuda/braid} prompt="The purpose of this chapter is to"
  for part in train valid; do
    [ -f "$folder/$part.h5" ] || "$braid" tokenize --input "$folder/$part.jsonl" --out "$folder/$part.h5"
  done
  note() { # NAME RUN: a checkpoint is read and its digests are checked once, for three answers
    rm -rf "$folder/model"
    "$braid" convert --from "$2" --to "$folder/model" >/dev/null
    set -- "$1" "$folder/model"
    echo "== $1: perplexity"
    "$braid" eval --model "$2" --task ppl --data "$folder/valid.h5" --context 4096 --batch-tokens 65536 --max-tokens 1048576 --device cuda --dtype bf16
    echo "== $1: recall of a number hidden in 1,024 bytes"
    "$braid" eval --model "$2" --task recall --recall needle --needle-length 1024 --examples 256 --device cuda --dtype bf16
    echo "== $1: sample"
    "$braid" generate --model "$2" --prompt "$prompt" --max-tokens 200 --temperature 0.8 --seed 1 --device cuda --dtype bf16 | LC_ALL=C cat -v
    echo
  }
  rm -rf "$folder/run"
  "$braid" train --model 340M-gdn-3-1 --data "$folder/train.h5" --out "$folder/run" --device cuda --steps 1 --lr 1e-12 >"$folder/first.log" 2>&1
  note before "$folder/run" >"$folder/notes"
  rm -rf "$folder/run"
  "$braid" train --model 340M-gdn-3-1 --data "$folder/train.h5" --val-data "$folder/valid.h5" --out "$folder/run" --device cuda --dtype bf16 \
    --context 4096 --batch-tokens 65536 --accumulate 2 --steps "${STEPS:-650}" --lr 1e-3 --val-every 100 --val-tokens 1048576 "$@" | tee "$folder/train.log"
  note after "$folder/run" >>"$folder/notes"
  cat "$folder/notes"
}

case "$command" in
  corpus) corpus ;;
  train) train "$@" ;;
  *) echo "examples/real_text.sh: unknown command $command (expected corpus or train)" >&2; exit 2 ;;
esac
