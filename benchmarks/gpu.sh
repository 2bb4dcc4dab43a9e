#!/usr/bin/env bash
# Unattended, under 8 minutes on one H100-class device: tests on CUDA, PPO with four models of 1.1B parameters, and TRL beside
# ours where it is at hand.
#
#     benchmarks/gpu.sh OUT                    figures go to OUT/gpu.md (for docs/results/gpu.md) and OUT/*.jsonl
#     WHEELS=FOLDER benchmarks/gpu.sh OUT      first installs, offline, what benchmarks/gpu_wheels.sh FOLDER downloaded
#     DEVICE=cpu benchmarks/gpu.sh OUT         the same with tiny models on a CPU, to try the script
#
# Needs PyTorch 2.11, transformers 5.17 and what ppomax needs beside them; no vLLM. What comes from WHEELS goes to a folder of
# its own that is removed at the end. PYTHON names the interpreter (python3), TRL one that has TRL 1.12.0 (PYTHON itself where
# it has that; else benchmarks/trl_environment.sh FOLDER with TORCH=... makes one); without it that part is left out and said so.
# Each part has a time limit; one that fails is written down, and the next one runs.
set -uo pipefail

out=${1:?usage: benchmarks/gpu.sh OUT}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
wheels=
if [ -n "${WHEELS:-}" ]; then
    wheels=$(cd "$WHEELS" 2>/dev/null && pwd) || { echo "gpu.sh: WHEELS=$WHEELS: no such folder" >&2; exit 2; }
fi
cd "$(dirname "$0")/.." || exit 2
page=$out/gpu.md
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PPOMAX_TEST_DEVICE=$device TOKENIZERS_PARALLELISM=false
began=$SECONDS

if [ -n "$wheels" ]; then
    site=$(mktemp -d) || exit 2
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-index --no-deps \
        --target "$site" "$wheels"/*.whl || exit 2
    PYTHONPATH=$PYTHONPATH:$site
fi

if [ "$device" = cuda ]; then
    patience=1 size=1b compared=300m settings=() comparison=(--batch 64 --prompt 128 --response 128)
else
    patience=5 size=tiny compared=tiny settings=(--batch 8 --prompt 16 --response 8 --micro-batch-tokens 256 --matrix 256)
    comparison=(--batch 8 --prompt 16 --response 8 --threads 1)
fi

part() { # name, seconds, command: output to OUT/name.log
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout --kill-after=10 $((limit * patience)) "$@" >"$out/$name.txt" 2>"$out/$name.log"
    status=$?
    echo "$name: exit status $status, $((SECONDS - start)) s" | tee -a "$out/parts.txt"
    return $status
}

"$python" - <<'PYTHON' || exit 2
import importlib.util, sys
needed = "torch transformers datasets safetensors tokenizers jinja2 pydantic yaml rich matplotlib sklearn numpy pytest hypothesis".split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)}: install them, or bring wheels (benchmarks/gpu_wheels.sh)")
PYTHON
if [ -z "${TRL:-}" ] &&
    "$python" -c 'from importlib.metadata import version; assert version("trl") == "1.12.0"' 2>/dev/null; then
    TRL=$python
fi

: >"$out/parts.txt"
{
    echo "# On a GPU"
    echo
    part tests 110 "$python" -m pytest tests/train/test_cuda.py -p no:cacheprovider >/dev/null
    tail -n 1 "$out/tests.txt" | sed "s/^/Tests on the device (tests\/train\/test_cuda.py): /"
    echo
    if part ppo 205 "$python" benchmarks/gpu.py --device "$device" --size "$size" --out "$out/ppo.jsonl" \
        ${settings[@]+"${settings[@]}"} >/dev/null; then
        cat "$out/ppo.txt"
    else
        echo "PPO did not finish; the end of its log:"
        tail -n 5 "$out/ppo.log" | sed 's/^/    /'
    fi
    echo
    echo "## Beside TRL 1.12.0"
    echo
    if [ -z "${TRL:-}" ]; then
        echo "Not measured: TRL was not at hand."
    elif part trl 120 "$python" benchmarks/ppo_iteration.py --trl "$TRL" --device "$device" --sizes "$compared" \
        --lengths fixed --iterations 2 --warmup 1 --contenders ours_bf16 trl_float32 trl_bfloat16 \
        --out "$out/trl.jsonl" "${comparison[@]}" >/dev/null; then
        grep -v '^{' "$out/trl.txt"
    else
        echo "Did not finish; the end of its log:"
        tail -n 5 "$out/trl.log" | sed 's/^/    /'
    fi
} >"$page"
echo "whole: $((SECONDS - began)) s" | tee -a "$out/parts.txt"
echo "$page"
! grep -v '^whole' "$out/parts.txt" | grep -qv 'exit status 0'
