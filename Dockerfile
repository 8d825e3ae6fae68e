# docker build -t morlaif-hub . && docker run --rm morlaif-hub quickstart
FROM python:3.11-slim

# Debian removes old versions from its archive, so a pinned one would soon not install.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends make \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 morlaif \
    && install --directory --owner=morlaif --group=morlaif /app /workspace
USER 1000
WORKDIR /app
COPY --chown=1000:1000 . .

# PyPI has torch for Linux with CUDA; this index has the same version for the CPU, several GB
# smaller. `--build-arg PIP_EXTRA_INDEX_URL=` takes PyPI's.
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG PIP_NO_CACHE_DIR=1
RUN make setup EXTRAS=demo,serve

ENV PATH=/app/.venv/bin:$PATH \
    MORLAIF_WORKSPACE=/workspace
WORKDIR /workspace
ENTRYPOINT ["morlaif-hub"]
CMD ["--help"]
