# Ray heads and workers: training, evaluation and the watcher; with CUDA, as PyPI's torch brings it. From the root of the checkout, with the
# wheel built (python -m pip wheel --no-deps --wheel-dir dist .):
#   docker build --file infra/images/ray.Dockerfile --build-arg BASE=NAME@sha256:DIGEST --tag triplane-ray .
# BASE is Debian's Python 3.11 (docker.io/library/python, slim); infra/pins.yaml names it by digest, so there is no default.
ARG BASE
FROM ${BASE} AS build
COPY infra/images/ray.lock /locks/
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: --requirement /locks/ray.lock
COPY dist/*.whl /wheels/
RUN /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM ${BASE}
# A C compiler for torch.compile's kernels on the host, wget for KubeRay's health probes. Debian's own signatures stand for these;
# versions follow the base's digest and its security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ tini wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --no-create-home --home-dir /scratch ray \
    && install --directory --owner 1000 --group 1000 /scratch
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0 \
    NUMBA_CACHE_DIR=/scratch/numba \
    TORCHINDUCTOR_CACHE_DIR=/scratch/inductor \
    HOME=/scratch \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /scratch
USER 1000:1000
ENTRYPOINT ["/usr/bin/tini", "--"]
CMD ["bash"]
