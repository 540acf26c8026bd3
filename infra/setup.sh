#!/usr/bin/env bash
# Makes what `make` needs on a fresh machine: Java >= 17 for Spark, a virtual environment, the pinned packages.
# Usage: infra/setup.sh VENV EXTRAS   (EXTRAS as in pyproject.toml, e.g. "all" or "all,test")
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1
extras=$2

java_major() { java -version 2>&1 | sed -nE '1s/.*version "([0-9]+).*/\1/p'; }

require_java() {
  if command -v java >/dev/null && [ "$(java_major)" -ge 17 ] 2>/dev/null; then return; fi
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing Java 17 (openjdk-17-jre-headless) with apt-get" >&2
    apt-get update -qq && apt-get install -y -qq openjdk-17-jre-headless >/dev/null && return
  fi
  echo "error: Spark needs Java 17 or newer and none is on PATH; install one (Debian/Ubuntu: sudo apt-get install openjdk-17-jre-headless, macOS: brew install openjdk@17) and run the same command again" >&2
  exit 1
}

install_packages() {
  local python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Triplane needs Python 3.11 or newer and $python is older; set PYTHON=/path/to/python3.11" >&2
    exit 1
  }
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[$extras]"
}

require_java
stamp="$venv/.installed-${extras//,/-}"
if [ ! -e "$stamp" ] || [ constraints.txt -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  echo "installing .[$extras] into $venv (some minutes, once)" >&2
  install_packages
  touch "$stamp"
fi
