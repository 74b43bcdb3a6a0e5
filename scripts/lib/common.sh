# Shared by the scripts of lane 2; to be sourced by bash.
# shellcheck shell=bash

me=${0##*/}
repo=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
lib=$repo/scripts/lib

# depmod and mkfs live where an ordinary user's PATH often does not look.
PATH=$PATH:/usr/sbin:/sbin

say() { printf '%s: %s\n' "$me" "$*" >&2; }

die() {
    say "$@"
    exit 1
}

# Absolute and free of symlinks, because the throw-away host looks it up again.
cache_dir() {
    local dir=${PITON_CACHE:-$repo/target/cache}
    mkdir -p -- "$dir"
    (cd -- "$dir" && pwd -P)
}

installed() {
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null) == installed ]]
}

# one_at_a_time COMMAND... : apt refuses, rather than waits, when another run of
# ours is at it, and two downloads of the same kernel are a waste.
one_at_a_time() {
    local cache
    cache=$(cache_dir)
    (
        flock 9
        "$@" 9>&-
    ) 9>"$cache/.lock"
}

# need_packages PKG[:COMMAND]... : a COMMAND that is found counts as installed,
# so that a tool built from source or another package's will do.
need_packages() {
    local missing
    missing=$(missing_packages "$@")
    [[ -n $missing ]] || return 0
    ((EUID == 0)) || die "missing; install with: sudo apt-get install --no-install-recommends $missing"
    one_at_a_time install_packages "$@"
}

missing_packages() {
    local want missing=()
    for want; do
        if [[ $want == *:* ]] && command -v "${want#*:}" >/dev/null; then
            continue
        fi
        installed "${want%%:*}" || missing+=("${want%%:*}")
    done
    echo "${missing[*]}"
}

install_packages() {
    local missing
    # Whoever held the lock may have done it.
    read -ra missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" >/dev/null 2>&1 && return
    # The lists of a fresh image are empty or stale.
    apt-get update -q >&2 </dev/null || say "apt-get update failed"
    apt_install "${missing[@]}" >&2 || die "apt-get could not install ${missing[*]}"
}

apt_install() {
    # The image's own timer may be at it, too.
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

# fetch_package DIR PACKAGE: downloads the .deb into DIR; nothing is installed.
fetch_package() {
    # apt's own user cannot enter a private folder; root reading for it is only worth a warning.
    local get=(apt-get -q -o APT::Sandbox::User=root download "$2")
    (cd -- "$1" && "${get[@]}") >&2 </dev/null && return
    ((EUID == 0)) || die "apt does not know $2 or its files; run: sudo apt-get update"
    one_at_a_time apt-get update -q >&2 </dev/null || die "apt-get update failed"
    (cd -- "$1" && "${get[@]}") >&2 </dev/null || die "could not download $2"
}

# publish TEMP FINAL: whoever comes second keeps the first one's result.
publish() {
    if ! mv -T -- "$1" "$2" 2>/dev/null; then
        [[ -d $2 ]] || die "could not create $2"
        rm -rf -- "$1"
    fi
}

# key FILE-OR-WORD... : names a cache entry after everything that went into it.
key() {
    local input
    for input; do
        if [[ -f $input ]]; then sha256sum <"$input"; else printf '%s\n' "$input"; fi
    done | sha256sum | cut -c1-16
}

# copy_modules MODULES-DIR TREE NAME... : the named modules of a kernel and what
# they depend on into TREE/lib/modules, indexed. Those built in are left out.
copy_modules() {
    local from=$1 tree=$2 version=${1##*/} name pattern found file
    local to=$tree/lib/modules/$version
    shift 2
    mkdir -p -- "$to"
    cp -- "$from"/modules.{order,builtin,builtin.modinfo} "$to/"
    for name; do
        pattern="/${name//[-_]/[-_]}\\.ko"
        grep -qE "$pattern\$" "$from/modules.builtin" && continue
        found=$(grep -E "^[^:]*$pattern:" "$from/modules.dep" | head -n 1) || true
        [[ -n $found ]] || die "kernel $version has no module $name"
        for file in ${found/:/ }; do
            mkdir -p -- "$to/${file%/*}"
            cp -u -- "$from/$file" "$to/$file"
        done
    done
    depmod -b "$tree" "$version"
}

# busybox_tree TREE: busybox and a link for every applet where Debian would have it.
busybox_tree() {
    local applet
    mkdir -p -- "$1"/{bin,sbin,usr/bin,usr/sbin,etc,dev,proc,sys,run,tmp,root,mnt}
    cp -- "$(command -v busybox)" "$1/bin/busybox"
    while read -r applet; do
        [[ $applet == bin/busybox || -e $1/$applet ]] || ln -s /bin/busybox "$1/$applet"
    done < <(busybox --list-full)
}

# pack_initramfs TREE FILE: not compressed, since unpacking is what an emulated CPU is slow at.
pack_initramfs() {
    (cd -- "$1" && find . -print0 | LC_ALL=C sort -z | cpio --quiet -0 -o -H newc -R 0:0) >"$2"
}
