# shellcheck shell=bash
# Shared by the scripts of this folder: messages, packages, the cache folder, Debian kernels, the
# build, and the choice between this machine's KVM and the nested host. Sourced, never run.

set -euo pipefail

CONCERTINA_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CONCERTINA_CACHE=${CONCERTINA_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/concertina}
# The target that .cargo/config.toml sets: static binaries, which run in the nested host as they are.
CONCERTINA_TARGET=x86_64-unknown-linux-gnu
CONCERTINA_BIN=${CONCERTINA_BIN:-${CARGO_TARGET_DIR:-$CONCERTINA_ROOT/target}/$CONCERTINA_TARGET/release}
export CONCERTINA_ROOT CONCERTINA_CACHE CONCERTINA_TARGET CONCERTINA_BIN

say() { printf '%s\n' "$*" >&2; }

die() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}

# --- packages --------------------------------------------------------------------------------

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "'$1' must run as root, and there is no sudo: run this script as root once"
    fi
}

# Runs a package client quietly; its output is shown only when it fails.
quietly() {
    local log
    mkdir -p "$CONCERTINA_CACHE"
    log=$(mktemp "$CONCERTINA_CACHE/log.XXXXXX")
    if "$@" >"$log" 2>&1 </dev/null; then
        rm -f "$log"
    else
        tail -n 30 "$log" >&2
        rm -f "$log"
        return 1
    fi
}

# Once in a while is enough, for all scripts together.
refresh_package_lists() {
    local marker=$CONCERTINA_CACHE/.package-lists
    [ -z "$(find "$marker" -mmin -10 2>/dev/null)" ] || return 0
    command -v apt-get >/dev/null || die "This machine has no apt-get: the scripts set up Debian and its descendants only"
    say "Refreshing the package lists"
    quietly as_root apt-get update || die "apt-get update failed: see above"
    touch "$marker"
}

# need_command COMMAND PACKAGE: installs PACKAGE when COMMAND is missing.
need_command() {
    command -v "$1" >/dev/null && return 0
    local package=$2
    say "Installing $package (for $1)"
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" \
        >/dev/null 2>&1 </dev/null; then
        refresh_package_lists
        quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$package" ||
            die "apt-get install $package failed: see above"
    fi
    command -v "$1" >/dev/null || die "Package $package is installed, but there is no command '$1'"
}

