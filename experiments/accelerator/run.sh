#!/usr/bin/env bash
# A study on an accelerator machine that has JAX and neither TensorFlow nor network, unattended, within a time budget.
#
#   experiments/accelerator/run.sh PARTS OUT MINUTES [STUDY [further flags of python -m tfigkd.study]]
#
# The whole way, in its order:
# 1. Here, in a checkout without changes: the data set in parts, the packages that the machine lacks, and the commit
#    that the rows will name. Pack again, or set TFIGKD_COMMIT there, when the code has changed since.
#      python experiments/accelerator/pack.py cifar10 --wheels --output parts
# 2. Carry the checkout and parts/ there, in as many transfers as their limit asks for, into one folder PARTS.
# 3. There, where a command may last ten minutes (what works when the time is over may take one more to stop):
#      experiments/accelerator/run.sh PARTS OUT 8 ablation
#    At first it installs PARTS/wheels beside the runs and says in one line what is still missing. Runs at once:
#    PROCESSES (default 6), since one small network does not fill a GPU. Work lies in WORK (default /tmp/tfigkd), and a
#    second call continues it. Every minute, and at the end, OUT gets at most eight files, none above 16 MB:
#      rows.tar.gz          of each finished run: row, label, settings, histories and manifests; the log of every run
#      teacher.tar.gz       the finished teachers
#      students.tar.gz.0-3  the students of seed 0, as many of the earliest as fit; whole if students.sha256 fits them
#      log                  what the study said
#    A machine that is taken away loses the runs in progress, a teacher in training among them, and nothing else.
# 4. On the next machine: put what OUT held into PARTS, or leave it in OUT, and call the same. Finished runs and
#    teachers are not repeated; the stores of what a teacher knows are computed again.
# 5. At home, in the checkout:
#      cat OUT/students.tar.gz.? | sha256sum --check OUT/students.sha256 && cat OUT/students.tar.gz.? | tar xz
#      tar xzf OUT/rows.tar.gz && tar xzf OUT/teacher.tar.gz
#      python -m tfigkd.study collect --models kd,ig_kd
#      python -m tfigkd.run --experiment ig_kd --workdir saved_models/ig_kd/0 --stages evaluate
#
# A rehearsal on any processor, minutes long, where Keras and tyro are installed:
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
# several processes share the device: none may take all of its memory at the start
export XLA_PYTHON_CLIENT_PREALLOCATE=false
[ ! -f "$parts/COMMIT" ] || export TFIGKD_COMMIT="${TFIGKD_COMMIT:-$(cat "$parts/COMMIT")}"

if [ -d "$parts/wheels" ] && [ ! -d site ]; then
  rm -rf site.partial
  python3 -m pip install --quiet --no-index --no-deps --target site.partial "$parts"/wheels/*.whl
  mv site.partial site
fi
python3 - <<'PREFLIGHT' || exit 1
import importlib, sys
missing = []
needed = "jax numpy scipy sklearn PIL rich h5py absl ml_dtypes packaging namex optree keras tyro google_crc32c"
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
      echo "the students in $from are not whole; going on without them"
    fi
  fi
  [ -d restored/runs ] || continue
  mv restored/runs runs
  echo "going on with what $from holds"
done
mkdir -p runs/studies runs/teachers

name=$(awk '{print $2}' "$parts/SHA256SUMS")
[ -f "$name" ] || { cat "$parts/$name".[0-9]* >"$name.partial" && mv "$name.partial" "$name"; }
sha256sum --check --quiet "$parts/SHA256SUMS"

# archive NAME < FILES: one file in OUT, the old one until the new one is whole; a log may grow while it is read
archive() {
  tar czf "$1.tar.gz" -T - 2>/dev/null || [ $? -eq 1 ] || return 0
  cp "$1.tar.gz" "$out/.$1" && mv "$out/.$1" "$out/$1.tar.gz"
}

bring() {
  # stores lie beside the teachers and stay here: their shards are many times what may travel
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
  # a student is finished when its run has a row
  { grep '/0$' finished || true; } | while read -r run; do
    find "$run/distill" -name student.keras -printf '%s %p\n' 2>/dev/null || true
  done | awk -v room=$((pieces * piece - 20000)) \
    '{ room -= $1 + 2000; if (room > 0) { sub(/^[0-9]+ /, ""); print } }' >students
  if [ -s students ] && ! { [ -f "$out/students.sha256" ] && cmp -s students carried; }; then
    tar czf students.tar.gz -T students
    rm -f .students.* && split -b "$piece" -d -a 1 students.tar.gz .students.
    # the sum comes last, so that pieces of two sets are never taken for one
    rm -f "$out/students.sha256" "$out"/students.tar.gz.[0-9]
    for file in .students.*; do cp "$file" "$out/$file" && mv "$out/$file" "$out/students.tar.gz${file#.students}"; done
    sha256sum <students.tar.gz >sum && cp sum "$out/.sum" && mv "$out/.sum" "$out/students.sha256"
    cp students carried
  fi
}

# whatever goes wrong with OUT, the study goes on
carry() {
  set +e
  (set -e && bring)
  [ $? -eq 0 ] || echo "could not write all of $out"
  set -e
}

rm -f "$out"/.rows "$out"/.teacher "$out"/.students.? "$out"/.sum
python3 -m tfigkd.study --experiment "$study" --processes "${PROCESSES:-6}" --minutes "$minutes" \
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
