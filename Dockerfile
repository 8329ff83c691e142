# Two ways to the same image:
#
#   docker build -t holdfast .
#       compiles the sources of this directory; nothing but Docker is needed.
#
#   docker build --target prebuilt -t holdfast -f Dockerfile bin/image
#       packs a static Linux binary that exists already. The build context is a
#       directory with the file `holdfast` and an empty directory `data`; no
#       other image is needed, so this works without a registry.
#
# `prebuilt` stands before the compiler's stage because builders without
# BuildKit run all stages above the target.

ARG GO_VERSION=1.26

# What both images have in common. There is no shell in them: the binary is the
# server, the command line (`docker exec NAME holdfast status`) and the health check.
FROM scratch AS base
ENV HOLDFAST_DATA_DIR=/data \
    HOLDFAST_HTTP=0.0.0.0:8500 \
    HOLDFAST_RAFT=0.0.0.0:8300
EXPOSE 8500 8300
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2s --timeout=3s --start-period=20s --retries=5 \
    CMD ["/bin/holdfast", "status", "--ready"]
ENTRYPOINT ["/bin/holdfast"]
CMD ["agent"]

FROM base AS prebuilt
COPY holdfast /bin/holdfast
# A named volume takes the owner of the directory it covers.
COPY --chown=65532:65532 data /data
USER 65532:65532
VOLUME /data

FROM golang:${GO_VERSION} AS build
WORKDIR /src
# Modules have a layer of their own, so that editing code does not fetch them again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
# The release; without it the program keeps its own.
ARG VERSION
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
        -ldflags "-s -w ${VERSION:+-X main.version=${VERSION}}" -o /out/holdfast ./cmd/holdfast \
    && mkdir /out/data

FROM base
COPY --from=build /out/holdfast /bin/holdfast
COPY --from=build --chown=65532:65532 /out/data /data
USER 65532:65532
VOLUME /data
