# disks through an overlay, by the bundled guest, against raw files and QEMU's qcow2
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has sampled_bench, tool and results.

render() { "$tool" render block "$results"; }

record_picture() { :; }

sampled_bench block 5 "little data, to try it" "put the result into docs/benchmarks.md" "$@"
