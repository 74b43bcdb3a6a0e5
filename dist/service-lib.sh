# Shared by the helpers of piton@.service; to be sourced by sh.
# shellcheck shell=sh

piton=${PITON:-/usr/bin/piton}
home=${PITON_HOME:-${XDG_DATA_HOME:-$HOME/.local/share}/piton}
# The checkpoint that the service was stopped with, and when that was.
saved=$home/${1:?name the VM}/service-stop
# The one that it was started from.
from=$home/$1/service-from

# When the last run of a VM that is off ended; nothing if that is not known.
ended() {
    "$piton" show "$1" --json | sed -n 's/.*"ended": *"\([^"]*\)".*/\1/p' | head -n 1
}
