# One step of giving a Linux guest an identity of its own. Exit code 0: done; 77: there is nothing of the
# kind; else it failed, and the last line says why. Fresh random bytes come in.
step=$1 name=$2 id=$3 reseeded=$4
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
exec 2>&1
umask 022

skip() {
    echo "$1"
    exit 77
}
fail() {
    echo "$1"
    exit 1
}
systemd() {
    [ -d /run/systemd/system ]
}

# What is written there counts at the next reseed only, which may be a minute away.
randomness() {
    cat >/dev/urandom || exit 1
    perl -e 'open(F, ">", "/dev/urandom") and ioctl(F, 0x5207, 0) or exit 1' 2>/dev/null && exit 0
    python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)' 2>/dev/null && exit 0
    # A kernel that knows the VM's generation has reseeded by itself.
    for device in /sys/bus/*/drivers/vmgenid/*:*; do
        [ -e "$device" ] && exit 0
    done
    fail "its kernel has no vmgenid driver, and neither perl nor python3 is there to reseed it"
}

set_hostname() {
    old=$(cat /proc/sys/kernel/hostname)
    echo "$name" >/etc/hostname || exit 1
    if ! echo "$name" >/proc/sys/kernel/hostname; then
        hostname "$name" || exit 1
    fi
    if systemd; then hostnamectl set-hostname "$name" >/dev/null 2>&1; fi
    if [ -f /etc/hosts ] && [ -n "$old" ] && [ "$old" != localhost ] && command -v awk >/dev/null; then
        hosts=$(awk -v old="$old" -v new="$name" '{
            for (i = 2; i <= NF && $1 !~ /^#/; i++) {
                if ($i == old) $i = new
                else if (index($i, old ".") == 1) $i = new substr($i, length(old) + 1)
            }
            print
        }' /etc/hosts) && printf '%s\n' "$hosts" >/etc/hosts
    fi
}

machine_id() {
    [ -e /etc/machine-id ] || [ -e /var/lib/dbus/machine-id ] || skip "it has none"
    for file in /etc/machine-id /var/lib/dbus/machine-id; do
        [ -e "$file" ] || continue
        [ -L "$file" ] || echo "$id" >"$file" || exit 1
    done
}

ssh_host_keys() {
    set -- /etc/ssh/ssh_host_*_key
    [ -e "$1" ] || skip "it has no keys of OpenSSH"
    [ "$reseeded" = yes ] || fail "keys made now could be those of another clone: the randomness is not new"
    command -v ssh-keygen >/dev/null || fail "ssh-keygen is missing"
    new=$(mktemp -d /etc/ssh/.new.XXXXXX) || exit 1
    trap 'rm -rf "$new"' EXIT
    for key; do
        kind=${key##*/ssh_host_}
        ssh-keygen -q -t "${kind%_key}" -N '' -C "root@$name" -f "$new/${key##*/}" </dev/null || exit 1
        # As the distribution has them.
        chown --reference="$key" "$new/${key##*/}" 2>/dev/null
        chmod --reference="$key" "$new/${key##*/}" 2>/dev/null
    done
    mv -f "$new"/ssh_host_* /etc/ssh/ || exit 1
    if command -v restorecon >/dev/null; then restorecon /etc/ssh/ssh_host_* 2>/dev/null; fi
    if systemd; then
        for unit in ssh sshd; do
            ! systemctl -q is-active $unit.service || systemctl reload $unit.service || exit 1
        done
    else
        for file in /run/sshd.pid /var/run/sshd.pid; do
            [ -s $file ] || continue
            kill -HUP "$(cat $file)"
            break
        done
    fi
}

has_card() {
    for card in /sys/class/net/*/device; do
        [ ! -e "$card" ] || return 0
    done
    return 1
}
has_link() {
    for card in /sys/class/net/*/device; do
        [ "$(cat "${card%/device}/carrier" 2>/dev/null)" != 1 ] || return 0
    done
    return 1
}
# Processes of this name.
running() {
    for comm in /proc/[0-9]*/comm; do
        [ "$(cat "$comm" 2>/dev/null)" != "$1" ] || basename "${comm%/comm}"
    done
}

# The lease is neither given back nor taken for known: it may be the original's as well.
dhcp() {
    has_card || skip "it has no network card"
    tries=0
    until has_link; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] || skip "its network cards have no link"
        sleep 0.1 || sleep 1
    done
    asked=
    if systemd && systemctl -q is-active systemd-networkd.service; then
        systemctl restart systemd-networkd.service || exit 1
        for wait in /usr/lib/systemd/systemd-networkd-wait-online /lib/systemd/systemd-networkd-wait-online; do
            [ -x $wait ] || continue
            $wait --any -o routable --timeout=30 >/dev/null 2>&1 || fail "systemd-networkd got no address"
            break
        done
        asked=yes
    fi
    if systemd && systemctl -q is-active NetworkManager.service; then
        for uuid in $(nmcli -t -f UUID,TYPE connection show --active | sed -n 's/:.*ethernet$//p'); do
            nmcli -w 30 connection up uuid "$uuid" >/dev/null || exit 1
            asked=yes
        done
    fi
    for pid in $(running dhclient); do
        line=$(tr '\0' ' ' <"/proc/$pid/cmdline")
        # One in the foreground belongs to another program, which was asked above.
        case " $line" in *" -d "*) continue ;; esac
        kill "$pid" || exit 1
        while [ -d "/proc/$pid" ]; do sleep 0.1 || sleep 1; done
        $line </dev/null >/dev/null 2>&1 || fail "dhclient got no address"
        asked=yes
    done
    for pid in $(running dhcpcd | head -n 1); do
        dhcpcd --rebind </dev/null >/dev/null 2>&1 || exit 1
        asked=yes
    done
    for pid in $(running udhcpc); do
        kill -USR1 "$pid" || exit 1
        asked=yes
    done
    [ -n "$asked" ] || skip "no DHCP client of it is known: systemd-networkd, NetworkManager, dhclient, dhcpcd, udhcpc"
}

[ "$step" = randomness ] || exec </dev/null
case $step in
    randomness) randomness ;;
    hostname) set_hostname ;;
    machine-id) machine_id ;;
    ssh-host-keys) ssh_host_keys ;;
    dhcp) dhcp ;;
esac
exit 0
