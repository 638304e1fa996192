#!/usr/bin/env bash
# Builds the .deb and .rpm of warmd and warmctl: packaging/build.sh OUT. `make packages` gives it VERSION and NFPM.
#
# The same sources give the same bytes, in any folder and at any time: the only clock is the date of the commit, or
# SOURCE_DATE_EPOCH for a tree without one. Everything is laid out below a stage as it will be installed, with its mode;
# nfpm-*.yaml say what goes into which package.
set -euo pipefail
export LC_ALL=C TZ=UTC VERSION NFPM
umask 022
cd "$(dirname "$0")/.."
: "${VERSION:?}" "${NFPM:?}"
VERSION=${VERSION#v}
[[ $VERSION =~ ^[0-9][0-9A-Za-z.+~]*$ ]] || { echo "VERSION=$VERSION: dpkg and rpm both take a digit, then digits, letters, . + ~" >&2; exit 2; }
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
ARCH=$(go env GOARCH)
export SOURCE_DATE_EPOCH ARCH
mkdir -p "$1"
out=$(cd "$1" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

make --no-print-directory VERSION="$VERSION" BIN="$stage" build

put() { # put MODE FOLDER FILE...
    local mode=$1 to=$stage/$2
    shift 2
    install -d "$to" && install -m "$mode" -t "$to" "$@"
}
zip() { gzip -9n; }

# licences FORMAT COMMAND: what the modules in a program want to be said of them, each text once. Debian has the Apache
# licence on every host and wants no copies.
licences() {
    cat packaging/doc/copyright
    declare -A users=()
    local texts=() found module dir text sum
    while read -r module dir; do
        found=
        for text in "$dir"/{LICEN[CS]E,COPYING,NOTICE}*; do
            [ -f "$text" ] || continue
            found=yes
            sum=$(sha256sum <"$text")
            [ "${users[$sum]+known}" ] || texts+=("$text")
            users[$sum]+="    $module"$'\n'
        done
        [ $found ] || { echo "$module has no licence file in $dir" >&2; return 1; }
    done < <({ go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}}@{{.Version}} {{.Dir}}{{end}}{{end}}' "$2"; echo "$(go env GOVERSION) $(go env GOROOT)"; } | sort -u)
    for text in "${texts[@]}"; do
        printf '\n%.0s-' {1..72} | tr -d '\n'
        printf '\n\n%s\n' "${users[$(sha256sum <"$text")]}"
        if [ "$1" = deb ] && grep -q 'TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION' "$text"; then
            grep -E '^ *Copyright (\(c\) )?[0-9]' "$text" || true
            echo 'Apache License, Version 2.0: /usr/share/common-licenses/Apache-2.0'
        else
            cat "$text"
        fi
    done
}

# changelog PACKAGE: the version that is being built stands for what is not released.
changelog() {
    sed -e "s/@PACKAGE@/$1/; s/@VERSION@/$VERSION/; s/@DATE@/$(date -R -d "@$SOURCE_DATE_EPOCH")/" packaging/doc/changelog
}

for p in warmd warmctl; do
    mkdir -p "$stage/doc/$p" "$stage/man"
    for format in deb rpm; do
        CGO_ENABLED=$([ $p = warmd ] && echo 1 || echo 0) licences $format ./cmd/$p >"$stage/doc/$p/copyright.$format"
    done
    changelog $p >"$stage/doc/$p/changelog"
    zip <"$stage/doc/$p/changelog" >"$stage/doc/$p/changelog.gz"
done
for page in packaging/man/*; do zip <"$page" >"$stage/man/${page##*/}.gz"; done
put 644 doc packaging/doc/README
put 644 config packaging/config/*
put 644 units systemd/units/*
put 644 python agent/runtime/vllm/*.py
put 644 completions packaging/completions/*
put 644 lintian packaging/lintian/*
put 755 scripts packaging/scripts/*
for d in sysusers tmpfiles preset polkit; do put 644 $d packaging/$d/*; done

configs=$PWD/packaging
rpmarch=$(uname -m) # as rpm names it; we do not build for another machine
cd "$stage"
for p in warmd warmctl; do
    "$NFPM" package -f "$configs/nfpm-$p.yaml" -p deb -t "$out/${p}_${VERSION}_$ARCH.deb"
    "$NFPM" package -f "$configs/nfpm-$p.yaml" -p rpm -t "$out/$p-$VERSION-1.$rpmarch.rpm"
done >/dev/null
ls -1 "$out"/{warmd,warmctl}[-_]"$VERSION"*
