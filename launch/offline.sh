#!/usr/bin/env bash
# Installs litevit_jax on a machine without network.
#
#   launch/offline.sh fetch FOLDER [OPTIONS]      here, with network: pip download
#   FOLDER/offline.sh install FOLDER [OPTIONS]    there, from a copy of FOLDER: --no-index
#
#   fetch     puts the committed code, all packages and this script into FOLDER
#   install   unpacks the code, and installs it with its packages into its .venv
#
# Options:
#   --extra=cuda13       of fetch: extras of the package, as cuda13, cuda12, tpu or
#                        tpu,gcs; none: for CPUs
#   --into=litevit       of install: a new folder for the code
#   --python=python3     of the same version and kind of system here and there
set -euo pipefail

extra='' into=litevit python=python3

usage() {
  sed -n '2,14{s/^# \{0,1\}//;p;}' "$0"
}

fail() {
  echo "error: $1" >&2
  exit 2
}

# What packages are made for: version of Python, kind of system.
kind() {
  "$python" -c 'import sys, sysconfig
print("Python %d.%d" % sys.version_info[:2], "on", sysconfig.get_platform())'
}

# File of the tested versions for this Python.
tested() {
  "$python" -c 'import sys
print("constraints/py311.txt" if sys.version_info < (3, 12) else "constraints/py312.txt")'
}

fetch() {
  local root packages=$folder/packages file
  root=$(cd "$(dirname "$0")/.." && pwd)
  mkdir -p "$packages"
  packages=$(cd "$packages" && pwd)
  kind >"$folder/kind"
  echo "$extra" >"$folder/extra"
  cp "$0" "$folder/offline.sh"
  git -C "$root" archive --format=tar.gz HEAD >"$folder/litevit.tar.gz"
  # The last two build the code's own package there.
  "$python" -m pip download --dest "$packages" -c "$root/$(tested)" \
    "$root${extra:+[$extra]}" 'setuptools>=77' wheel
  rm -f "$packages"/litevit_jax-*
  # Nothing is left to be built from its source there, nor to be fetched for that.
  for file in "$packages"/*.tar.gz "$packages"/*.zip; do
    [[ -e $file ]] || continue
    "$python" -m pip wheel --no-deps --wheel-dir "$packages" "$file"
    rm "$file"
  done
  echo "copy $folder to the other machine; there: $folder/offline.sh install $folder"
}

install() {
  local here there pip
  [[ -f $folder/litevit.tar.gz ]] || fail "$folder was not made by $0 fetch"
  here=$(kind) there=$(<"$folder/kind") extra=$(<"$folder/extra")
  [[ $here == "$there" ]] || fail "$folder is for $there, this is $here: give the same \
version here with --python=, or fetch with the one that is here"
  [[ ! -e $into ]] || fail "$into exists; give a new folder with --into="
  folder=$(cd "$folder" && pwd)
  mkdir -p "$into"
  tar -xzf "$folder/litevit.tar.gz" -C "$into"
  "$python" -m venv "$into/.venv"
  cd "$into"
  pip=(.venv/bin/python -m pip --disable-pip-version-check)
  "${pip[@]}" install --no-index --find-links "$folder/packages" -c "$(tested)" \
    --editable ".${extra:+[$extra]}"
  echo "installed; try: cd $into && .venv/bin/python main.py --config=mae_tiny:smoke"
}

main() {
  local command=${1:-}
  case $command in
    fetch | install) ;;
    '' | -h | --help | help)
      usage
      return
      ;;
    *) fail "unknown command $command: fetch or install ($0 --help)" ;;
  esac
  folder=${2:-}
  [[ $folder && $folder != --* ]] || fail "$command which FOLDER? ($0 --help)"
  shift 2
  while (($#)); do
    case $1 in
      --extra=*) extra=${1#*=} ;;
      --into=*) into=${1#*=} ;;
      --python=*) python=${1#*=} ;;
      *) fail "unknown option $1 ($0 --help)" ;;
    esac
    shift
  done
  "$command"
}

main "$@"
