#!/usr/bin/env bash
# Downloads the wheels of tools/gpu_packages.txt for Python 3.12 on x86-64 Linux into .wheels/ (which git ignores), for a
# machine with a GPU and without a package registry.
#
#   tools/fetch_wheels.sh [PYTHON]        PYTHON: whose pip downloads, default .venv/bin/python, else python3
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
platforms=()
for n in 34 31 28 27 24 17 5; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
mkdir -p .wheels
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --python-version 3.12 --implementation cp "${platforms[@]}" \
    --requirement tools/gpu_packages.txt --dest .wheels
du -sh .wheels
