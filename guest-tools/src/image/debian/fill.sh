# shellcheck shell=dash
# The steps from a base system to a disk; see fill.rs.
set -eu
tree=$1 base=$2 overlay=$3 disk=$4 mke2fs=$5 uuid=$6 password=$7
umask 022
trap 'exit 130' HUP INT TERM
# Only we may remove what belongs to other users of this namespace.
trap 'rm -rf "$tree"' EXIT
chmod 755 "$tree"
tar -C "$tree" -xf "$base" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'
cp -RP --remove-destination "$overlay/." "$tree/"
chroot "$tree" systemctl --quiet enable systemd-networkd.service concertina-guest.service
if [ -n "$password" ]; then
    chroot "$tree" chpasswd <"$password"
fi
# The disk is a hole that reads as zeroes: nothing of it has to be zeroed.
"$mke2fs" -q -F -t ext4 -m 1 -L rootfs -U "$uuid" \
    -E lazy_itable_init=1,lazy_journal_init=1 -d "$tree" "$disk"
