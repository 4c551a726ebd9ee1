#!/usr/bin/env bash
# Writes requirements.lock: the whole tree of pyproject.toml with hashes, for every platform.
# torch and what it brings for CUDA stay out: torch is installed first, by its exact pin, in the build that suits the machine.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool" && "$tool/bin/pip" install -q uv==0.13.9
leave_out=$(printf -- '--no-emit-package %s ' torch triton cuda-bindings cuda-pathfinder cuda-toolkit \
  nvidia-{cublas,cuda-cupti,cuda-nvrtc,cuda-runtime,cudnn-cu13,cufft,cufile,curand,cusolver,cusparse,cusparselt-cu13,nccl-cu13,nvjitlink,nvshmem-cu13,nvtx})
# shellcheck disable=SC2086
"$tool/bin/uv" pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
  --no-annotate --no-header --no-emit-index-url $leave_out -o requirements.lock
