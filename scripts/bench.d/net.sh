# networks: passt and tap devices, by the bundled guest, against QEMU
# shellcheck shell=bash disable=SC2154
# Sourced by scripts/bench, which has need_packages, sampled_bench, tool and results.

render() { "$tool" render net "$results"; }

record_picture() { :; }

need_packages passt:passt iproute2:ip util-linux:unshare
sampled_bench net 5 "one second of each, to try it" "put the result into docs/benchmarks.md" "$@"
