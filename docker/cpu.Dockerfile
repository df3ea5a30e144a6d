# Trainer and embedded engine on CPUs. Build from the checkout's root: docker build -f docker/cpu.Dockerfile -t agentenv:cpu .
FROM python:3.12.11-slim-bookworm
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN apt-get update \
    && apt-get install -y --no-install-recommends bubblewrap git make \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 10001 agentenv && install -d -o agentenv /app /runs
WORKDIR /app
USER 10001
COPY --chown=agentenv . .
# e.g. --build-arg PIP_ARGS="--extra-index-url <index of CPU wheels>", which saves gigabytes
ARG PIP_ARGS=""
RUN make install EXTRAS=train,http,gateway,metrics,ray PIP_ARGS="$PIP_ARGS --no-cache-dir"
ENV PATH=/app/.venv/bin:$PATH
WORKDIR /runs
ENTRYPOINT ["agentenv"]
CMD ["--help"]
