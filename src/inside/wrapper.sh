# Runs a command for piton, whose end of the line has only files: what the command prints goes to
# files of a bounded length that piton reads and then says are read; what it reads comes in files, too.
d=$1 in=$2 user=$3 dir=$4 n=$5
shift 5
u=$(umask)
umask 077
mkdir "$d" || exit 125
cd "$d" && mkfifo 0 1 2 && : >begun || exit 125
# Without the folder nobody reads or writes here any more.
pause() {
    [ -d "$d" ] || exit 125
    sleep 0.05 || sleep 1
}
give() {
    i=0
    while :; do
        dd bs=65536 count=16 of="$d/$1.$i" 2>/dev/null
        [ -s "$d/$1.$i" ] || break
        i=$((i + 1))
        if [ $i -ge 2 ]; then
            until [ -e "$d/$1.$((i - 2)).ok" ]; do pause; done
            rm -f "$d/$1.$((i - 2))" "$d/$1.$((i - 2)).ok"
        fi
    done
    : >"$d/$1.end"
}
take() {
    i=0
    while :; do
        until [ -e "$d/0.$i.ok" ]; do pause; done
        [ -e "$d/0.$i" ] || break
        cat "$d/0.$i" || break
        rm -f "$d/0.$i" "$d/0.$i.ok"
        i=$((i + 1))
    done
}
give 1 <1 &
give 2 <2 &
t=
if [ "$in" = pipe ]; then
    take >0 &
    t=$!
    in=0
else
    in=/dev/null
fi
(
    if [ -n "$user" ]; then
        HOME=$(getent passwd "$user" 2>/dev/null | cut -d: -f6)
        [ -n "$HOME" ] || HOME=/
        USER=$user LOGNAME=$user
        export HOME USER LOGNAME
    elif [ -z "$HOME" ]; then
        HOME=/root
        export HOME
    fi
    cd / && cd -- "${dir:-/}" || exit 126
    while [ "$n" -gt 0 ]; do
        export "$1" || exit 125
        shift
        n=$((n - 1))
    done
    if [ -z "$user" ]; then
        :
    elif command -v runuser >/dev/null 2>&1; then
        set -- runuser -u "$user" -- "$@"
    else
        set -- su -s /bin/sh "$user" -c 'exec "$@"' sh "$@"
    fi
    s=
    if command -v setsid >/dev/null 2>&1; then s=setsid; fi
    exec $s sh -c 'echo $$ >"$1"; umask "$2"; shift 2; exec "$@"' piton "$d/pid" "$u" "$@"
) <"$in" >1 2>2
code=$?
[ -z "$t" ] || kill $t 2>/dev/null
echo $code >code.new && mv code.new code
# Whoever asked takes what is left, and says so; it may be gone.
i=0
until [ -e done ] || [ $i -ge 600 ]; do
    sleep 0.1 || sleep 1
    i=$((i + 1))
done
rm -rf "$d"
exit $code
