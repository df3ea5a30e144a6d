# Trainer and embedded engine on AMD GPUs. Build from the checkout's root, with the index of torch's ROCm wheels:
#   docker build -f docker/rocm.Dockerfile -t agentenv:rocm --build-arg TORCH_INDEX=<index of ROCm wheels> .
FROM rocm/dev-ubuntu-24.04:7.0-complete
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap git make python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 --groups video agentenv && install -d -o agentenv /app /runs
WORKDIR /app
USER 10001
COPY --chown=agentenv . .
ARG TORCH_INDEX
# torch alone comes from that index, so that nothing else is taken from there
RUN test -n "$TORCH_INDEX" \
    && python3 -m venv .venv \
    && .venv/bin/python -m pip install --no-cache-dir --index-url "$TORCH_INDEX" -c constraints.txt torch \
    && make install EXTRAS=train,http,gateway,metrics,ray PIP_ARGS=--no-cache-dir
ENV PATH=/app/.venv/bin:$PATH
WORKDIR /runs
ENTRYPOINT ["agentenv"]
CMD ["--help"]
