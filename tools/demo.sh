#!/usr/bin/env bash
# Text -> tokenizer -> token shards -> a run on 8 nodes -> what it learned. Arguments go to submit.py; DATA_DIR is data/.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
data=${DATA_DIR:-data}
[ -f "$data/python-docs.jsonl" ] || $python data_prep/python_docs.py --out "$data/python-docs.jsonl"
$python data_prep/train_tokenizer.py "$data/python-docs.jsonl" --vocab-size 4096 --out "$data/python-docs-tokenizer.json"
$python data_prep/tokenize_corpus.py "$data/python-docs.jsonl" --tokenizer "$data/python-docs-tokenizer.json" \
  --validation 0.03 --licence "PSF-2.0 and BSD-3-Clause" --out "$data/python-docs"
$python submit.py --nodes 8 --follow data.path="$data/python-docs" "$@"
root=runs
for argument in "$@"; do case $argument in run.root=*) root=${argument#run.root=} ;; esac; done
echo "a continued text:"
$python -m toolkit generate demo --root "$root" --prompt "Return a new array of the given shape and" --tokens 60
