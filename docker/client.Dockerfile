# A data holder's image: agent and trainer, and Flower's SuperNode, which carries their messages. Nothing of the server.
# It is built from the repository: docker build -f docker/client.Dockerfile .
ARG BASE_IMAGE=python:3.11-slim-bookworm
# An image with wheels in its root directory, where packages come from no index or torch from no index of its own.
ARG WHEELS_IMAGE=${BASE_IMAGE}

FROM ${WHEELS_IMAGE} AS wheels

FROM ${BASE_IMAGE} AS build
# The index on which torch stands without CUDA. Empty: only what pip is set to, and WHEELS_IMAGE.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# The compiler of a Debian release is not pinned: none of it is in the image that comes out.
# hadolint ignore=DL3008
RUN if ! command -v cc; then \
      apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /src
COPY pyproject.toml constraints.txt docker/requirements.py ./
# What Ringfence needs, in a layer of its own: a change to Ringfence does not bring torch again.
# `--secret id=pip,src=pip.conf` sets indexes and their credentials for this step; none of it stays.
RUN --mount=type=bind,from=wheels,source=/,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 requirements.py client > requirements.txt && \
    python3 -m venv /opt/ringfence && \
    /opt/ringfence/bin/pip install --no-cache-dir --find-links /wheels ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
      --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY clients clients
COPY server server
COPY sandbox_policies sandbox_policies
RUN --mount=type=bind,from=wheels,source=/,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/ringfence/bin/pip install --no-cache-dir --no-deps --find-links /wheels .
# The coordinator's side, tests, headers for compiling, and what installs packages: nothing here runs them.
COPY docker/slim.py ./
RUN /opt/ringfence/bin/python slim.py client /opt/ringfence

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="ringfence-client" \
      org.opencontainers.image.description="A data holder's agent, trainer and SuperNode" \
      org.opencontainers.image.licenses="Apache-2.0"
# The agent's user owns the records' state and the socket; the relay's user owns nothing but a directory to work in.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin agent && \
    useradd --uid 10002 --no-create-home --shell /usr/sbin/nologin relay && \
    install --directory --owner 10001 --group 10001 --mode 0700 /holder /holder/state && \
    install --directory --owner 10001 --group 10001 --mode 0755 /run/ringfence /letters && \
    install --directory --owner 10002 --group 10002 --mode 0700 /relay
COPY --from=build /opt/ringfence /opt/ringfence
ENV PATH=/opt/ringfence/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /holder
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "-m", "ringfence_client.agent_client", "/run/ringfence/agent.sock"]
ENTRYPOINT ["ringfence-node"]
CMD ["start", "/holder", "--no-supernode", "--socket", "/run/ringfence/agent.sock", "--serve", "10002", "--json"]
