#!/usr/bin/env bash
# Sets litseq up and shows the whole of it on the built-in demo corpus: fit, test, predict.
#
#   bash scripts/quickstart.sh                              the Transformer, English to Chinese
#   bash scripts/quickstart.sh --model RnnAttentionSeq2Seq  another model
#   bash scripts/quickstart.sh --data.tgt_lang fr           another language
#
# Arguments go to "litseq fit"; the run is a new folder below lightning_logs/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/setup.sh
setup
litseq=.venv/bin/litseq
start=$SECONDS

newest() { printf '%s\n' lightning_logs/demo/version_* | sort -t_ -k3 -n | tail -n 1; }
step() { printf '\n$ litseq %s\n' "$*"; }

before=$(newest)
step fit -c configs/demo.yaml "$@"
$litseq fit -c configs/demo.yaml "$@"

run=$(newest)
if [ "$run" = "$before" ]; then
    echo 'No new run lies in lightning_logs/demo, so there is none to show.' >&2
    exit 1
fi
checkpoint=$run/checkpoints/best.ckpt
step test --ckpt_path "$checkpoint"
$litseq test --ckpt_path "$checkpoint"

step predict --ckpt_path "$checkpoint"
$litseq predict --ckpt_path "$checkpoint"

printf '\nThe first five test sentences and what the model made of them:\n'
paste -d '\n' <(head -n 5 "$run/test/sources.txt") <(head -n 5 "$run/predictions.txt") |
    awk 'NR % 2 { print "\n  " $0; next } { print "  -> " $0 }'

cat <<END

Done in $((SECONDS - start)) seconds. Everything is in $run:
  checkpoints/best.ckpt   the whole model: weights, sizes, tokenizer
  config.yaml             the configuration, to run it again
  metrics.csv             loss, perplexity, learning rate, gradient norm and scores over time
  samples.tsv             the same validation sentences after every epoch
  attention/              where the decoder looked in a few of them
  val/, test/             hypotheses, references, sources and scores
  predictions.txt, .jsonl

Translate something of your own:
  echo 'Saturday, October 12, 1918' | $litseq translate --ckpt $checkpoint
END
