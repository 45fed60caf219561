#!/usr/bin/env bash
# A study on an accelerator machine that has JAX and neither TensorFlow nor network, unattended, within a time budget.
#
#   experiments/accelerator/run.sh PARTS OUT MINUTES [STUDY [further flags of python -m tfigkd.study]]
#
# PARTS holds what pack.py wrote. Runs at once: PROCESSES (default 6), since one small network does not fill a GPU.
# Work goes on in WORK (default /tmp/tfigkd), and a second call continues it. Every minute, and at the end, OUT gets
#   rows.tar.gz      rows, histories and manifests of every run
#   teacher.tar.gz   the teacher and its manifest
#   students.tar.gz  the students of seed 0
# so that a machine that is taken away loses the runs in progress and nothing else. At home, in the checkout:
#   for f in rows teacher students; do tar xzf OUT/$f.tar.gz; done; python -m tfigkd.study collect
set -euo pipefail
parts=$(realpath "$1") out=$(mkdir -p "$2" && realpath "$2") minutes=$3 study=${4:-ablation}
shift $(($# < 4 ? $# : 4))
here=$(realpath "$(dirname "$0")/../..")
work=${WORK:-/tmp/tfigkd}
export KERAS_BACKEND=jax PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# several processes share the device: none may take all of its memory at the start
export XLA_PYTHON_CLIENT_PREALLOCATE=false

mkdir -p "$work" && cd "$work"
name=$(awk '{print $2}' "$parts/SHA256SUMS")
[ -f "$name" ] || cat "$parts/$name".[0-9]* >"$name"
sha256sum --check --quiet "$parts/SHA256SUMS"

bring() {
  local file
  { find runs -name rows.csv -o -name history.json -o -name manifest.json -o -name config.json -o -name ledger.jsonl; } |
    tar czf rows.tar.gz -T - 2>/dev/null || true
  find runs/teachers -maxdepth 2 \( -name teacher.keras -o -name manifest.json \) 2>/dev/null |
    tar czf teacher.tar.gz -T - 2>/dev/null || true
  # a student is finished when its run has a row
  find runs/studies -path '*/0/rows.csv' -printf '%h/distill/student.keras\n' | tar czf students.tar.gz -T - 2>/dev/null || true
  for file in rows teacher students; do cp "$file.tar.gz" "$out/.$file" && mv "$out/.$file" "$out/$file.tar.gz"; done
}

(while sleep 60; do bring; done) &
carrier=$!
trap 'kill $carrier 2>/dev/null; bring' EXIT
python3 -m tfigkd.study --experiment "$study" --processes "${PROCESSES:-6}" --minutes "$minutes" \
  --stages data,teacher,overlays,distill,evaluate,report --data.name "$work/$name" --attribution.batch_size 1024 "$@" 2>&1 | tee -a "$out/log"
