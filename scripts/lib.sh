# Shared by the scripts here: steps with their time, and failures with a remedy. Source it.

SIGIL_STEP=""
SIGIL_STARTED=$(date +%s%N)

_ms() { echo $((($(date +%s%N) - $1) / 1000000)); }

# step "what": ends the step before it and begins one.
step() {
    done_step
    SIGIL_STEP="$*"
    SIGIL_STARTED=$(date +%s%N)
    printf '==> %s\n' "$SIGIL_STEP"
}

done_step() {
    if [ -n "$SIGIL_STEP" ]; then
        local ms
        ms=$(_ms "$SIGIL_STARTED")
        printf '    %s: %d.%03d s\n' "$SIGIL_STEP" $((ms / 1000)) $((ms % 1000))
    fi
    SIGIL_STEP=""
}

# die "what" "remedy"
die() {
    printf 'error: %s\n' "$1" >&2
    [ -n "${SIGIL_STEP:-}" ] && printf '       while: %s\n' "$SIGIL_STEP" >&2
    [ -n "${2:-}" ] && printf 'hint: %s\n' "$2" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null 2>&1; then
        sudo "$@"
    else
        die "'$1' needs root and there is no sudo" "run this script as root"
    fi
}

# apt_install COMMAND:PACKAGE …: installs the packages whose command is missing.
apt_install() {
    local missing=() pair
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null 2>&1 || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} = 0 ] && return 0
    command -v apt-get >/dev/null 2>&1 ||
        die "missing: ${missing[*]}, and this is no Debian or Ubuntu" "install them with your system's package manager"
    echo "    installing ${missing[*]}"
    as_root apt-get update -qq >/dev/null || die "apt-get update failed" "check the network and /etc/apt/sources.list"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "${missing[@]}" >/dev/null ||
        die "apt-get could not install ${missing[*]}" "install them by hand and run this again"
}

# ensure_engine: a Docker engine that answers, started if need be.
ensure_engine() {
    docker info >/dev/null 2>&1 && return 0
    [ -n "${DOCKER_HOST:-}" ] && die "no engine answers at DOCKER_HOST=$DOCKER_HOST" "start it, or unset DOCKER_HOST"
    apt_install dockerd:docker.io iptables:iptables
    command -v docker >/dev/null 2>&1 || apt_install docker:docker-cli
    if [ -d /run/systemd/system ]; then
        as_root systemctl start docker || die "systemctl start docker failed" "look at: journalctl -u docker"
    else
        # a pid file of an engine that is gone keeps a new one from starting
        local pid
        pid=$(cat /var/run/docker.pid 2>/dev/null || true)
        if [ -n "$pid" ] && ! [ -d "/proc/$pid" ]; then as_root rm -f /var/run/docker.pid; fi
        echo "    no systemd: starting dockerd (log: /var/log/sigil-dockerd.log)"
        as_root sh -c 'setsid dockerd >>/var/log/sigil-dockerd.log 2>&1 </dev/null &'
    fi
    local i
    for i in $(seq 1 120); do
        as_root docker info >/dev/null 2>&1 && break
        sleep 0.5
    done
    as_root docker info >/dev/null 2>&1 || die "the Docker engine did not start" "look at /var/log/sigil-dockerd.log"
    docker info >/dev/null 2>&1 ||
        die "this user may not use the Docker engine" "run as root, or join the group 'docker' (that is root on this host)"
}

# ensure_rust: cargo on PATH.
ensure_rust() {
    command -v cargo >/dev/null 2>&1 || { [ -f "$HOME/.cargo/env" ] && . "$HOME/.cargo/env"; } || true
    command -v cargo >/dev/null 2>&1 || die "cargo is missing" "install Rust 1.95 or later: https://rustup.rs"
    apt_install cc:gcc make:make
}
