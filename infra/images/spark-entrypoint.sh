#!/usr/bin/env bash
# What Spark on Kubernetes asks of an image: `driver ARGUMENTS` and `executor`, told the rest by environment variables
# (Spark: resource-managers/kubernetes/docker). Anything else is run as it is.
set -euo pipefail

executor_options() { # SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1 ..., in that order
  env -0 | sort -zt_ -k4n | sed -zn 's/^SPARK_JAVA_OPT_[0-9]*=//p'
}

case "${1:-}" in
  driver)
    exec "$SPARK_HOME/bin/spark-submit" --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" --deploy-mode client "${@:2}"
    ;;
  executor)
    readarray -d '' options < <(executor_options)
    exec "$JAVA_HOME/bin/java" "${options[@]}" "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
      -cp "${SPARK_CONF_DIR:-$SPARK_HOME/conf}:$SPARK_HOME/jars/*" org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
      --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" --app-id "$SPARK_APPLICATION_ID" \
      --hostname "$SPARK_EXECUTOR_POD_IP" --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
  *)
    exec "$@"
    ;;
esac
