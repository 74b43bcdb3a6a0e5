# checkpoints: pause, time and bytes, restore and clones, against QEMU
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has me, repo and sampled.

rounds=10
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
usage: $me checkpoint [--rounds N] [--quick] [--record] [--render]
  --rounds N  measure everything N times (default 10)
  --quick     little memory and few cases, to try it
  --record    put the result into docs/benchmarks.md and the plot into docs/
  --render    measure nothing, show what was measured last
Samples are kept in target/bench/checkpoint-{full,quick}.jsonl. A run that was cut short goes on where it
was; remove that file to begin anew.
HELP
            exit
            ;;
        *) die "checkpoint has no option $1" ;;
    esac
    shift
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "--rounds wants a whole number, not $rounds"

results=$repo/target/bench/checkpoint-$size.jsonl
if [[ -n $rendering ]]; then
    [[ -e $results ]] || die "nothing was measured yet"
    build_tool
else
    sampled checkpoint "$rounds" "$size"
fi
{
    cat -- "$results.facts"
    "$tool" render checkpoint "$results" "$results.svg"
    echo
    echo "![Pauses of piton and QEMU over what the guest dirties, and of piton over the size of memory](checkpoint-pause.svg)"
} >"$results.section"
cat -- "$results.section"
[[ -z $recording ]] || cp -- "$results.svg" "$repo/docs/checkpoint-pause.svg"
[[ -z $recording ]] || record checkpoint "$results.section"
