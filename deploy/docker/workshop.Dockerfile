# The workshop, which compiles models: `docker build -f deploy/docker/workshop.Dockerfile -t anabranch-workshop .`
# x86 without a GPU: `--build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu` fetches 200 MB instead of gigabytes.
ARG BASE=debian:bookworm-slim

FROM ${BASE} AS build
ARG TORCH_INDEX=
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv ca-certificates \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/anabranch/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
# torch is most of the image and changes least: a layer of its own, kept while the sources change.
RUN torch=$(python3 -c 'import tomllib; d = tomllib.load(open("pyproject.toml", "rb")); \
print(next(r for r in d["project"]["optional-dependencies"]["models"] if r.startswith("torch")))') \
 && /opt/pip/bin/pip --python /opt/anabranch/venv/bin/python install --no-cache-dir --no-compile \
      ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} "$torch"
COPY fl_protocol fl_protocol
COPY edge_agent edge_agent
COPY broker_aggregator broker_aggregator
COPY anabranch anabranch
COPY deploy deploy
RUN /opt/pip/bin/pip --python /opt/anabranch/venv/bin/python install --no-cache-dir --no-compile '.[models]'
RUN cd /opt/anabranch/venv/lib/python3*/site-packages \
 && find . -type d -name tests -prune -exec rm -rf {} + \
 && find . -name '*.pyi' -delete \
 && rm -rf torch/include torch/share \
 && python3 -m compileall -q -j 0 .

FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old \
 && useradd --system --uid 10001 --user-group --home-dir /workshop --shell /usr/sbin/nologin anabranch \
 && install -d -o anabranch -g anabranch -m 0755 /workshop
COPY --from=build /opt/anabranch/venv /opt/anabranch/venv
# models/ is no part of the wheel: people change it, and mount theirs at /workshop/models.
COPY --chown=anabranch:anabranch models /workshop/models
ENV PATH=/opt/anabranch/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER anabranch
WORKDIR /workshop
# Runs a command and ends; healthy: the workshop can be imported, and knows its models.
HEALTHCHECK --interval=5m --timeout=60s CMD ["python3", "-m", "models", "list", "--json"]
ENTRYPOINT ["python3", "-m", "models"]
CMD ["--help"]
