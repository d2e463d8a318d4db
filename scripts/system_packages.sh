#!/usr/bin/env bash
# Debian packages that the Qt, EGL and browser tests need: installed where that is possible, else named in one line.
set -uo pipefail

PACKAGES=(xvfb xauth libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1
    libxcb-shape0 libxcb-image0 libxcb-render-util0 libdbus-1-3 libfontconfig1 fonts-dejavu-core chromium)

if ! command -v dpkg-query >/dev/null; then
    echo "Note: tests of the GUI and of the pages need Qt's X11/EGL libraries and Chromium; they are skipped where those are missing."
    exit 0
fi

missing=()
for name in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing+=("$name")
done
[ "${#missing[@]}" -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Debian packages for the GUI and page tests: ${missing[*]}"
    log=$(mktemp)
    if { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null
    then
        rm -f "$log"
        exit 0
    fi
    tail -n 3 "$log"
    rm -f "$log"
fi
echo "Note: GUI and page tests are skipped without these Debian packages: ${missing[*]}"
exit 0
