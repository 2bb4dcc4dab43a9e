#!/usr/bin/env bash
# What a GPU machine without a network lacks, as wheels to carry there; gpu.sh installs from them.
#
#     benchmarks/gpu_wheels.sh [FOLDER]                       # here; FOLDER is runs/wheels
#     WHEELS=FOLDER benchmarks/gpu.sh OUT                     # there
#
# For x86-64 Linux with PyTorch 2.11, transformers 5.17, accelerate, PyArrow, pandas, matplotlib, scikit-learn, pytest and
# hypothesis already there. PYTHON_VERSION is that machine's (3.12), MOST the size in MiB that may be carried (64). Versions are
# those of constraints.txt; TRL 1.12.0 is for the comparison. Nothing that these packages need in turn is fetched: gpu.sh says
# what is still missing.
set -euo pipefail

folder=${1:-runs/wheels}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."

packages=(datasets dill multiprocess pydantic pydantic-core annotated-types typing-inspection trl==1.12.0)

rm -f "$folder"/*.whl # two versions of one package would stop the installation
python3 -m pip download --quiet --disable-pip-version-check --dest "$folder" --no-deps --only-binary=:all: \
    --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --constraint constraints.txt "${packages[@]}"

kib=$(du -sk "$folder" | cut -f 1)
echo "$folder: $(find "$folder" -name '*.whl' | wc -l) wheels, $((kib / 1024 + 1)) MiB"
if [ "$kib" -gt $((${MOST:-64} * 1024)) ]; then
    echo "gpu_wheels.sh: more than ${MOST:-64} MiB" >&2
    exit 1
fi
