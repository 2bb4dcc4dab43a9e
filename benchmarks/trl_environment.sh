#!/usr/bin/env bash
# Makes the two virtual environments that the benchmarks compare with, beside each other in a folder:
#
#     benchmarks/trl_environment.sh FOLDER
#
#     FOLDER/ppo      TRL 1.12.0, the last release with a PPO trainer
#     FOLDER/reward   TRL 1.16.0, the RewardTrainer of today
#
# Both get the PyTorch that ppomax is measured with, and the transformers that pip finds for them under the pins below.
# PYTHON names another Python, TORCH another PyTorch.
set -euo pipefail

folder=${1:?usage: benchmarks/trl_environment.sh FOLDER}
python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}

make() { # name, packages
    local environment=$folder/$1
    shift
    [ -x "$environment/bin/python" ] || "$python" -m venv "$environment"
    "$environment/bin/python" -m pip install --quiet --disable-pip-version-check "$torch" "$@"
    "$environment/bin/python" - <<'PYTHON'
import sys, torch, transformers, trl
print(f"{sys.prefix}: trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")
PYTHON
}

make ppo trl==1.12.0 transformers==5.23.0
make reward trl==1.16.0 transformers==5.23.0
