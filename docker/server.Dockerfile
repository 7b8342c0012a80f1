# The coordinator's image: SuperLink, the front for data holders, runs and their evidence. No torch and no data.
# It is built from the repository: docker build -f docker/server.Dockerfile .
ARG BASE_IMAGE=python:3.11-slim-bookworm
# An image with wheels in its root directory, where packages come from no index.
ARG WHEELS_IMAGE=${BASE_IMAGE}

FROM ${WHEELS_IMAGE} AS wheels

FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /src
COPY pyproject.toml constraints.txt docker/requirements.py ./
# What Ringfence needs, in a layer of its own: a change to Ringfence does not bring it again.
# `--secret id=pip,src=pip.conf` sets indexes and their credentials for this step; none of it stays.
RUN --mount=type=bind,from=wheels,source=/,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    python3 requirements.py server control > requirements.txt && \
    python3 -m venv /opt/ringfence && \
    /opt/ringfence/bin/pip install --no-cache-dir --find-links /wheels \
      --constraint constraints.txt --requirement requirements.txt
COPY README.md LICENSE ./
COPY clients clients
COPY server server
COPY sandbox_policies sandbox_policies
RUN --mount=type=bind,from=wheels,source=/,target=/wheels --mount=type=secret,id=pip,target=/etc/pip.conf \
    /opt/ringfence/bin/pip install --no-cache-dir --no-deps --find-links /wheels .
COPY docker/slim.py ./
RUN /opt/ringfence/bin/python slim.py server /opt/ringfence

FROM ${BASE_IMAGE}
LABEL org.opencontainers.image.title="ringfence-server" \
      org.opencontainers.image.description="A coordinator of governed federated training, and its control plane" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin coordinator && \
    install --directory --owner 10001 --group 10001 --mode 0700 /deployment && \
    install --directory --owner 10001 --group 10001 --mode 0755 /letters
COPY --from=build /opt/ringfence /opt/ringfence
ENV PATH=/opt/ringfence/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /deployment
EXPOSE 9092
COPY docker/healthy.py /opt/ringfence/healthy.py
HEALTHCHECK --interval=15s --timeout=10s --start-period=120s --retries=3 \
    CMD ["python", "/opt/ringfence/healthy.py", "/deployment"]
ENTRYPOINT ["ringfence"]
CMD ["coordinator", "start", "/deployment", "--json"]
