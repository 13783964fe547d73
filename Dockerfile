# syntax=docker/dockerfile:1
# The environment of a training node: the versions of versions.txt, no root, no compiler of CUDA.
#   docker build -t tessera .               (with --build-arg FLASH=1 flash-attn is compiled, an hour)
#   docker run --gpus all --ipc=host --init --user "$(id -u):$(id -g)" \
#       -v "$PWD/data:/opt/tessera/data" -v "$PWD/runs:/opt/tessera/runs" \
#       tessera composer main.py yamls/phase1.yaml
# torch's wheels bring CUDA's libraries; the base has the driver's side, of the same CUDA release.
ARG CUDA=13.2.0
ARG FLASH=0

FROM nvidia/cuda:${CUDA}-base-ubuntu24.04 AS base
# Triton compiles its launchers when training starts: a C compiler and Python's headers stay.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
# Anybody may write where training writes by default, so that --user can be whoever owns the folders.
RUN useradd --uid 10001 --create-home tessera \
    && mkdir -p /opt/tessera/data /opt/tessera/runs \
    && chmod 1777 /home/tessera /opt/tessera/data /opt/tessera/runs
ENV HOME=/home/tessera PATH="/opt/tessera/.venv/bin:$PATH" UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1
WORKDIR /opt/tessera

# The largest layer: it changes when a version does, never with the code.
FROM base AS environment-0
COPY versions.txt ./
RUN python3 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir "$(grep '^uv==' versions.txt)"
RUN --mount=type=cache,target=/home/tessera/.cache/uv \
    .venv/bin/uv pip install --python .venv/bin/python --no-deps -r versions.txt

# flash-attn, compiled against that torch. Without it attention runs on torch's own flash kernel.
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS environment-1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/tessera
COPY --from=environment-0 /opt/tessera/.venv .venv
RUN .venv/bin/uv pip install --python .venv/bin/python --no-cache setuptools wheel ninja \
    && MAX_JOBS=4 .venv/bin/uv pip install --python .venv/bin/python --no-cache --no-deps \
        --no-build-isolation 'flash-attn>=2.8,<3'

# hadolint ignore=DL3006
FROM environment-${FLASH} AS environment

FROM base
COPY --from=environment /opt/tessera/.venv .venv
COPY . .
RUN .venv/bin/uv pip install --python .venv/bin/python --no-cache --no-deps -e .
USER 10001
CMD ["tessera", "doctor"]
