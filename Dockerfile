# syntax=docker/dockerfile:1
FROM python:3.11.14-slim-bookworm AS build
WORKDIR /src
RUN pip install --no-cache-dir uv==0.13.9 && python -m venv /opt/venv
ENV UV_PYTHON=/opt/venv/bin/python UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1

# Dependencies first: this layer is built again only when they change. Versions and hashes are those of the lock file;
# naming it as a constraint leaves out what only development needs.
COPY pyproject.toml requirements.lock ./
RUN uv pip install --verify-hashes --constraint requirements.lock \
      --extra postgres --extra azure --extra aws --extra vault --extra experiments --requirement pyproject.toml

COPY README.md LICENSE CHANGELOG.md ./
COPY litellm_orchestration litellm_orchestration
COPY core core
COPY plugins plugins
COPY custom_router custom_router
COPY secrets_manager secrets_manager
RUN uv build --quiet --wheel --out-dir /dist && uv pip install --no-deps /dist/*.whl


FROM python:3.11.14-slim-bookworm
# The number is fixed so that a mounted volume keeps its owner from one image to the next.
RUN groupadd --gid 10001 orchestration \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/orchestration orchestration \
    && install -d -m 0750 -o 10001 -g 10001 /var/lib/orchestration
COPY --from=build /opt/venv /opt/venv
COPY config.yaml /etc/orchestration/config.yaml
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1

# Store, journal and the generated master key are relative to the working directory.
USER 10001:10001
WORKDIR /var/lib/orchestration
VOLUME /var/lib/orchestration
EXPOSE 4000
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-I", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:4000/health/liveliness', timeout=4)"]
ENTRYPOINT ["llm-orchestration", "serve", "--config", "/etc/orchestration/config.yaml", "--host", "0.0.0.0"]
