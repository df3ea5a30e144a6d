#!/usr/bin/env bash
# Starts the head of a Ray cluster on this machine; then start ray_worker.sh on the others, and train from here:
#   agentenv train run.yaml cluster.address=auto cluster.nodes=2 cluster.gpus_per_node=8
set -euo pipefail

port=${RAY_PORT:-6379}
address=${HEAD_ADDRESS:-$(hostname -I | awk '{print $1}')}

# the dashboard and the client port run anybody's code: they stay on this machine
ray start --head --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1

echo "on every other machine, with the same checkout, environment and folder for runs:"
echo "  HEAD=$address:$port examples/cluster/ray_worker.sh"
if [ -f "$HOME/.ray/auth_token" ]; then
  echo "this cluster wants a token: copy $HOME/.ray/auth_token there, readable by you alone"
fi
