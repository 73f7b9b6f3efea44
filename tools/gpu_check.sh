#!/usr/bin/env bash
# Everything that needs a GPU, within ten minutes: kernels and models against their references, then the report.
#
#   tools/gpu_check.sh [OUT]      OUT: where the report and the logs go, default $OUT, else gpu-out
#
# Needs a machine with a GPU, torch, Triton and transformers, and no package registry: what else is missing is named,
# and installed from .wheels/ (tools/fetch_wheels.sh makes it) into a folder of its own. BUDGET: seconds in all.
# SMOKE: begin with tools/gpu_smoke.py, and end there if it fails. The first half hour on a device: tools/gpu_run.md.
# SECTIONS: no tests, and of the report those sections alone whose titles hold this; they are added to what OUT holds. Ten
# minutes do not suffice for all of it: docs/benchmarks.md says what to run next.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-${OUT:-gpu-out}}
budget=${BUDGET:-560}
python=${PYTHON:-python3}
mkdir -p "$out"
left() { echo $((budget - SECONDS)); }
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD"
export TRITON_INTERPRET=0 # the tests interpret kernels where they see no GPU, which need not be where there is none

packages() { # names of gpu_packages.txt that this Python does not have, or has in another version
    "$python" - <<'PY'
import importlib.metadata as metadata
for line in open("tools/gpu_packages.txt"):
    name, _, wanted = line.strip().partition("==")
    if wanted:
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            here = None
        if here != wanted:
            print(f"{name}=={wanted}", "" if here is None else f"(here: {here})")
PY
}

missing=$(packages)
if [ -n "$missing" ]; then
    echo "packages that are missing or of another version:"
    echo "$missing" | sed 's/^/  /'
    if ! ls .wheels/*.whl >/dev/null 2>&1; then
        echo "there is no .wheels/: run tools/fetch_wheels.sh where there is a package registry" >&2
        exit 2
    fi
    site=$(mktemp -d)
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
        .wheels/*.whl || exit 2
    export PYTHONPATH="$site:$PYTHONPATH"
    absent=$(packages)
    [ -z "$absent" ] || { echo "still missing from .wheels/: $absent" >&2; exit 2; }
fi
"$python" - <<'PY' || exit 2
import sys, torch, transformers, triton
print("Python", sys.version.split()[0], "torch", torch.__version__, "triton", triton.__version__,
      "transformers", transformers.__version__)
if not torch.cuda.is_available():
    sys.exit("torch finds no GPU")
print(torch.cuda.get_device_name())
PY
command -v nvidia-smi >/dev/null && nvidia-smi | tee "$out/nvidia-smi.txt"

status=0
run() { # run NAME SECONDS COMMAND...: with its own limit, its output in OUT/NAME.log as well
    local name=$1 limit=$2
    shift 2
    [ "$(left)" -lt "$limit" ] && limit=$(left)
    if [ "$limit" -le 5 ]; then
        echo "== $name: not run, the time is up"
        status=1
        return
    fi
    echo "== $name (at most $limit s)"
    # Interrupted and not terminated: pytest still says what has failed so far, and servers are ended.
    timeout --signal=INT --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
    local code=${PIPESTATUS[0]}
    echo "== $name: status $code after $SECONDS s"
    [ "$code" -eq 0 ] || status=1
}

pytest=("$python" -m pytest -q -p no:cacheprovider --no-header --maxfail=20)
spread=() # compilation takes most of the time, one core each
# Each worker keeps references in float64 on the GPU, up to 13 GB in single tests: an 80 GB card holds eight of them.
memory=$("$python" -c "import torch; print(torch.cuda.get_device_properties(0).total_memory // 10**9)")
workers=$((memory < 100 ? 8 : 14))
"$python" -c "import xdist" 2>/dev/null && spread=(-n "$(($(nproc) < workers ? $(nproc) : workers))")
report() { run report 600 "$python" test/benchmark/gpu_report.py --out "$out" "$@"; }
if [ -n "${SECTIONS:-}" ]; then
    report --only "$SECTIONS" --add --budget "$(left)"
    cat "$out"/*.md
    exit $status
fi
if [ -n "${SMOKE:-}" ]; then # what everything else stands on: without it no test is worth its time
    run smoke 100 "$python" tools/gpu_smoke.py
    [ "$status" -eq 0 ] || exit 1
fi
run kernels 110 "${pytest[@]}" "${spread[@]}" -m "not slow" test/ops/triton --ignore=test/ops/triton/test_compile.py \
    test/gpu/test_ops.py test/gpu/test_attention_ops.py test/gpu/test_model_ops.py test/gpu/test_skinny_linear.py
run backend 100 "${pytest[@]}" test/gpu/test_backend.py
report --budget $(($(left) - 120))
run models 200 "${pytest[@]}" "${spread[@]}" test/gpu/test_models.py
cat "$out"/*.md 2>/dev/null
echo "status $status after $SECONDS s"
exit $status