# fetch_package NAME: downloads and unpacks a Debian package into the cache, without installing it.
# Prints the folder. A newer version in the archive is not looked for once a copy is there.
fetch_package() {
    local name=$1 folder=$CONCERTINA_CACHE/packages/$1 scratch
    if [ ! -e "$folder/.complete" ]; then
        mkdir -p "$CONCERTINA_CACHE/packages"
        scratch=$(mktemp -d "$CONCERTINA_CACHE/packages/.fetch.XXXXXX")
        # apt's download user must be able to write here when root runs this.
        chmod 755 "$scratch"
        if ! (cd "$scratch" && apt-get download "$name" >/dev/null 2>&1); then
            refresh_package_lists
            (cd "$scratch" && quietly apt-get download "$name") || {
                rm -rf "$scratch"
                die "apt-get download $name failed: see above"
            }
        fi
        dpkg -x "$scratch"/*.deb "$scratch/root" || die "Package $name could not be unpacked"
        mv "$scratch"/*.deb "$scratch/root/.package.deb"
        touch "$scratch/root/.complete"
        # Another script may have been faster: its folder is as good.
        [ -e "$folder/.complete" ] || rm -rf "$folder"
        mv -T "$scratch/root" "$folder" 2>/dev/null || [ -e "$folder/.complete" ] ||
            die "Package $name could not be put into $folder"
        rm -rf "$scratch"
    fi
    printf '%s\n' "$folder"
}

# static_busybox: prints the path of a static busybox. The package is unpacked, not installed, since
# installing it would remove the plain busybox that other packages of the machine may need.
static_busybox() {
    printf '%s/bin/busybox\n' "$(fetch_package busybox-static)"
}

# --- kernels ---------------------------------------------------------------------------------

# Prints the newest signed cloud kernel package of a series ("6.12") that the package lists know.
find_kernel_package() {
    local series=$1
    apt-cache pkgnames "linux-image-$series." 2>/dev/null |
        grep -E "^linux-image-${series//./\\.}[.0-9]*[+~a-z0-9.-]*-cloud-amd64\$" |
        sort -V | tail -n 1
}

# kernel_package SERIES: prints the name of Debian's cloud kernel package of that series.
kernel_package() {
    local series=$1 name
    # What is in the cache stays in use, so that runs are comparable and need no network.
    name=$(find "$CONCERTINA_CACHE/packages" -maxdepth 1 -name "linux-image-$series.*-cloud-amd64" \
        -printf '%f\n' 2>/dev/null | sort -V | tail -n 1)
    [ -n "$name" ] || name=$(find_kernel_package "$series")
    if [ -z "$name" ]; then
        refresh_package_lists
        name=$(find_kernel_package "$series")
    fi
    [ -n "$name" ] || return 1
    printf '%s\n' "$name"
}

# --- which KVM -------------------------------------------------------------------------------

# True when this machine's own KVM runs stock kernels and its cgroups are version 2. Opening
# /dev/kvm proves nothing: paravirtual KVMs open too, and then cannot emulate an ordinary kernel.
host_has_usable_kvm() {
    { [ -d /sys/module/kvm_intel ] || [ -d /sys/module/kvm_amd ]; } || return 1
    (exec 3<>/dev/kvm) 2>/dev/null || return 1
    [ "$(stat -f -c %T /sys/fs/cgroup 2>/dev/null)" = cgroup2fs ] && [ "$(id -u)" = 0 ]
}

# Sets CONCERTINA_HOST to "direct" when VMs run on this machine itself, else to "nested".
# shellcheck disable=SC2034 # read by the scripts that source this file
choose_host() {
    if host_has_usable_kvm; then
        say "This machine has hardware KVM: the VMs run on it directly"
        CONCERTINA_HOST=direct
    else
        say "This machine's KVM cannot run stock kernels (or it has none): the VMs run in the nested host"
        CONCERTINA_HOST=nested
        need_command qemu-system-x86_64 qemu-system-x86
    fi
}

# --- build -----------------------------------------------------------------------------------

need_rust() {
    command -v cargo >/dev/null || die "There is no cargo on the PATH: install Rust 1.90 or newer first"
    need_command cc gcc
    local libc
    libc=$(cc -print-file-name=libc.a)
    if [ ! -e "$libc" ]; then
        say "Installing libc6-dev (for static linking)"
        refresh_package_lists
        quietly as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends libc6-dev ||
            die "apt-get install libc6-dev failed: see above"
    fi
}

# Builds the commands: static release binaries in $CONCERTINA_BIN.
build_release() {
    need_rust
    (cd "$CONCERTINA_ROOT" && cargo build --release --workspace --bins)
}

# guest_modules SERIES: prints the folder of modules of Debian's cloud kernel of that series.
guest_modules() {
    local name package
    name=$(kernel_package "$1") || return 1
    package=$(fetch_package "$name")
    find "$package/lib/modules" "$package/usr/lib/modules" -mindepth 1 -maxdepth 1 2>/dev/null | head -n 1
}

# build_guest SERIES: makes the guest of one kernel series with our own tools, in the cache, and
# prints its folder: bzImage, vmlinux, initramfs.
build_guest() {
    local series=$1 name package guest stamp
    name=$(kernel_package "$series") ||
        die "No Debian cloud kernel of series $series is in the package lists of this machine"
    package=$(fetch_package "$name")
    guest=$CONCERTINA_CACHE/guests/$series
    stamp=$(cat "$CONCERTINA_BIN/concertina" "$CONCERTINA_BIN/concertina-guest" | sha256sum | cut -c1-32)-$name
    if [ "$(cat "$guest/.stamp" 2>/dev/null)" != "$stamp" ]; then
        rm -rf "$guest"
        mkdir -p "$guest"
        cp "$package"/boot/vmlinuz-* "$guest/bzImage"
        if ! quietly "$CONCERTINA_BIN/concertina" image vmlinux "$guest/bzImage" -o "$guest/vmlinux" ||
            ! quietly "$CONCERTINA_BIN/concertina" image initramfs --modules "$(guest_modules "$series")" \
                --busybox "$(static_busybox)" -o "$guest/initramfs"; then
            die "The guest of kernel series $series could not be made: see above"
        fi
        printf '%s' "$stamp" >"$guest/.stamp"
    fi
    printf '%s\n' "$guest"
}

# build_image RELEASE SERIES [PACKAGE]…: makes a disk image of a Debian release with our own command, in
# the cache, and prints its path. The kernel is the release's own where SERIES is that one.
build_image() {
    local release=$1 series=$2 image stamp package name packages=()
    shift 2
    name=$release-$series
    for package in "$@"; do
        packages+=(--package "$package")
        name+=+$package
    done
    need_command mmdebstrap mmdebstrap
    need_command mke2fs e2fsprogs
    image=$CONCERTINA_CACHE/images/$name.img
    stamp=$(cat "$CONCERTINA_BIN/concertina" "$CONCERTINA_BIN/concertina-guest" | sha256sum | cut -c1-32)
    if [ "$(cat "$image.stamp" 2>/dev/null)" != "$stamp" ] || [ ! -e "$image" ]; then
        mkdir -p "$CONCERTINA_CACHE/images"
        say "Building a disk image of $release with kernel $series"
        CONCERTINA_CACHE_DIR=$CONCERTINA_CACHE quietly "$CONCERTINA_BIN/concertina" \
            image build debian --release "$release" --kernel-series "$series" \
            ${packages[@]+"${packages[@]}"} --size 1G -o "$image" ||
            die "The disk image of $release could not be made: see above"
        printf '%s' "$stamp" >"$image.stamp"
    fi
    printf '%s\n' "$image"
}
