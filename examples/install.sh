# Sourced by tests/run.sh and examples/quickstart.sh: installs missing Debian packages and finds tools.

BRAID_PACKAGES="g++ cmake ninja-build libeigen3-dev libhdf5-dev libboost-program-options-dev libgtest-dev nlohmann-json3-dev pkg-config"
BRAID_OPTIONAL_PACKAGES="libopenmpi-dev openmpi-bin"

missing_packages() {
  local package
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || echo "$package"
  done
}

# Installs as root without asking; otherwise says what to type and stops.
install_packages() {
  local needed optional
  command -v dpkg-query >/dev/null || return 0 # not Debian: CMake says what is missing
  needed=$(missing_packages $BRAID_PACKAGES)
  optional=$(missing_packages $BRAID_OPTIONAL_PACKAGES)
  [ -z "$needed$optional" ] && return 0
  if [ "$(id -u)" != 0 ]; then
    [ -z "$needed" ] && return 0
    echo "missing packages; please run: sudo apt-get install -y" $needed >&2
    return 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq >/dev/null 2>&1
  if [ -n "$needed" ] && ! apt-get install -y -qq --no-install-recommends $needed >/dev/null; then
    needed=$(missing_packages $BRAID_PACKAGES)
    [ -z "$needed" ] || echo "could not install:" $needed "(going on: CMake says whether it matters)" >&2
  fi
  [ -z "$optional" ] || apt-get install -y -qq --no-install-recommends $optional >/dev/null 2>&1 || echo "optional packages not installed:" $optional >&2
  return 0
}

find_nvcc() {
  command -v nvcc 2>/dev/null || { [ -x /usr/local/cuda/bin/nvcc ] && echo /usr/local/cuda/bin/nvcc; }
  return 0
}

has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; }

preset_folder() {
  case "$1" in
    cpu) echo build ;;
    *) echo "build-$1" ;;
  esac
}

install_packages
