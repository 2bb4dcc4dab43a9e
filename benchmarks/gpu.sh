#!/usr/bin/env bash
# Unattended, under 8 minutes on one H100-class device: tests on CUDA, PPO with four models of 1.1B parameters, and TRL beside
# ours where it is at hand.
#
#     benchmarks/gpu.sh OUT                    figures go to OUT/gpu.md (for docs/results/gpu.md) and OUT/*.jsonl
#     DEVICE=cpu benchmarks/gpu.sh OUT         the same with tiny models on a CPU, to try the script
#
# Needs PyTorch 2.11, transformers 5.17 and what ppomax needs beside them; no vLLM. PYTHON names the interpreter (python3), TRL
# the Python of an environment with TRL 1.12.0 (benchmarks/trl_environment.sh FOLDER with TORCH=...); without it that part is
# left out and said so. Each part has a time limit; one that fails is written down, and the next one runs.
set -uo pipefail

out=${1:?usage: benchmarks/gpu.sh OUT}
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
cd "$(dirname "$0")/.." || exit 2
page=$out/gpu.md
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PPOMAX_TEST_DEVICE=$device TOKENIZERS_PARALLELISM=false
began=$SECONDS

if [ "$device" = cuda ]; then
    size=1b compared=300m settings=() comparison=(--batch 64 --prompt 128 --response 128)
else
    size=tiny compared=tiny settings=(--batch 8 --prompt 16 --response 8 --micro-batch-tokens 256 --matrix 256)
    comparison=(--batch 8 --prompt 16 --response 8 --threads 1)
fi

part() { # name, seconds, command: output to OUT/name.log
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout --kill-after=10 "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.log"
    status=$?
    echo "$name: exit status $status, $((SECONDS - start)) s" | tee -a "$out/parts.txt"
    return $status
}

"$python" - <<'PYTHON' || exit 2
import importlib.util, sys
needed = "torch transformers datasets safetensors tokenizers jinja2 pydantic yaml rich matplotlib sklearn numpy pytest".split()
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"{sys.executable} lacks {', '.join(missing)}: install them, or put their wheels' contents on PYTHONPATH")
PYTHON

: >"$out/parts.txt"
{
    echo "# On a GPU"
    echo
    part tests 120 "$python" -m pytest tests/train/test_cuda.py -p no:cacheprovider >/dev/null
    tail -n 1 "$out/tests.txt" | sed "s/^/Tests on the device (tests\/train\/test_cuda.py): /"
    echo
    if part ppo 220 "$python" benchmarks/gpu.py --device "$device" --size "$size" --out "$out/ppo.jsonl" \
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
    elif part trl 130 "$python" benchmarks/ppo_iteration.py --trl "$TRL" --device "$device" --sizes "$compared" \
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
