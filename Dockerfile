# The proxy's image: wheels are built in one stage (the wire's hot path compiled by mypyc), and only what runs is in the
# other. Nobody is root in it. Settings come as PILOTWIRE_* variables or a mounted file
# (PILOTWIRE_CONFIG).
ARG PYTHON=3.11.13-slim-bookworm

FROM python:${PYTHON} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md deploy/constraints.txt ./
COPY model_runtime model_runtime
COPY planner planner
COPY proxy proxy
COPY training training
COPY pilotwire pilotwire
RUN pip install --no-cache-dir "mypy[mypyc]==2.4.1" "setuptools==84.2.1" "wheel==0.47.0" \
    && PILOTWIRE_COMPILE=1 pip wheel --no-cache-dir --no-build-isolation --constraint constraints.txt --wheel-dir /wheels ".[train,otel]"

FROM python:${PYTHON}
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/pilotwire pilotwire \
    && install -d -o pilotwire -g pilotwire -m 0750 /var/lib/pilotwire /var/lib/pilotwire/models /run/pilotwire
# The wheels are mounted, not copied: they would stay in a layer. Their versions are those that were built above.
# hadolint ignore=DL3013
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links=/wheels "pilotwire[train,otel]"
USER 10001:10001
WORKDIR /var/lib/pilotwire
ENV PYTHONUNBUFFERED=1 \
    PILOTWIRE_STATE_DIR=/var/lib/pilotwire \
    PILOTWIRE_MODELS=/var/lib/pilotwire/models \
    PILOTWIRE_LISTEN=*:6432 \
    PILOTWIRE_ADMIN=127.0.0.1:9432 \
    PILOTWIRE_LOG_FORMAT=json
VOLUME ["/var/lib/pilotwire"]
EXPOSE 6432 9432
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9432/healthz', timeout=2)"]
ENTRYPOINT ["pilotwire"]
CMD ["serve"]
