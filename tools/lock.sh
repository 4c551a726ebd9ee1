#!/usr/bin/env bash
# Writes requirements.lock, the whole tree of pyproject.toml with hashes for every platform, and from it the locks of the
# container images, without packages that they do not need.
# torch and its CUDA packages are left out: torch is installed first, by its exact pin, in the build for the machine.
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

# The images: without packages for tests and docs; the serving image also without those for training.
"$tool/bin/python" - >"$tool/serve.in" 3>"$tool/train.in" <<'END'
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
more = [line for extra in ("postgres", "tracing") for line in project["optional-dependencies"].get(extra, [])]
trains = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes")
print(*(line for line in project["dependencies"] + more if not line.startswith(trains)), sep="\n")
print(*project["dependencies"] + more, sep="\n", file=open(3, "w"))
END
for image in serve train; do
  # shellcheck disable=SC2086
  "$tool/bin/uv" pip compile -q "$tool/$image.in" -c requirements.lock --universal --python-version 3.11 \
    --generate-hashes --no-annotate --no-header --no-emit-index-url $leave_out -o deploy/images/$image.lock
done
