#!/usr/bin/env bash
# Joins this machine to the Ray cluster whose head is HEAD=host:port, and stays until `ray stop` or the head's end.
set -euo pipefail

: "${HEAD:?the address that ray_head.sh printed, host:port}"
exec ray start --address="$HEAD" --block
