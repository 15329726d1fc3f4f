#!/usr/bin/env bash
# Make the folder that a machine with a GPU, but without network, needs for scripts/gpu/run.sh: wheels and data.
#
#     bash scripts/gpu/kit.sh [--out DIR] [--python-version 3.12] [--shared DIR]
#
# The machine has torch, torchvision, transformers, timm, peft, accelerate, pandas, pyarrow, scipy and the like; the
# wheels are of what it lacks, for Linux on x86-64. DIR (build/gpu-kit) takes at most 50 MiB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=build/gpu-kit version=3.12 shared=../shared
while (($#)); do
    case $1 in
        --out) out=$2 ;;
        --python-version) version=$2 ;;
        --shared) shared=$2 ;;
        *) echo "$1: expected --out, --python-version or --shared" >&2; exit 2 ;;
    esac
    shift 2
done
limit=$((50 * 1024)) # KiB

# Without their dependencies: lmms-eval's would be some hundreds of MB, of which its models and requests use none.
packages=(
    open-clip-torch ftfy wcwidth
    pydantic pydantic-core annotated-types typing-inspection
    datasets dill multiprocess
    hjson
    lmms-eval evaluate loguru tenacity python-dotenv pytablewriter dataproperty mbstrdecoder pathvalidate tabledata
    tcolorpy typepy pytz jsonlines
    clip-benchmark webdataset braceexpand liger-kernel
    openai jiter distro httpx2 httpcore2 truststore sniffio pycocotools pycocoevalcap # for lmms-eval's tasks
    openpyxl et-xmlfile nltk pylatexenc pyte jsonschema jsonschema-specifications referencing rpds-py
    nbformat fastjsonschema jupyter-core traitlets platformdirs # for tests
)
platforms=()
for each in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${each}_x86_64")
done
pip=(python3 -m pip --quiet --disable-pip-version-check)

mkdir -p "$out/wheels"
rm -f "$out"/wheels/*.whl
"${pip[@]}" download --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    --constraint constraints.txt --dest "$out/wheels" "${packages[@]}"
zip --quiet --delete "$out"/wheels/pycocoevalcap-*.whl '*.jar' '*.gz' # 100 MB, for Java
# DeepSpeed is published as source only; without compiled operations it is pure Python.
DS_BUILD_OPS=0 "${pip[@]}" wheel --no-deps --constraint constraints.txt --wheel-dir "$out/wheels" deepspeed
# The suite's programs and entry points; its modules are those of the checkout.
"${pip[@]}" wheel --no-deps --wheel-dir "$out/wheels" .
rm -rf build/lib build/bdist.*
# Photos with web captions, and a tokenizer without its LLM: speed does not depend on an LLM's weights.
tar -czhf "$out/data.tar.gz" -C "$shared" data/cc12m_32.tar data/capsfusion_5k.jsonl \
    models/stories15M/{config,tokenizer,tokenizer_config}.json

size=$(du --summarize --apparent-size --block-size=1024 "$out" | cut -f1)
echo "$out: $((size / 1024)) MiB, $(find "$out/wheels" -name '*.whl' | wc -l) wheels for Python $version"
if ((size > limit)); then
    echo "$out: expected at most $((limit / 1024)) MiB" >&2
    exit 1
fi
