#!/usr/bin/env bash
# Run a study unattended and within a time limit on an accelerator machine with JAX, without TensorFlow and network.
#
#   experiments/accelerator/run.sh PARTS OUT MINUTES [STUDY [further flags of python -m tfigkd.study]]
#
# All steps in order:
# 1. Here, in a checkout without changes, pack the data set in parts, the packages that the machine lacks, and the
#    commit that the rows will name. If the code changes later, pack again, or set TFIGKD_COMMIT on the machine.
#      python experiments/accelerator/pack.py cifar10 --wheels --output parts
# 2. Copy the checkout and parts/ to the machine, in as many transfers as needed; the parts go to one folder PARTS.
# 3. On the machine, for example where a command may run ten minutes (stopping may take one minute after MINUTES):
#      experiments/accelerator/run.sh PARTS OUT 8 ablation
#    It first installs PARTS/wheels beside the runs, and prints one line if a package is missing. PROCESSES (default 10)
#    runs work at the same time, because one small network does not use a whole GPU; NVIDIA's multi-process service,
#    where it is installed, lets their kernels run side by side. The runs are in WORK (default /tmp/tfigkd), and a second
#    call continues them. TensorBoard's pictures and the ledger compile programs of their own: --tensorboard.pictures 0
#    --ledger.every 0 save half a minute a run. Every minute, and at the end, OUT gets at most eight files, none
#    above 16 MB:
#      rows.tar.gz          row, label, settings, histories and manifests of each finished run; the log of every run
#      teacher.tar.gz       the finished teachers
#      students.tar.gz.0-3  the students, by seed, then the last checkpoints of unfinished trainings, as many as fit;
#                           complete if students.sha256 matches
#      log                  the output of the study
#    If the machine is lost, what was trained since OUT was written is lost.
# 4. On the next machine: copy the files of OUT to PARTS, or leave them in OUT, and run the same command. Finished runs
#    and teachers are not repeated; the teachers' stores (maps, logits, views) are computed again.
# 5. Back here, in the checkout:
#      cat OUT/students.tar.gz.? | sha256sum --check OUT/students.sha256 && cat OUT/students.tar.gz.? | tar xz
#      tar xzf OUT/rows.tar.gz && tar xzf OUT/teacher.tar.gz
#      python -m tfigkd.study collect --models kd,ig_kd
#      python -m tfigkd.run --experiment ig_kd --workdir saved_models/ig_kd/0 --stages evaluate
#
# A test run of a few minutes on any processor, where Keras and tyro are installed:
#   python experiments/accelerator/pack.py digits --output /tmp/parts
#   WORK=/tmp/rehearsal PROCESSES=1 experiments/accelerator/run.sh /tmp/parts /tmp/out 20 ablation --smoke \
#     --arms student,kd --student.drop_blocks 15 --teacher.drop_blocks 14 --augment.crop_padding 1
set -euo pipefail
parts=$(realpath "$1") out=$(mkdir -p "$2" && realpath "$2") minutes=$3 study=${4:-ablation}
shift $(($# < 4 ? $# : 4))
here=$(realpath "$(dirname "$0")/../..")
work=${WORK:-/tmp/tfigkd}
every=${EVERY:-60} # seconds
piece=${PIECE:-15000000} pieces=4
[[ $study != *.toml ]] || study=$(realpath "$study")
mkdir -p "$work" && work=$(realpath "$work") && cd "$work"
export KERAS_BACKEND=jax PYTHONUNBUFFERED=1 PYTHONPATH="$here:$work/site${PYTHONPATH:+:$PYTHONPATH}"
# several processes share the device, so none may reserve all of its memory at the start
export XLA_PYTHON_CLIENT_PREALLOCATE=false
if command -v nvidia-cuda-mps-control >/dev/null && [ -z "${CUDA_MPS_PIPE_DIRECTORY:-}" ]; then
  export CUDA_MPS_PIPE_DIRECTORY="$work/mps" CUDA_MPS_LOG_DIRECTORY="$work/mps"
  mkdir -p mps && nvidia-cuda-mps-control -d && trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
# the runs of an arm compile the same program
export JAX_COMPILATION_CACHE_DIR="$work/compiled" JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
[ ! -f "$parts/COMMIT" ] || export TFIGKD_COMMIT="${TFIGKD_COMMIT:-$(cat "$parts/COMMIT")}"

if [ -d "$parts/wheels" ] && [ ! -d site ]; then
  rm -rf site.partial
  python3 -m pip install --quiet --no-index --no-deps --target site.partial "$parts"/wheels/*.whl
  mv site.partial site
fi
python3 - <<'PREFLIGHT' || exit 1
import importlib, sys
missing = []
needed = "jax numpy scipy sklearn PIL rich h5py absl ml_dtypes packaging namex optree keras tyro jinja2 google_crc32c"
for name in needed.split():
    try:
        importlib.import_module(name)
    except ImportError as error:
        missing.append(f"{name} ({error})")
if missing:
    sys.exit(f"error: missing here: {', '.join(missing)}; pack with --wheels, or install them")
import jax
print(f"Python {sys.version.split()[0]}, JAX {jax.__version__} on {jax.devices()[0].device_kind}")
PREFLIGHT

for from in "$out" "$parts"; do
  [ ! -d runs ] && [ -f "$from/rows.tar.gz" ] || continue
  rm -rf restored && mkdir restored
  for name in rows teacher; do [ ! -f "$from/$name.tar.gz" ] || tar xzf "$from/$name.tar.gz" -C restored; done
  if [ -f "$from/students.sha256" ]; then
    if cat "$from"/students.tar.gz.[0-9] | sha256sum --check --status "$from/students.sha256"; then
      cat "$from"/students.tar.gz.[0-9] | tar xz -C restored
    else
      echo "the students in $from are incomplete; continuing without them"
    fi
  fi
  [ -d restored/runs ] || continue
  mv restored/runs runs
  echo "continuing with the files in $from"
done
mkdir -p runs/studies runs/teachers

python3 "$here/experiments/accelerator/pack.py" --unpack "$parts"
name=$(awk '{sub(/\.packed$/, ".npz", $2); print $2}' "$parts/SHA256SUMS")

# archive NAME < FILES: write one file in OUT, replacing the old one when complete; a log may grow while it is read
archive() {
  tar czf "$1.tar.gz" -T - 2>/dev/null || [ $? -eq 1 ] || return 0
  cp "$1.tar.gz" "$out/.$1" && mv "$out/.$1" "$out/$1.tar.gz"
}

bring() {
  # the teachers' stores are not copied: their shards are far larger than the limit of OUT
  find runs/studies -mindepth 4 -maxdepth 4 -name rows.csv -printf '%T@ %h\n' | sort -n | cut -d' ' -f2- >finished
  {
    while read -r run; do
      find "$run" -name rows.csv -o -name job.json -o -name config.json -o -name history.json -o -name manifest.json \
        -o -name ledger.jsonl
    done <finished
    find runs/studies -name run.log
  } | archive rows
  find runs/teachers -mindepth 2 -maxdepth 2 -name manifest.json -printf '%h\n' | while read -r teacher; do
    find "$teacher" -maxdepth 1 \( -name teacher.keras -o -name history.json -o -name manifest.json \)
  done | archive teacher
  # a student is finished if its run has a row
  {
    awk -F/ '{ print $NF, $0 }' finished | sort -s -n -k 1,1 | while read -r _ run; do
      find "$run/distill" -name student.keras -printf '%s %p\n' 2>/dev/null || true
    done
    find runs -name 'checkpoint-*.ckpt' -printf '%h\n' | sort -u | while read -r folder; do
      find "$folder" -maxdepth 1 -name 'checkpoint-*.ckpt' -printf '%T@ %s %p\n' | sort -n | tail -n 1 | cut -d' ' -f2-
    done
  } | awk -v left=$((pieces * piece - 20000)) \
    '$1 + 2000 < left { left -= $1 + 2000; sub(/^[0-9]+ /, ""); print }' >students
  if [ -s students ] && ! { [ -f "$out/students.sha256" ] && cmp -s students carried; }; then
    tar czf students.tar.gz -T students
    rm -f .students.* && split -b "$piece" -d -a 1 students.tar.gz .students.
    # the checksum is written last, so that pieces of two sets are never mixed
    rm -f "$out/students.sha256" "$out"/students.tar.gz.[0-9]
    for file in .students.*; do cp "$file" "$out/$file" && mv "$out/$file" "$out/students.tar.gz${file#.students}"; done
    sha256sum <students.tar.gz >sum && cp sum "$out/.sum" && mv "$out/.sum" "$out/students.sha256"
    cp students carried
  fi
}

# an error while writing OUT does not stop the study
carry() {
  set +e
  (set -e && bring)
  [ $? -eq 0 ] || echo "could not write all files to $out"
  set -e
}

rm -f "$out"/.rows "$out"/.teacher "$out"/.students.? "$out"/.sum
python3 -m tfigkd.study --experiment "$study" --processes "${PROCESSES:-10}" --minutes "$minutes" \
  --stages data,teacher,overlays,distill,evaluate,report --data.name "$name" --attribution.batch_size 1024 "$@" \
  > >(tee -a "$out/log") 2>&1 &
worker=$!
trap 'kill "$worker" 2>/dev/null || true' INT TERM
seconds=0
while kill -0 "$worker" 2>/dev/null; do
  sleep 1
  ((++seconds % every)) || carry
done
status=0
wait "$worker" || status=$?
carry
exit "$status"
