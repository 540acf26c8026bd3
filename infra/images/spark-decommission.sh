#!/usr/bin/env bash
# What Spark's preStop hook runs in an executor whose node goes away (spark.decommission.enabled): tells the executor, and waits while it hands
# on what it holds. Source: Spark, resource-managers/kubernetes/docker, decom.sh.
set -euo pipefail
wait_seconds=${1:-100}

for process in /proc/[0-9]*; do
  if { tr '\0' '\n' <"$process/cmdline" | grep -qx org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend; } 2>/dev/null; then
    pid=${process#/proc/}
    kill -s PWR "$pid"
    timeout "$wait_seconds" tail --pid="$pid" --follow /dev/null || echo "executor $pid is still at work after $wait_seconds s" >&2
  fi
done
