#!/usr/bin/env bash
# All that only a GPU can answer, in nine minutes, on a machine without network: one file, OUT/gpu.json.
#
#   bash benchmarks/gpu.sh OUT [WHEELS] [options of benchmarks/gpu.py, such as --flowers FOLDER or --rehearse]
#
# Nothing is installed but into a temporary folder, and a plain copy of the repository will do. The machine needs
# Python 3.12 with torch, transformers, accelerate, peft, scikit-learn, scipy, matplotlib, psutil and pyarrow. What else
# the package needs comes along in WHEELS, a folder that is filled where there is a network by
#
#   pip download --no-deps --only-binary=:all: --python-version 3.12 --platform any --dest WHEELS \
#       datasets==5.2.0 evaluate==0.4.6 dill==0.4.1 multiprocess==0.70.19 \
#       json_repair==0.64.6 snowballstemmer==3.1.1 tenacity==9.2.1
#
# A part that needs a newer library than the machine's fails, with its reason, and the others go on; transformers and
# huggingface_hub of constraints.txt may be brought along in the same way.
set -eu
started=$(date +%s)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
out=${1:?"usage: bash benchmarks/gpu.sh OUT [WHEELS] [options]"}
shift
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then
    install=("$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade)
    install+=(--target "$site")
    "${install[@]}" "$1"/*.whl || for wheel in "$1"/*.whl; do
        "${install[@]}" "$wheel" || echo "$wheel does not fit this machine and is left out." >&2
    done
    shift
fi
mkdir -p "$out"
export PYTHONPATH="$root:$site${PYTHONPATH:+:$PYTHONPATH}"
"$python" "$root/benchmarks/gpu.py" --output "$out/gpu.json" --started "$started" "$@"
