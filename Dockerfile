# syntax=docker/dockerfile:1
#
# ckptd as a sidecar: the daemon and ckptctl alone, as a user without privileges.
#
#   docker build -t ckptd .
#   install -d -m 0700 "$XDG_RUNTIME_DIR/ckptd"
#   docker run -d --name ckptd --user "$(id -u):$(id -g)" --shm-size=16g --ipc=shareable \
#     -v "$XDG_RUNTIME_DIR/ckptd:/run/ckptd" -v /data/checkpoints:/data/checkpoints ckptd
#   docker run --user "$(id -u):$(id -g)" --ipc=container:ckptd \
#     -v "$XDG_RUNTIME_DIR/ckptd:/run/ckptd" -v /data/checkpoints:/data/checkpoints \
#     -e CKPTD_ADDRESS=unix:/run/ckptd/ckptd.sock YOUR_TRAINER
#
# * --user: the daemon serves the user that it runs as and no other. Without it that is 65532.
# * --shm-size: staging images live in /dev/shm, and a container's default of 64 MB holds none. Give
#   it room for three checkpoints, and the daemon as much of it with --staging-budget.
# * --ipc: the trainer copies straight into the daemon's /dev/shm. Without it the client notices and
#   streams over the socket, which is slower but as safe.
# * The checkpoint directory has the same path in both: paths travel as they are.

FROM debian:bookworm-slim AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends \
      cmake ninja-build g++ pkg-config libabsl-dev libcli11-dev libgrpc++-dev libisal-dev \
      libprotobuf-dev libspdlog-dev libsqlite3-dev liburing-dev protobuf-compiler \
      protobuf-compiler-grpc \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cmake -S . -B /build -G Ninja -DCMAKE_BUILD_TYPE=Release \
      -DCKPTD_CLIENT_CPP=OFF -DCKPTD_TESTS=OFF \
 && ninja -C /build ckptd ckptctl \
 && strip /build/bin/ckptd /build/bin/ckptctl

FROM debian:bookworm-slim
# hadolint ignore=DL3008
RUN apt-get update -q \
 && apt-get install -q -y --no-install-recommends \
      libabsl20220623 libgrpc++1.51 libisal2 libprotobuf32 libspdlog1.10 libsqlite3-0 liburing2 \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -m 0700 -o 65532 -g 65532 /run/ckptd
COPY --from=build /build/bin/ckptd /build/bin/ckptctl /usr/bin/
USER 65532:65532
# The journal lies beside the socket: what it tells of is in /dev/shm, and lives no longer.
ENV CKPTD_ADDRESS=unix:/run/ckptd/ckptd.sock CKPTD_STATE_DIR=/run/ckptd
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["ckptctl", "status"]
ENTRYPOINT ["ckptd"]
