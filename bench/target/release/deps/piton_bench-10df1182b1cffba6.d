/work/main/bench/target/release/deps/piton_bench-10df1182b1cffba6.d: src/main.rs src/block.rs src/boot.rs src/checkpoint/mod.rs src/checkpoint/cases.rs src/checkpoint/clones.rs src/checkpoint/create.rs src/checkpoint/plot.rs src/checkpoint/report.rs src/checkpoint/restore.rs src/console.rs src/host.rs src/piton.rs src/qemu.rs src/results.rs src/stats.rs Cargo.toml

/work/main/bench/target/release/deps/libpiton_bench-10df1182b1cffba6.rmeta: src/main.rs src/block.rs src/boot.rs src/checkpoint/mod.rs src/checkpoint/cases.rs src/checkpoint/clones.rs src/checkpoint/create.rs src/checkpoint/plot.rs src/checkpoint/report.rs src/checkpoint/restore.rs src/console.rs src/host.rs src/piton.rs src/qemu.rs src/results.rs src/stats.rs Cargo.toml

src/main.rs:
src/block.rs:
src/boot.rs:
src/checkpoint/mod.rs:
src/checkpoint/cases.rs:
src/checkpoint/clones.rs:
src/checkpoint/create.rs:
src/checkpoint/plot.rs:
src/checkpoint/report.rs:
src/checkpoint/restore.rs:
src/console.rs:
src/host.rs:
src/piton.rs:
src/qemu.rs:
src/results.rs:
src/stats.rs:
Cargo.toml:

# env-dep:CLIPPY_ARGS=-D__CLIPPY_HACKERY__warnings__CLIPPY_HACKERY__
# env-dep:CLIPPY_CONF_DIR
