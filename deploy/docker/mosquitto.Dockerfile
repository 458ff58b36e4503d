# The broker: `docker build -f deploy/docker/mosquitto.Dockerfile -t anabranch-mosquitto .` in a checkout.
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update \
 && apt-get install -y --no-install-recommends mosquitto mosquitto-clients \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log /var/cache/debconf/*-old /etc/mosquitto \
 && usermod --non-unique --uid 10001 mosquitto && groupmod --non-unique --gid 10001 mosquitto \
 && install -d -o mosquitto -g mosquitto -m 0700 /etc/mosquitto /var/lib/mosquitto
USER mosquitto
VOLUME ["/var/lib/mosquitto"]
# Healthy: the broker answers a subscriber on the listener that only this container reaches.
HEALTHCHECK --interval=30s --timeout=10s --start-period=20s --retries=3 \
  CMD ["mosquitto_sub", "-h", "127.0.0.1", "-p", "1880", "-t", "$SYS/broker/uptime", "-C", "1", "-W", "5"]
ENTRYPOINT ["/usr/sbin/mosquitto"]
CMD ["-c", "/etc/mosquitto/mosquitto.conf"]
