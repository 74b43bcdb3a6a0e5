# checkpoints: pause, time and bytes, restore and clones, against QEMU
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has sampled_bench, repo, tool and results.

render() {
    "$tool" render checkpoint "$results" "$results.svg"
    echo
    echo "![Pauses of piton and QEMU over what the guest dirties, and of piton over the size of memory](checkpoint-pause.svg)"
}

record_picture() { cp -- "$results.svg" "$repo/docs/checkpoint-pause.svg"; }

sampled_bench checkpoint 10 "little memory and few cases, to try it" \
    "put the result into docs/benchmarks.md and the plot into docs/" "$@"
