# bgremover as an image, for amd64 and arm64: read-only, without capabilities, as any user.
#
#   docker build -t bgremover .
#   docker run --read-only --cap-drop=ALL --security-opt=no-new-privileges --user 1000:1000 \
#     -v /srv/images:/images -v /srv/state:/state \
#     -v /srv/key:/run/key:ro -e IDEOGRAM_API_KEY_FILE=/run/key bgremover
#
# compose.yaml says the same with all there is to set.

FROM python:3.13-slim-trixie AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_COMPILE=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
COPY requirements.lock requirements-build.lock ./
RUN python -m venv /build \
 && /build/bin/pip install --require-hashes --only-binary=:all: -r requirements-build.lock \
 && python -m venv --without-pip /opt/bgremover \
 && /build/bin/pip --python /opt/bgremover/bin/python install \
      --require-hashes --only-binary=:all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY bgremover bgremover
# Bytecode is made here, since a read-only container cannot keep any; never checked against its
# source, since neither changes any more.
RUN /build/bin/pip wheel --no-deps --no-index --no-build-isolation --wheel-dir /dist . \
 && /build/bin/pip --python /opt/bgremover/bin/python install --no-deps --no-index /dist/*.whl \
 && /opt/bgremover/bin/python -m compileall -q --invalidation-mode unchecked-hash /opt/bgremover

FROM python:3.13-slim-trixie
LABEL org.opencontainers.image.title="bgremover" \
      org.opencontainers.image.description="Watches a folder, sends each image to Ideogram's Remove Background API, puts the cut-out into an outbox." \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="MIT"
# The base comes without bytecode, and the health check would compile it anew each time.
RUN python -m compileall -q -x 'site-packages|dist-packages|ensurepip|idlelib|tkinter' \
      "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
 && install -d -o 1000 -g 1000 /images /state
COPY --from=build /opt/bgremover /opt/bgremover
# HOME is that of nobody in particular: root's would be closed to whoever PUID names.
ENV PATH=/opt/bgremover/bin:$PATH \
    HOME=/ \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BGREMOVER_FOLDERS__INBOX=/images/inbox \
    BGREMOVER_FOLDERS__OUTBOX=/images/outbox \
    BGREMOVER_FOLDERS__QUARANTINE=/images/quarantine \
    BGREMOVER_FOLDERS__ARCHIVE=/images/archive \
    BGREMOVER_FOLDERS__STATE=/state
USER 1000:1000
HEALTHCHECK --interval=30s --timeout=15s --start-period=30s --retries=3 \
  CMD ["bgremover", "health"]
ENTRYPOINT ["bgremover"]
CMD ["run"]
