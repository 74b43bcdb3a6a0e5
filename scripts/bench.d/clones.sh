# running clones of one checkpoint: when they answer, and the memory that they take
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has sampled_bench, tool and results.

render() { "$tool" render clones "$results"; }

record_picture() { :; }

sampled_bench clones 3 "few clones of one size, to try it" "put the result into docs/benchmarks.md" "$@"
