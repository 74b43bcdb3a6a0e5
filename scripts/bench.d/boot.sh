# time from spawn to the bundled guest's first console byte, and memory of the VMM, against QEMU
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has me, repo and benches.

rounds=20
recording=
while (($#)); do
    case $1 in
        --rounds) rounds=${2:?} && shift ;;
        --record) recording=1 ;;
        -h | --help)
            echo "usage: $me boot [--rounds N] [--record]      N rounds (default 20), each boots every VMM once"
            exit
            ;;
        *) die "boot has no option $1" ;;
    esac
    shift
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds wants a whole number, not $rounds"

prepare_bench boot
"$tool" boot "$rounds" "$piton" "$guest" "$work" >"$work/table"
{
    machine_facts
    echo "- $(qemu-system-x86_64 --version | head -n 1)"
    cat -- "$work/table"
} >"$work/section"
cat -- "$work/section"
[[ -z $recording ]] || record boot "$work/section"
