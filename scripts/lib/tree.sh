# What is installed, and where; to be sourced by bash after common.sh.
# shellcheck shell=bash

: "${repo:?common.sh says where the repository is}"

# The program as it is shipped; prints its path.
build_release() {
    (cd -- "$repo" && RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$repo=/piton \
--remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" cargo build --release --locked --bin piton) >&2
    echo "$repo/target/x86_64-unknown-linux-gnu/release/piton"
}

# put MODE FILE TARGET
put() {
    install -D -m "$1" -- "$2" "$3"
}

# lay_out BINARY ROOT PREFIX SYSTEM : all files below ROOT as they are to be below /. With an empty
# SYSTEM without those that only root can install. The same input gives the same files.
lay_out() {
    local binary=$1 root=$2 prefix=$3 system=$4 file kind name pages
    local at=$root$prefix
    # udev and systemd look below /etc and /usr, and below /usr/local for units alone.
    local rules=$root/etc/udev/rules.d
    [[ $prefix == /usr ]] && rules=$root/usr/lib/udev/rules.d
    put 755 "$binary" "$at/bin/piton"
    pages=$(mktemp -d)
    "$binary" man "$pages"
    mkdir -p -- "$at/share/man/man1"
    for file in "$pages"/*.1; do
        gzip -9n <"$file" >"$at/share/man/man1/${file##*/}.gz"
        chmod 644 -- "$at/share/man/man1/${file##*/}.gz"
    done
    rm -rf -- "$pages"
    completion() {
        mkdir -p -- "${2%/*}"
        "$binary" completions "$1" >"$2"
        chmod 644 -- "$2"
    }
    completion bash "$at/share/bash-completion/completions/piton"
    local zsh=$at/share/zsh/site-functions/_piton
    [[ $prefix == /usr ]] && zsh=$at/share/zsh/vendor-completions/_piton
    completion zsh "$zsh"
    completion fish "$at/share/fish/vendor_completions.d/piton.fish"
    put 644 "$repo/dist/grafana.json" "$at/share/piton/grafana.json"
    for name in service-start service-started service-stop prune-all verify-all; do
        put 755 "$repo/dist/$name" "$at/lib/piton/$name"
    done
    put 644 "$repo/dist/service-lib.sh" "$at/lib/piton/service-lib.sh"
    local kinds=(user)
    [[ -z $system ]] || kinds+=(system)
    for kind in "${kinds[@]}"; do
        local units=$at/lib/systemd/$kind
        # In a home systemd looks elsewhere.
        [[ -n $system ]] || units=$at/share/systemd/user
        for file in "$repo/dist/systemd/$kind"/*; do
            put 644 "$file" "$units/${file##*/}"
        done
        sed -i -- "s|/usr/lib/piton/|$prefix/lib/piton/|" "$units"/piton*.service
    done
    sed -i -- "s|/usr/bin/piton|$prefix/bin/piton|" "$at/lib/piton"/{service-lib.sh,prune-all,verify-all}
    if [[ -n $system ]]; then
        put 644 "$repo/dist/60-piton.rules" "$rules/60-piton.rules"
        put 644 "$repo/dist/sysusers.conf" "$at/lib/sysusers.d/piton.conf"
    fi
}
