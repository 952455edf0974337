#!/usr/bin/env bash
# Submits a job file to a Ray cluster and follows it: submit.sh JOB.yaml [flags of `historay embed`]
#
# What runs is the historay that the cluster's nodes have installed; only the job file travels.
# RAY_API_SERVER_ADDRESS says where the cluster is, http://127.0.0.1:8265 unless set.
# Ends with 0 when all slides are done, with 2 where nothing could be submitted, else with 1.
set -euo pipefail

if [ "$#" -lt 1 ]; then
    echo "usage: $0 JOB.yaml [flags of 'historay embed', such as --retry store-unreachable]" >&2
    exit 2
fi
job=$1
shift
if [ ! -f "$job" ]; then
    echo "$job is no file: name a job file, such as infra/jobs/small.yaml" >&2
    exit 2
fi
if grep -nv '^[[:space:]]*#' "$job" | grep EDIT- >&2; then
    echo "$job: edit these lines first" >&2
    exit 2
fi
command -v ray >/dev/null || {
    echo "there is no 'ray' on the PATH: activate the environment that has historay" >&2
    exit 2
}

export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
# The token is in ~/.ray/auth_token, or where RAY_AUTH_TOKEN_PATH says.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"

folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
cp -- "$job" "$folder/job.yaml"

name=$(basename -- "${job%.*}" | tr -c '[:alnum:]\n' '-')
id="$name-$(date -u +%Y%m%dT%H%M%SZ)"
echo "job $id; stop it with: ray job stop $id" >&2
ray job submit --submission-id "$id" --working-dir "$folder" -- \
    python -m ray_pipeline embed --config job.yaml "$@"
