# Spark drivers and executors on Kubernetes. From the root of the checkout, with the wheel built (python -m pip wheel --no-deps --wheel-dir dist .):
#   docker build --file infra/images/spark.Dockerfile --build-arg BASE=NAME@sha256:DIGEST --tag triplane-spark .
# BASE is Debian's Python 3.11 (docker.io/library/python, slim); infra/pins.yaml names it by digest, so there is no default.
ARG BASE
FROM ${BASE} AS build
COPY infra/images/build.lock infra/images/spark.lock /locks/
# pyspark comes as source only; its build may use what is locked, and nothing else.
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: --requirement /locks/build.lock \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary=:all: --no-binary=pyspark --no-build-isolation --requirement /locks/spark.lock
COPY dist/*.whl /wheels/
RUN /opt/venv/bin/pip install --no-cache-dir --no-index --no-deps /wheels/*.whl

FROM ${BASE}
# Debian's own signatures stand for these; versions follow the base's digest and its security updates.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 185 --user-group --no-create-home --home-dir /scratch spark \
    && install --directory --owner 185 --group 185 /scratch
COPY --from=build /opt/venv /opt/venv
COPY infra/images/spark-entrypoint.sh /opt/entrypoint.sh
COPY infra/images/spark-decommission.sh /opt/decom.sh
COPY jobs/build_mix.py /opt/triplane/jobs/build_mix.py
ENV JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64 \
    SPARK_HOME=/opt/venv/lib/python3.11/site-packages/pyspark \
    PYSPARK_PYTHON=/opt/venv/bin/python \
    PYSPARK_DRIVER_PYTHON=/opt/venv/bin/python \
    PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    NUMBA_CACHE_DIR=/scratch/numba \
    HOME=/scratch \
    PYTHONDONTWRITEBYTECODE=1
WORKDIR /scratch
USER 185:185
ENTRYPOINT ["/usr/bin/tini", "--", "/opt/entrypoint.sh"]
