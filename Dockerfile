# Builds Vestibule and puts it into a small image that runs as www-data (uid 33), as docassemble does.
#
#   docker build -t vestibule .
#   docker run -p 80:80 -p 443:443 --stop-timeout 30 \
#       -v "$PWD/vestibule.yml:/etc/vestibule/vestibule.yml:ro" \
#       -v vestibule-state:/var/lib/vestibule -v vestibule-logs:/var/log/vestibule vestibule
#
# `docker run --rm -v … vestibule check --config /etc/vestibule/vestibule.yml` says whether the file is right.

FROM rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo build --release --locked --bin vestibule

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates tzdata \
    && rm -rf /var/lib/apt/lists/* \
    && install -d -m 750 -o www-data -g www-data /var/lib/vestibule /var/log/vestibule /run/vestibule \
    && install -d /etc/vestibule
COPY --from=build /src/target/release/vestibule /usr/local/bin/vestibule
VOLUME ["/etc/vestibule", "/var/lib/vestibule", "/var/log/vestibule"]
# uid 33 may bind 80 and 443 because Docker's own networks set net.ipv4.ip_unprivileged_port_start=0. Where that is not so
# (--network host, Kubernetes) listen on 8080 and 8443 and publish those, or set that sysctl.
EXPOSE 80 443
USER 33
STOPSIGNAL SIGTERM
ENTRYPOINT ["vestibule"]
CMD ["serve", "--config", "/etc/vestibule/vestibule.yml"]
