# A device's agent: `docker build -f deploy/docker/agent.Dockerfile -t anabranch-agent .` in a checkout.
# Debian's own Python, as on a Raspberry Pi: the same for amd64 and arm64, and no pip in what is shipped.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/anabranch/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY fl_protocol fl_protocol
COPY edge_agent edge_agent
COPY broker_aggregator broker_aggregator
COPY anabranch anabranch
COPY deploy deploy
RUN /opt/pip/bin/pip --python /opt/anabranch/venv/bin/python install --no-cache-dir --no-compile '.[agent]'
# A device runs the agent alone: the gateway, the demo's data, tests and onnxruntime's conversion tools stay behind.
RUN cd /opt/anabranch/venv/lib/python3*/site-packages \
 && rm -rf anabranch broker_aggregator anabranch_deploy \
      onnxruntime/transformers onnxruntime/quantization onnxruntime/tools onnxruntime/datasets onnxruntime/backend \
 && rm -f ../../../bin/anabranch ../../../bin/broker-aggregator \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -name '*.pyi' -delete \
 && python3 -m compileall -q -j 0 .

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old \
 && useradd --system --uid 10001 --user-group --home-dir /var/lib/anabranch --shell /usr/sbin/nologin anabranch \
 && install -d -o anabranch -g anabranch -m 0700 /var/lib/anabranch /etc/anabranch /run/anabranch
COPY --from=build /opt/anabranch/venv /opt/anabranch/venv
ENV PATH=/opt/anabranch/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 RUNTIME_DIRECTORY=/run/anabranch
USER anabranch
WORKDIR /var/lib/anabranch
VOLUME ["/var/lib/anabranch"]
# Healthy: the agent's loop turned within half a minute, and it has its broker.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --retries=3 CMD ["anabranch-health"]
ENTRYPOINT ["edge-agent"]
CMD ["run", "--config", "/etc/anabranch/agent.toml"]
