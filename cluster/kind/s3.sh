#!/usr/bin/env bash
# An S3 endpoint for a kind cluster: SeaweedFS on this machine, at the address where kind's
# nodes see it, so that its URL is the same from here and from pods. It runs until killed.
#   export AWS_ACCESS_KEY_ID=notebooks AWS_SECRET_ACCESS_KEY=$(openssl rand -hex 16)
#   cluster/kind/s3.sh &
set -euo pipefail
unset CDPATH && cd "$(dirname "$0")/../.."
: "${AWS_ACCESS_KEY_ID:?not set}" "${AWS_SECRET_ACCESS_KEY:?not set}"
address=$(docker network inspect kind --format '{{range .IPAM.Config}}{{.Gateway}} {{end}}' |
    grep -oE '([0-9]+\.){3}[0-9]+' | head -n 1)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/s3.json" <<END
{"identities": [{"name": "notebooks",
  "credentials": [{"accessKey": "$AWS_ACCESS_KEY_ID", "secretKey": "$AWS_SECRET_ACCESS_KEY"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
END
echo "export AWS_ENDPOINT_URL=http://$address:8333"
.venv/bin/weed server -dir="$folder" -ip="$address" -ip.bind="$address" \
    -master.telemetry=false -master.volumeSizeLimitMB=64 -volume.max=1000 \
    -s3 -s3.config="$folder/s3.json" -s3.port.iceberg=0 -s3.port.lance=0
