# disks through an overlay, by the bundled guest, against raw files and QEMU's qcow2
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has me, repo and sampled.

rounds=5
size=full
recording=
rendering=
while (($#)); do
    case $1 in
        --rounds) rounds=${2:?} && shift ;;
        --quick) size=quick ;;
        --record) recording=1 ;;
        --render) rendering=1 ;;
        -h | --help)
            cat <<HELP
usage: $me block [--rounds N] [--quick] [--record] [--render]
  --rounds N  measure everything N times (default 5)
  --quick     little data, to try it
  --record    put the result into docs/benchmarks.md
  --render    measure nothing, show what was measured last
Samples are kept in target/bench/block-{full,quick}.jsonl. A run that was cut short goes on where it
was; remove that file to begin anew.
HELP
            exit
            ;;
        *) die "block has no option $1" ;;
    esac
    shift
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds wants a whole number, not $rounds"

results=$repo/target/bench/block-$size.jsonl
if [[ -n $rendering ]]; then
    [[ -e $results ]] || die "nothing was measured yet"
    build_tool
else
    sampled block "$rounds" "$size"
fi
{
    cat -- "$results.facts"
    "$tool" render block "$results"
} >"$results.section"
cat -- "$results.section"
[[ -z $recording ]] || record block "$results.section"
