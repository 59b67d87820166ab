#!/usr/bin/env bash
# Several machines with N cards each; run this on every one of them, with its own RANK from 0 on:
#   bash launch/several_hosts.sh MACHINES RANK ADDRESS PORT N COMMAND...
# ADDRESS is machine 0's in the network that all share, PORT a free port there (PORT + 1009 is used as well). COMMAND as in
# launch/one_host.sh; all machines need the same checkpoint. MS_OMNI_LOGS names a folder for the logs. Machines that do not
# share the home folder need the same MS_OMNI_SECRET, any text: nobody without it can take part in the job or end it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
use_environment ""

[ $# -ge 6 ] || { echo "usage: $0 MACHINES RANK ADDRESS PORT N COMMAND..." >&2; exit 2; }
machines=("--nodes" "$1" "--node-rank" "$2" "--master-addr" "$3" "--master-port" "$4" "--cards" "$5")
shift 5
exec ms-omni launch "${machines[@]}" ${MS_OMNI_LOGS:+--log-dir "$MS_OMNI_LOGS"} "$@"
