#!/bin/sh
# The version of this tree as both dpkg and rpm take it and order it: 0.4.1 at tag v0.4.1, 0.4.1+12.gdd1b7a7 twelve
# commits later, 0.4.1~rc1 at v0.4.1-rc1, with ".dirty" at the end when a file is changed. Never older than its parent's.
cd "$(dirname "$0")" || exit
if said=$(git describe --tags --long --match 'v[0-9]*' 2>/dev/null); then
    said=${said#v}
elif head=$(git rev-parse --short HEAD 2>/dev/null); then
    said=0.0.0-$(git rev-list --count HEAD)-g$head
else
    echo 0.0.0 && exit # not a checkout
fi
version=$(echo "$said" | sed -E 's/-0-g[0-9a-f]+$//; s/-([0-9]+)-(g[0-9a-f]+)$/+\1.\2/; s/-/~/g')
[ -z "$(git status --porcelain --untracked-files=no)" ] || case $version in
    *+*) version=$version.dirty ;;
    *) version=$version+dirty ;;
esac
echo "$version"
