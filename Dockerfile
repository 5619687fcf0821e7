# syntax=docker/dockerfile:1
# The server in an image: embedded PostgreSQL in the data volume, or DATABASE_URL for another one.
#
#   docker build -t keepstep .
#   docker run --init -p 8440:8440 -p 8441:8441 -v keepstep:/var/lib/keepstep keepstep
#
# Base images are arguments, so that a mirror or bases of one's own can be used. The Rust image needs cargo, cc and
# apt or python3 with venv; the Python image needs python3 (3.11 or newer) with venv.
ARG RUST_IMAGE=docker.io/library/rust:1-slim-bookworm
ARG PYTHON_IMAGE=docker.io/library/python:3.13-slim-bookworm

# -- the wheel: cp311-abi3, so it fits every Python from 3.11 on, whatever the two images have
FROM ${RUST_IMAGE} AS build
RUN python3 -c 'import ensurepip, venv' 2>/dev/null \
    || (apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*)
WORKDIR /src
COPY requirements-build.lock ./
RUN python3 -m venv /build \
    && /build/bin/pip install --quiet --no-cache-dir --require-hashes --only-binary :all: -r requirements-build.lock
COPY . .
RUN /build/bin/maturin build --release --locked --out /wheels

# -- dependencies and the wheel in an environment of their own, which is copied whole
FROM ${PYTHON_IMAGE} AS install
COPY requirements.lock ./
RUN python3 -m venv /opt/keepstep \
    && /opt/keepstep/bin/pip install --quiet --no-cache-dir --require-hashes --only-binary :all: -r requirements.lock
COPY --from=build /wheels /wheels
RUN /opt/keepstep/bin/pip install --quiet --no-cache-dir --no-index --no-deps /wheels/*.whl \
    && /opt/keepstep/bin/pip uninstall --quiet --yes pip

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="keepstep" \
      org.opencontainers.image.description="Keeps one person's devices in step without being able to read what they say" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --home-dir /var/lib/keepstep --shell /usr/sbin/nologin keepstep \
    && install --directory --owner keepstep --group keepstep --mode 0700 /var/lib/keepstep
COPY --from=install /opt/keepstep /opt/keepstep
ENV PATH=/opt/keepstep/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    KEEPSTEP_DATA_DIR=/var/lib/keepstep \
    KEEPSTEP_REST_HOST=0.0.0.0 \
    KEEPSTEP_DEVICE_HOST=0.0.0.0 \
    KEEPSTEP_LOG_FORMAT=json
USER keepstep
WORKDIR /var/lib/keepstep
VOLUME /var/lib/keepstep
EXPOSE 8440 8441
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import os, ssl, urllib.request; scheme = 'https' if os.environ.get('KEEPSTEP_TLS_CERTIFICATE_FILE') else 'http'; urllib.request.urlopen(f\"{scheme}://127.0.0.1:{os.environ.get('KEEPSTEP_REST_PORT', '8440')}/health/ready\", timeout=4, context=ssl._create_unverified_context())"]
ENTRYPOINT ["keepstep"]
CMD ["serve"]
