# Trainer and vllm on CUDA. Build from the checkout's root: docker build -f docker/cuda-vllm.Dockerfile -t agentenv:vllm .
FROM nvidia/cuda:12.9.1-devel-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 agentenv && install -d -o agentenv /app /runs
WORKDIR /app
USER 10001
COPY --chown=agentenv . .
ARG PIP_ARGS=""
RUN make install EXTRAS=train,http,gateway,metrics,ray PIP_ARGS="$PIP_ARGS --no-cache-dir"
ENV PATH=/app/.venv/bin:$PATH
RUN agentenv engines install vllm --device cuda --pip-arg=--no-cache-dir
WORKDIR /runs
ENTRYPOINT ["agentenv"]
CMD ["--help"]
