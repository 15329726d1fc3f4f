#!/usr/bin/env bash
# Run the measurements that need a GPU, on a machine that has torch and transformers but no network.
#
#     bash scripts/gpu/run.sh OUT [PART …]          all parts, or these; parts that ended well in OUT are skipped
#     KIT=DIR bash scripts/gpu/run.sh OUT           with the folder of scripts/gpu/kit.sh, build/gpu-kit by default
#     bash scripts/gpu/run.sh --list                the commands
#
# OUT/results.jsonl gets a line for each measurement, OUT/log.txt all output. A command is ended after 240 seconds; what
# it has measured until then remains.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
limit=240 kit=${KIT:-build/gpu-kit} python=${PYTHON:-python3}

data=$kit/data
photos="--photos $data/data/cc12m_32.tar"
captions="--captions $data/data/capsfusion_5k.jsonl"
llm="--llm 0.5b --dtype bfloat16 --llama $data/models/stories15M"
step="mfu.py --image-size 224 --precisions bf16"
theirs="step_vs_open_clip.py --image-size 224 --batch 256 --precisions bf16 --recipes clip --rounds 10 $captions"
commands=( # part: script and arguments
    "tests: -m pytest -q -p no:cacheprovider -n 12 --dist loadfile --timeout 200 --continue-on-collection-errors tests/"
    "bridge: bridge_mfu.py --precision bf16 --matrix 8192 --batch 8 --rounds 1"
    "bridge: bridge_mfu.py --precision bf16 --matrix 8192 --batch 2 --rounds 1 --llm 7b --steps 12"
    "answers: answers.py $photos $llm --images 16 --tower 24 1024 336 --rounds 2"
    "repeat: mfu.py --precisions bf16 --architecture clips-b-16 --batch 96 --repeat 5"
    "step_b16: $step --batch 256 --matrix 8192 --steps 5 --architecture clips-b-16 --compile"
    "step_l14: $step --batch 256 --matrix 8192 --steps 5 --architecture clips-l-14 --compile"
    "open_clip: $theirs --architecture clips-b-16"
    "open_clip: $theirs --architecture clips-l-14"
    "loader: loader.py $photos $captions --workers 16 --batch-size 256 --burst 4096 --samples 4096 --rounds 3"
    "recalls: recall_speed.py --rounds 3"
    "recalls: recall_speed.py --sizes 100000x500000 --alone --rounds 3"
    "loss: loss_memory.py --bf16"
)

if [[ ${1:-} == --list ]]; then
    printf '%s\n' "${commands[@]}"
    exit
elif (($# == 0)) || [[ $1 == -* ]]; then
    echo "expected the folder of the results, or --list" >&2
    exit 2
elif [[ ! -f $kit/data.tar.gz ]]; then
    echo "$kit: expected the folder that scripts/gpu/kit.sh makes; name it in KIT" >&2
    exit 2
fi
mkdir -p "$1"
out=$(realpath "$1")
shift

# Wheels of packages that the machine has are left out. A cut leaves no half folder.
if [[ ! -d $kit/site ]]; then
    missing=$("$python" - "$kit"/wheels/*.whl <<'END'
import importlib.metadata, pathlib, sys
have = {(found.metadata["Name"] or "").lower().replace("-", "_") for found in importlib.metadata.distributions()}
print(*(path for path in sys.argv[1:] if pathlib.Path(path).name.partition("-")[0].lower() not in have), sep="\n")
END
    )
    rm -rf "$kit/site.part"
    mkdir "$kit/site.part"
    install=("$python" -m pip install --quiet --no-index --no-deps --target "$kit/site.part")
    [[ -z $missing ]] || xargs "${install[@]}" <<<"$missing"
    mv "$kit/site.part" "$kit/site"
fi
[[ -d $data ]] || { mkdir -p "$data.part" && tar -xzf "$kit/data.tar.gz" -C "$data.part" && mv "$data.part" "$data"; }
PYTHONPATH=$PWD:$(realpath "$kit/site")
export PYTHONPATH HF_HUB_OFFLINE=1 DS_BUILD_OPS=0 PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True

failed=0
for entry in "${commands[@]}"; do
    part=${entry%%:*}
    if (($#)) && [[ " $* " != *" $part "* ]]; then continue; fi
    if grep -qsxF "$entry" "$out/done.txt"; then continue; fi
    read -ra words <<<"${entry#*: }"
    if [[ ${words[0]} == *.py ]]; then
        words=("scripts/bench/${words[0]}" "${words[@]:1}" --device cuda --json "$out/results.jsonl")
    else
        export OMP_NUM_THREADS=1 PYTEST_ADDOPTS='-m "not slow"' # threads of each of pytest's processes
    fi
    echo "== $entry" | tee -a "$out/log.txt"
    if timeout --kill-after 10 "$limit" "$python" "${words[@]}" 2>&1 | tee -a "$out/log.txt"; then
        echo "$entry" >>"$out/done.txt"
    else
        failed=$((failed + 1))
    fi
    unset OMP_NUM_THREADS PYTEST_ADDOPTS
done
echo "$out: $failed commands did not end well"
((failed == 0))
