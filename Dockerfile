# The environment of a training node: CUDA, the modern stack, flash-attn.
#   docker build -t tessera .                          (add --build-arg FLASH=0 to skip flash-attn)
#   docker run --gpus all --ipc=host -v "$PWD/data:/opt/tessera/data" -v "$PWD/runs:/opt/tessera/runs" \
#       tessera composer main.py yamls/phase1.yaml
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential git make python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/tessera
COPY pyproject.toml Makefile README.md LICENSE ./
COPY src src
RUN make setup

# Compiled against the torch just installed; without it, attention runs on torch's own flash kernel.
ARG FLASH=1
RUN if [ "$FLASH" = 1 ]; then \
        .venv/bin/uv pip install --python .venv/bin/python setuptools wheel ninja \
        && MAX_JOBS=4 .venv/bin/uv pip install --python .venv/bin/python --no-build-isolation -e '.[flash]'; \
    fi

COPY . .
ENV PATH="/opt/tessera/.venv/bin:$PATH"
CMD ["tessera", "doctor"]
