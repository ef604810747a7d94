#!/usr/bin/env bash
# Run the collection on a Debian that holds only environment/debian-packages.txt, as an
# ordinary user, in a folder whose name has a space; then the tests of what a run may touch
# and of planted faults. Needs root and Debian's mmdebstrap.
#   scripts/bare.sh                                  # make run-all
#   scripts/bare.sh data-versioning/delta-lake.ipynb # these notebooks only
set -euo pipefail
unset CDPATH && cd "$(dirname "$0")/.."
stop() { echo "bare: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || stop "making a system needs root"
command -v mmdebstrap >/dev/null || stop "mmdebstrap is missing (Debian: apt-get install mmdebstrap)"
[ -z "$(git status --porcelain)" ] || echo "bare: what is not committed is not in the clone"

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
echo "bare: making a Debian with $(paste -sd' ' environment/debian-packages.txt)"
mmdebstrap --quiet --variant=minbase \
    --include="$(paste -sd, environment/debian-packages.txt)" bookworm "$root/system"
cd "$root/system"
chroot . useradd --create-home --shell /bin/bash ana
home=home/ana clone="home/ana/a clone"
git clone -q "$OLDPWD" "$clone"
# What set-up needs of this machine: names, certificates, mirrors.
cp -L /etc/resolv.conf /etc/hosts etc/
cp -rL /etc/ssl/certs etc/ssl/ 2>/dev/null || true
for file in .npmrc .config/pip/pip.conf .config/uv/uv.toml .config/go/env; do
    [ ! -e "$HOME/$file" ] || install -D -m 644 "$HOME/$file" "$home/$file"
done
[ ! -e /etc/pip.conf ] || cp /etc/pip.conf etc/
for name in SSL_CERT_FILE PIP_CERT REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS CURL_CA_BUNDLE; do
    [ ! -e "${!name:-}" ] || install -D -m 644 "${!name}" ".${!name}"
done
chroot . chown -R ana: /home/ana
kept=$(env | grep -E '^(([a-zA-Z]+_proxy|[A-Z]+_PROXY)|(PIP|UV|NPM_CONFIG|SSL_CERT|NODE_EXTRA)_?[A-Z_]*|REQUESTS_CA_BUNDLE|GO(PROXY|SUMDB|NOSUMDB))=' || true)

# A root of its own rather than a chroot, in which an ordinary user may make namespaces.
inside='
    mount --bind . . && cd "$PWD" && mount -t proc proc proc && mount --rbind /dev dev
    mkdir -p old && pivot_root . old && umount -l /old
    exec setpriv --reuid ana --regid ana --init-groups \
        env -i HOME=/home/ana PATH=/usr/bin:/bin "$@"'
export root
mapfile -t variables <<<"$kept"
started=$SECONDS
unshare --mount --pid --fork --kill-child bash -ec "$inside" bash "${variables[@]:-A=1}" \
    sh -c 'cd "/home/ana/a clone" && make run-all "$@" &&
        exec make test T="tests/test_user.py tests/test_faults.py" NOTEBOOKS=' \
    sh ${1:+"NOTEBOOKS=$*"}
echo "bare: done in $((SECONDS - started)) s, as an ordinary user, without Go and Node"
